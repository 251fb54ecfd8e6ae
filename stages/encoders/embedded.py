"""Feature extractors behind one interface, and features of many images.

An extractor takes images (B, C, H, W) in [-1, 1] and gives one row of features for each. It says
under which name, hash and resize, because a score's protocol needs them. The embedded extractor is
here; those with downloaded weights are in stages.encoders.pretrained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.encoders.feeding import fed, grouped, pinned
from stages.nets.encoders import EmbeddedCNN

__all__ = [
    "SPATIAL_CHANNELS",
    "FeatureNetwork",
    "Features",
    "Ready",
    "embedded",
    "extract",
    "state_hash",
]

SPATIAL_CHANNELS = 7  # of sFID, Nash et al. 2021
SPATIAL_SIDE = 8  # places a side to which the embedded map is averaged at most (ours)


@dataclass(frozen=True)
class Features:
    """Of n images: features (n, d); spatial (n, 7, h, w) and logits (n, num_classes) where the
    extractor has them. float32, on the CPU when they come from extract."""

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Ready:
    """Images as a network takes them, in the CPU's memory (pinned for a GPU), and which of them
    have finite pixels, (B,)."""

    inputs: Tensor
    finite: Tensor


@dataclass(frozen=True)
class FeatureNetwork:
    """images (B, C, H, W) in [-1, 1] -> Features; with what a score's protocol has to say.

    compute: on the device, of what `prepare` made of images on the CPU, float32 images where there
    is nothing to prepare. prepare: safe in several threads at once.
    """

    name: str
    weights_hash: str
    resize: str
    dimension: int
    compute: Callable[[Tensor], Features]
    device: torch.device
    prepare: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Features:
        return self.seen(self.ready(images).inputs.to(self.device))

    def ready(self, images: Tensor) -> Ready:
        """Images made ready for `seen`; by several threads at once where that helps."""
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; extractors take (B, C, H, W), not empty"
            )
        finite = images.isfinite().flatten(1).all(1)
        inputs = images.float() if self.prepare is None else self.prepare(images.cpu().float())
        return Ready(pinned(inputs, self.device), finite)

    @torch.inference_mode()
    def seen(self, inputs: Tensor) -> Features:
        """Features, on the device, of what `ready` made and was brought there."""
        return self.compute(inputs)


def embedded(state: Mapping[str, Tensor], device: str = "cpu") -> FeatureNetwork:
    """The embedded extractor from the state dict of an EmbeddedCNN, at the images' own size.

    Spatial features are the first 7 channels after the second convolution, averaged to at most
    8x8 places.

    Raises ValueError where the state is not that of an EmbeddedCNN.
    """
    try:
        in_channels = state["convs.0.weight"].shape[1]
        widths = tuple(state[f"convs.{i}.weight"].shape[0] for i in range(3))
        network = EmbeddedCNN(in_channels, state["classifier.weight"].shape[0], widths)
        network.load_state_dict(dict(state))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"state is not that of an EmbeddedCNN: {error}") from None
    network.to(device).eval().requires_grad_(False)

    def compute(images: Tensor) -> Features:
        if images.shape[1] != in_channels:
            raise ValueError(
                f"images have {images.shape[1]} channels and the embedded extractor was trained "
                f"on {in_channels}; train one on this data set"
            )
        outputs = network(images)
        side = tuple(min(SPATIAL_SIDE, length) for length in outputs.spatial.shape[2:])
        spatial = F.adaptive_avg_pool2d(outputs.spatial[:, :SPATIAL_CHANNELS], side)
        return Features(outputs.features, spatial, outputs.logits)

    dimension = network.hidden.out_features
    return FeatureNetwork(
        "embedded", state_hash(state), "none", dimension, compute, torch.device(device)
    )


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state dict: names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def extract(
    extractor: FeatureNetwork,
    images: Tensor | Iterable[Tensor | Ready],
    batch_size: int = 128,
    names: list[str] | None = None,
    together: int = 1,
) -> Features:
    """Features of many images, batch by batch.

    images: (n, C, H, W) in [-1, 1], or an iterable of such batches, or of what `extractor.ready`
    made of them, which need not fit together. ``names`` are what messages call the images (file
    names); their indices by default. together: the network sees so many images at once, or a few
    more, of smaller batches.

    Raises ValueError for no images, or for features that are not finite: the message names the
    image.
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    finite: list[Tensor] = []

    def inputs() -> Iterator[Tensor]:
        for batch in batches:
            ready = batch if isinstance(batch, Ready) else extractor.ready(batch)
            finite.append(ready.finite)
            yield ready.inputs

    parts = [extractor.seen(x) for x in fed(grouped(inputs(), together), extractor.device)]
    if not parts:
        raise ValueError("there are no images to extract features from")
    found = Features(
        *(_joined([getattr(part, name) for part in parts]) for name in Features.__annotations__)
    )
    _check_finite(found.features, [len(part.features) for part in parts], finite, names)
    return found


def _check_finite(
    features: Tensor, counts: list[int], pixels: list[Tensor], names: list[str] | None
) -> None:
    """Raise ValueError where features (n, d) are not finite. counts: images of each batch. pixels:
    of every image whether its own are."""
    bad = ~features.isfinite().all(1)
    if not bad.any():
        return
    first = 0
    for count in counts:
        here = bad[first : first + count].nonzero().flatten().tolist()
        if here:
            break
        first += count
    index = first + here[0]
    image = names[index] if names is not None else f"image {index}"
    what = "features are" if torch.cat(pixels)[index] else "pixels are"
    more = f" (and of {len(here) - 1} more in its batch)" if len(here) > 1 else ""
    raise ValueError(
        f"the {what} NaN or infinite in {image}{more}; remove it, or look at what made it"
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    kept = [part.float() for part in parts if part is not None]
    return torch.cat(kept).cpu() if kept else None
