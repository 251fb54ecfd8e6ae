"""Feature extractors behind one interface, and features of many images.

An extractor takes images (B, C, H, W) in [-1, 1] and gives one row of features for each. It says
under which name, hash and resize, because a score's protocol needs them. The embedded extractor is
here; those with downloaded weights are in stages.encoders.pretrained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.nets.encoders import EmbeddedCNN

__all__ = ["SPATIAL_CHANNELS", "FeatureNetwork", "Features", "embedded", "extract", "state_hash"]

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
class FeatureNetwork:
    """images (B, C, H, W) in [-1, 1] -> Features; with what a score's protocol has to say."""

    name: str
    weights_hash: str
    resize: str
    dimension: int
    compute: Callable[[Tensor], Features]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; extractors take (B, C, H, W), not empty"
            )
        return self.compute(images.to(self.device, torch.float32))


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
    images: Tensor | Iterable[Tensor],
    batch_size: int = 128,
    names: list[str] | None = None,
) -> Features:
    """Features of many images, batch by batch.

    images: (n, C, H, W) in [-1, 1], or an iterable of such batches, which need not fit together.
    ``names`` are what messages call the images (file names); their indices by default.

    Raises ValueError for no images, or for features that are not finite: the message names the
    image.
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    parts: list[Features] = []
    count = 0
    for batch in batches:
        part = extractor(batch)
        bad = (~torch.isfinite(part.features).all(1)).nonzero().flatten().tolist()
        if bad:
            index = count + bad[0]
            image = names[index] if names is not None else f"image {index}"
            pixels = "pixels are" if not torch.isfinite(batch[bad[0]]).all() else "features are"
            more = f" (and of {len(bad) - 1} more in its batch)" if len(bad) > 1 else ""
            raise ValueError(
                f"the {pixels} NaN or infinite in {image}{more}; remove it, or look at what made it"
            )
        parts.append(part)
        count += len(batch)
    if not parts:
        raise ValueError("there are no images to extract features from")
    return Features(
        *(_joined([getattr(part, name) for part in parts]) for name in Features.__annotations__)
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    kept = [part.float().cpu() for part in parts if part is not None]
    return torch.cat(kept) if kept else None
