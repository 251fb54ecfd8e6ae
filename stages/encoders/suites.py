"""The networks of published protocols, on 8-bit pixels: ADM's and EDM's Inception with TensorFlow's
resize, and DINOv2-L with its positions resampled as its authors' code does.

They differ from `pretrained.py`, which serves clean-fid's numbers and teachers, in resize and
positions, so that distances of the two mean different things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.encoders.embedded import SPATIAL_CHANNELS, Features
from stages.encoders.pretrained import DINO_SIDE, file_hash
from stages.encoders.weights import weight_file
from stages.methods import tf_resize
from stages.methods.torchvision_shim import prepare_torchvision

__all__ = ["RESIZES", "Suite", "hub_positions", "load", "on_the_cpu"]

MIXED = "mixed_6"  # the block whose first branch sFID reads
TOLERANCE = 1e-3  # of the largest value, between the file's own passes and those made here
HUB_OFFSET = 0.1
DINO_DEPTH = 24  # blocks of DINOv2-L


@dataclass(frozen=True)
class Suite:
    """uint8 pixels (B, C, H, W), C 1 or 3 -> Features, float32 on the CPU. Of Inception features
    (B, 2048), spatial (B, 7, 17, 17) and logits (B, 1008) without bias; of DINOv2 features only."""

    name: str
    weights_hash: str
    resize: str
    compute: Callable[[Tensor], Features]
    device: torch.device

    def __call__(self, pixels: Tensor) -> Features:
        return on_the_cpu([self.seen(pixels.to(self.device))])

    @torch.inference_mode()
    def seen(self, pixels: Tensor) -> Features:
        """The same of pixels that are on the device, and left there."""
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}; give uint8 (B, C, H, "
                "W) of grey or RGB images"
            )
        return self.compute(pixels.expand(-1, 3, -1, -1).float())


def on_the_cpu(parts: Sequence[Features]) -> Features:
    """Of several batches one after another, float32."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Features(*(None if one[0] is None else torch.cat(one).float().cpu() for one in columns))


RESIZES = {
    "inception": f"TensorFlow's bilinear to {tf_resize.SIDE}, x = i W / {tf_resize.SIDE}",
    "dinov2-large": f"antialiased bicubic to {DINO_SIDE}, neither clipped nor rounded",
}


@lru_cache(maxsize=1)
def load(
    kind: str, weights: str | None, device: str = "cpu", setting: str = "evaluate.weights"
) -> Suite:
    """kind: "inception" or "dinov2-large", from its file or the folder with it.

    Raises ValueError for a file of another structure, MissingWeightsError where it is absent.
    """
    path = weight_file(kind, weights, setting)
    build = _inception if kind == "inception" else _dinov2
    try:
        return build(path, torch.device(device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every loader has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} cannot be read as the weights of {kind!r} ({reason[0]}); set {setting} to the "
            "published file"
        ) from error


def _inception(path: Path, device: torch.device) -> Suite:
    network = torch.jit.load(path, map_location=device).eval()
    layers = dict(network.layers.named_children())
    if MIXED not in layers:
        raise ValueError(f"it has no layers.{MIXED}")
    weight = network.output.weight.detach()

    def compute(pixels: Tensor) -> Features:
        x, spatial = (tf_resize.resized(pixels) - 128) / 128, None
        for name, layer in layers.items():
            if name == MIXED:
                # Of branch 1x1 after its norm and ReLU.
                spatial = layer.conv(x)[:, :SPATIAL_CHANNELS]
            x = layer(x)
        features = x.flatten(1)
        return Features(features, spatial, features @ weight.T)

    with torch.inference_mode():
        _check_inception(network, compute, device)
    return Suite("inception", file_hash(path), RESIZES["inception"], compute, device)


def _check_inception(
    network: nn.Module, compute: Callable[[Tensor], Features], device: torch.device
) -> None:
    """Raise ValueError unless resize, order of layers and the classifier without bias are the
    file's own, on one picture."""
    place = torch.arange(3 * 40 * 52, device=device).view(1, 3, 40, 52)
    picture = (place * place * 7 % 509 % 256).float()  # uneven at every scale
    ours = compute(picture)
    theirs = network(picture, return_features=True).flatten(1)
    _check_close("features", ours.features, theirs)
    # The file gives probabilities.
    _check_close("classes", ours.logits.softmax(1), network(picture, no_output_bias=True))


def _check_close(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"its {what} are {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    apart = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
    if not apart < TOLERANCE:
        raise ValueError(
            f"its {what} differ by {apart:.2g} of their largest value from those of its layers in "
            "order after TensorFlow's resize"
        )


def hub_positions(table: Tensor, side: int, offset: float = HUB_OFFSET) -> Tensor:
    """Positions (1, 1 + n n, d) for side x side patches, resampled as DINOv2's own code does
    (models/vision_transformer.py): bicubic without antialiasing, at sampling points of the scale
    (side + offset) / n."""
    own, patches = table[:, :1], table[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    if n * n != patches.shape[1]:
        raise ValueError(f"positions of {patches.shape[1]} patches are of no square")
    if n == side:
        return table
    grid = patches.unflatten(1, (n, n)).permute(0, 3, 1, 2).float()
    scale = (side + offset) / n
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    if grid.shape[2:] != (side, side):
        raise ValueError(f"{n} x {n} positions cannot be brought to {side} x {side}")
    return torch.cat([own, grid.permute(0, 2, 3, 1).flatten(1, 2).to(table)], dim=1)


def _dinov2(path: Path, device: torch.device) -> Suite:
    prepare_torchvision()
    import timm

    own = {"model_name": "vit_large_patch14_dinov2", "num_classes": 0, "depth": DINO_DEPTH}
    # At the size that its positions were trained at, so that timm leaves these as they are.
    full = timm.create_model(**own, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    network = timm.create_model(**own, img_size=DINO_SIDE)
    state = full.state_dict()
    side = DINO_SIDE // network.patch_embed.patch_size[0]
    state["pos_embed"] = hub_positions(state["pos_embed"], side)
    network.load_state_dict(state)
    network.to(device).eval().requires_grad_(False)
    mean, std = (
        torch.tensor(full.pretrained_cfg[key], device=device).view(1, 3, 1, 1)
        for key in ("mean", "std")
    )

    def compute(pixels: Tensor) -> Features:
        # Neither clipped nor rounded, as EDM2 does.
        size = (DINO_SIDE, DINO_SIDE)
        x = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        tokens = network.forward_features((x / 255 - mean) / std)
        return Features(tokens[:, 0])

    return Suite("dinov2-large", file_hash(path), RESIZES["dinov2-large"], compute, device)
