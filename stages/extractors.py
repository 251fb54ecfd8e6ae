"""Feature extractors behind one interface: embedded, clean-fid's Inception, DINOv2.

An extractor takes images (B, C, H, W) in [-1, 1] and gives one row of features for each. It says
under which name, hash and resize, because a score's protocol needs them. Weights are never
downloaded: a missing file is one sentence that names it, its place and the setting.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.nets.encoders import EmbeddedCNN
from stages.torchvision_shim import prepare_torchvision

__all__ = [
    "NAMES",
    "WEIGHT_FILES",
    "Extractor",
    "Features",
    "MissingWeightsError",
    "embedded",
    "extract",
    "load",
    "state_hash",
    "weight_file",
]

# Any one of the files serves; they hold the same weights.
WEIGHT_FILES: dict[str, tuple[str, ...]] = {
    "inception": ("inception-2015-12-05.pt",),
    "dinov2-small": ("dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2.safetensors"),
    "dinov2-base": ("dinov2_vitb14_pretrain.pth", "vit_base_patch14_dinov2.safetensors"),
    "dinov2-large": ("dinov2_vitl14_pretrain.pth", "vit_large_patch14_dinov2.safetensors"),
}
NAMES = ("embedded", *WEIGHT_FILES)

SPATIAL_CHANNELS = 7  # of sFID, Nash et al. 2021
SPATIAL_SIDE = 8  # places a side to which the embedded map is averaged at most (ours)
DINO_SIDE = 224


class MissingWeightsError(FileNotFoundError):
    """A weight file has to be placed by hand; the message says which, where and how."""


@dataclass(frozen=True)
class Features:
    """Of n images: features (n, d); spatial (n, 7, h, w) and logits (n, num_classes) where the
    extractor has them. float32, on the CPU when they come from extract."""

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
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


def load(
    name: str, weights_dir: str | Path, setting: str = "weights_dir", device: str = "cpu"
) -> Extractor:
    """The extractor of that name from a weight file in ``weights_dir``.

    ``setting`` is how the caller's users set that directory; it appears in messages. The embedded
    extractor is trained, not loaded from there: see ``embedded``.

    Raises ValueError for an unknown name (with the nearest known one), MissingWeightsError where
    the file is absent.
    """
    if name == "embedded":
        raise ValueError(
            "the extractor 'embedded' has no weight file; train it with train_classifier and give "
            "its state to embedded()"
        )
    path = weight_file(name, weights_dir, setting)
    build = _inception if name == "inception" else _dinov2
    return build(name, path, torch.device(device))


def weight_file(name: str, weights_dir: str | Path, setting: str = "weights_dir") -> Path:
    """The weight file of an extractor; raises as load does. Reads nothing."""
    if name not in WEIGHT_FILES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown extractor {name!r}{hint} (known: {', '.join(NAMES)})")
    directory = Path(weights_dir).expanduser()
    for file_name in WEIGHT_FILES[name]:
        if (directory / file_name).is_file():
            return directory / file_name
    wanted = " or ".join(WEIGHT_FILES[name])
    raise MissingWeightsError(
        f"the extractor {name!r} needs the file {wanted}: place it in {directory.absolute()}, or "
        f"set {setting} to the directory that holds it"
    )


def embedded(state: Mapping[str, Tensor], device: str = "cpu") -> Extractor:
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
        found = network(images)
        side = tuple(min(SPATIAL_SIDE, length) for length in found.spatial.shape[2:])
        spatial = F.adaptive_avg_pool2d(found.spatial[:, :SPATIAL_CHANNELS], side)
        return Features(found.features, spatial, found.logits)

    dimension = network.hidden.out_features
    return Extractor(
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
    extractor: Extractor,
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
    found: list[Features] = []
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
        found.append(part)
        count += len(batch)
    if not found:
        raise ValueError("there are no images to extract features from")
    return Features(
        *(_joined([getattr(part, name) for part in found]) for name in Features.__annotations__)
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    kept = [part.float().cpu() for part in parts if part is not None]
    return torch.cat(kept) if kept else None


def _inception(name: str, path: Path, device: torch.device) -> Extractor:
    """clean-fid's Inception on images resized by clean-fid's own resizer."""
    prepare_torchvision()
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    network = InceptionV3W(str(path.parent), download=False).to(device).eval()
    resize = build_resizer("clean")

    def compute(images: Tensor) -> Features:
        # Rounded to 8 bits first, as the files are that clean-fid reads.
        pixels = ((_rgb(images) + 1) * 127.5).round().clamp(0, 255).byte()
        resized = np.stack([resize(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        inputs = torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)
        return Features(network(inputs))

    resized = "8 bits, then PIL bicubic to 299 as in clean-fid"
    return Extractor(name, _file_hash(path), resized, 2048, compute, device)


def _dinov2(name: str, path: Path, device: torch.device) -> Extractor:
    """The class token of DINOv2 after the final norm (Stein et al. 2023); 16x16 patch tokens."""
    prepare_torchvision()
    import timm

    network: nn.Module = timm.create_model(
        f"vit_{name.removeprefix('dinov2-')}_patch14_dinov2",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=0,
        img_size=DINO_SIDE,
    )
    network.to(device).eval().requires_grad_(False)
    config = network.pretrained_cfg
    mean, std = (
        torch.tensor(config[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std")
    )

    def compute(images: Tensor) -> Features:
        resized = F.interpolate(
            _rgb(images), size=(DINO_SIDE, DINO_SIDE), mode="bicubic", antialias=True
        )
        tokens = network.forward_features(((resized.clamp(-1, 1) + 1) / 2 - mean) / std)
        patches = tokens[:, network.num_prefix_tokens :, :SPATIAL_CHANNELS].mT
        side = round(patches.shape[-1] ** 0.5)
        return Features(tokens[:, 0], patches.unflatten(-1, (side, side)))

    resized = f"antialiased bicubic to {DINO_SIDE}"
    return Extractor(name, _file_hash(path), resized, network.num_features, compute, device)


def _rgb(images: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have {images.shape[1]} channels; this extractor reads grey or RGB images "
            "(decode latents first)"
        )
    return images.expand(-1, 3, -1, -1)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
