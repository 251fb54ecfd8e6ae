"""Extractors with weights made elsewhere: clean-fid's Inception, and DINOv2 by timm.

Nothing is downloaded: a missing file is one sentence that names it, its place and the setting.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.encoders.embedded import SPATIAL_CHANNELS, FeatureNetwork, Features
from stages.encoders.weights import WEIGHT_FILES, weight_file
from stages.methods.torchvision_shim import prepare_torchvision

__all__ = ["load"]

DINO_SIDE = 224

RESIZED = f"antialiased bicubic to {DINO_SIDE}"
TAUGHT = f"bicubic to {DINO_SIDE}, not antialiased, of normalised pixels"


def load(
    name: str,
    weights: str | Path | None = None,
    device: str = "cpu",
    setting: str = "extractor.weights",
) -> FeatureNetwork:
    """The extractor of that name from its weight file: the file, or the folder that holds it.

    ``setting`` is how the caller's users set that place; it appears in messages. The embedded
    extractor is trained, not loaded from there: see ``embedded``.

    Raises ValueError for an unknown name (with the nearest known one) and for a file that holds
    other weights, MissingWeightsError where it is absent.
    """
    if name == "embedded":
        raise ValueError(
            "the extractor 'embedded' has no weight file; train it with train_classifier and give "
            "its state to embedded()"
        )
    path = weight_file(name, weights, setting)
    build = _inception if name == "inception" else _dinov2
    try:
        return build(name, path, torch.device(device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every loader has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} cannot be read as the weights of {name!r} ({reason[0]}); place "
            f"{' or '.join(WEIGHT_FILES[name])}, or set {setting} to it"
        ) from error


def _inception(name: str, path: Path, device: torch.device) -> FeatureNetwork:
    """clean-fid's Inception on images resized by clean-fid's own resizer."""
    prepare_torchvision()
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    with tempfile.TemporaryDirectory() as folder:
        # clean-fid knows the file by its name only.
        (Path(folder) / WEIGHT_FILES[name][0]).symlink_to(path.absolute())
        network = InceptionV3W(folder, download=False).to(device).eval()
    resize = build_resizer("clean")

    def prepare(images: Tensor) -> Tensor:
        # Rounded to 8 bits first, as the files are that clean-fid reads.
        pixels = ((_rgb(images) + 1) * 127.5).round().clamp(0, 255).byte()
        resized = np.stack([resize(image) for image in pixels.permute(0, 2, 3, 1).numpy()])
        return torch.from_numpy(resized).permute(0, 3, 1, 2)

    resized = "8 bits, then PIL bicubic to 299 as in clean-fid"
    return FeatureNetwork(
        name,
        file_hash(path),
        resized,
        2048,
        lambda inputs: Features(network(inputs)),
        device,
        prepare,
    )


def _dinov2(name: str, path: Path, device: torch.device) -> FeatureNetwork:
    """The class token of DINOv2 after the final norm (Stein et al. 2023); 16x16 patch tokens."""
    network = dinov2_network(name, path).to(device)

    def compute(images: Tensor) -> Features:
        tokens = network(images)
        patches = tokens[:, 1:, :SPATIAL_CHANNELS].mT
        side = round(patches.shape[-1] ** 0.5)
        return Features(tokens[:, 0], patches.unflatten(-1, (side, side)))

    return FeatureNetwork(name, file_hash(path), RESIZED, network.width, compute, device)


class _DINOv2(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> the class token and the patches (B, 1 + 256, width).

    teaches: resize as the codes of REPA and REG do, pixels normalised first, neither antialiased
    nor clamped; otherwise as an extractor does.
    """

    def __init__(self, network: nn.Module, teaches: bool):
        super().__init__()
        self.teaches = teaches
        self.network, self.width = network.eval().requires_grad_(False), network.num_features
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        sizes = {"size": (DINO_SIDE, DINO_SIDE), "mode": "bicubic"}
        if self.teaches:
            scaled = F.interpolate(self._normalised(_rgb(images)), **sizes)
        else:
            resized = F.interpolate(_rgb(images), antialias=True, **sizes)
            scaled = self._normalised(resized.clamp(-1, 1))
        tokens = self.network.forward_features(scaled)
        return torch.cat([tokens[:, :1], tokens[:, self.network.num_prefix_tokens :]], dim=1)

    def _normalised(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std


def dinov2_network(name: str, path: Path | None, teaches: bool = False) -> _DINOv2:
    """With the weights of the file, or freshly initialised; teaches: see `_DINOv2`."""
    prepare_torchvision()
    import timm

    more = {} if path is None else {"pretrained_cfg_overlay": {"file": str(path)}}
    network = timm.create_model(
        f"vit_{name.removeprefix('dinov2-')}_patch14_dinov2",
        pretrained=path is not None,
        num_classes=0,
        img_size=DINO_SIDE,
        **more,
    )
    return _DINOv2(network, teaches)


def _rgb(images: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have {images.shape[1]} channels; this extractor reads grey or RGB images "
            "(decode latents first)"
        )
    return images.expand(-1, 3, -1, -1)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
