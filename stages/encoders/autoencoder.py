"""An AutoencoderKL from a folder that diffusers' save_pretrained wrote: pixels to latents and back.

Nothing is downloaded and nothing unpickled. Images are not tiled, which would change latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.encoders.pretrained import file_hash
from stages.methods.torchvision_shim import prepare_torchvision

__all__ = ["Autoencoder", "Known", "known", "load"]

Numbers = float | tuple[float, ...]

SCALING = 0.18215  # of Stable Diffusion's, where a config names none

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Known:
    """What is known of an autoencoder without its network.

    identity: SHA-256 of its weights. scaling, shift: of all channels of latents or of each: what
    networks see is (z - shift) * scaling.
    """

    identity: str
    scaling: Numbers
    shift: Numbers


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder.

    dtype: in which it computes. unit: whether it is given pixels in [0, 1], as EDM2's is, instead
    of [-1, 1].
    """

    network: Any
    dtype: torch.dtype
    unit: bool = False

    @property
    def device(self) -> torch.device:
        return self.network.device

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """(B, 2, c, h, w) float32: mean and standard deviation of the latents of images
        (B, C, H, W) in [-1, 1], not scaled."""
        given = (images + 1) / 2 if self.unit else images
        posterior = self.network.encode(given.to(self.device, self.dtype)).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        return torch.stack([mean, torch.exp(logvar / 2)], 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, C, H, W) float32 images, -1 black and 1 white, not clipped, of latents (B, c, h, w)
        as `moments` gives them."""
        images = self.network.decode(z.to(self.device, self.dtype)).sample.float()
        return images * 2 - 1 if self.unit else images


def known(folder: str | Path) -> Known:
    """What the files in a folder say."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return Known(file_hash(_weights(Path(folder))), *_scale(config))


def load(
    folder: str | Path, device: str = "cpu", precision: str = "float32", unit: bool = False
) -> Autoencoder:
    """The autoencoder in a folder; unit: see `Autoencoder`.

    precision: float32, or bfloat16, which has float32's range: no decoder overflows in it, so
    `force_upcast` of a config is met by both.

    Raises ValueError for weights that do not fit the config.
    """
    files = _weights(Path(folder)), Path(folder) / "config.json"
    changed = tuple(file.stat().st_mtime_ns for file in files)
    return replace(_load(str(folder), device, precision, changed), unit=unit)


@lru_cache(maxsize=1)
def _load(folder: str, device: str, precision: str, changed: tuple[int, ...]) -> Autoencoder:
    prepare_torchvision()
    from diffusers import AutoencoderKL

    file, dtype = _weights(Path(folder)), PRECISIONS[precision]
    try:
        network, found = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
            low_cpu_mem_usage=False,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # diffusers has errors of its own for each way to be damaged
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(_unread(file, reason)) from error
    for kind in ("missing_keys", "unexpected_keys"):
        if found[kind]:
            words = f"{kind.replace('_', ' ')} such as {sorted(found[kind])[0]}"
            raise ValueError(_unread(file, words))
    return Autoencoder(network.to(device).eval().requires_grad_(False), dtype)


def _weights(folder: Path) -> Path:
    """The file that is read: safetensors where there are both."""
    safe = folder / "diffusion_pytorch_model.safetensors"
    return safe if safe.is_file() else folder / "diffusion_pytorch_model.bin"


def _unread(file: Path, reason: str) -> str:
    return (
        f"{file} cannot be read as the weights of the AutoencoderKL that its config.json describes "
        f"({reason}); place both files of one autoencoder in the folder"
    )


def _scale(config: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
    """Scaling and shift of all channels, or of each where the config has statistics of each."""
    scaling = config.get("scaling_factor") or SCALING
    shift = config.get("shift_factor") or 0.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return float(scaling), float(shift)
    return tuple(float(scaling / s) for s in std), tuple(float(m) for m in mean)
