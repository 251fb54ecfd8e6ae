"""An AutoencoderKL from a folder that diffusers' save_pretrained wrote: pixels to latents and back.

Nothing is downloaded and nothing unpickled. Images are not tiled, which would change latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.encoders.pretrained import file_hash
from stages.methods.torchvision_shim import prepare_torchvision

__all__ = ["Autoencoder", "load"]

SCALING = 0.18215  # of Stable Diffusion's, where a config names none

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Autoencoder:
    """A frozen autoencoder of images in [-1, 1].

    identity: SHA-256 of its weights. scaling, shift: of all channels of latents or of each: what
    networks see is (z - shift) * scaling.
    """

    network: Any
    identity: str
    scaling: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """(B, 2, c, h, w) float32: mean and standard deviation of the latents of images
        (B, C, H, W) in [-1, 1], not scaled."""
        posterior = self.network.encode(images.to(self.device, self.dtype)).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        return torch.stack([mean, torch.exp(logvar / 2)], 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) float32 images, not clipped, of latents (B, c, h, w) as networks see them.

        ValueError for latents of another number of channels.
        """
        if latents.shape[1] != (channels := self.network.config.latent_channels):
            raise ValueError(
                f"the latents have {latents.shape[1]} channels and the autoencoder's {channels}; "
                "set latents.autoencoder to the one that they are of"
            )
        scaling, shift = (_per_channel(x).to(self.device) for x in (self.scaling, self.shift))
        z = latents.to(self.device) / scaling + shift
        return self.network.decode(z.to(self.dtype)).sample.float()


def load(folder: str | Path, device: str = "cpu", precision: str = "float32") -> Autoencoder:
    """The autoencoder in a folder.

    precision: float32, or bfloat16, which has float32's range: no decoder overflows in it, so
    `force_upcast` of a config is met by both.

    Raises ValueError for weights that do not fit the config.
    """
    return _load(str(folder), device, precision)


@lru_cache(maxsize=1)
def _load(folder: str, device: str, precision: str) -> Autoencoder:
    prepare_torchvision()
    from diffusers import AutoencoderKL

    file = next(
        Path(folder) / f"diffusion_pytorch_model.{ending}"
        for ending in ("safetensors", "bin")
        if (Path(folder) / f"diffusion_pytorch_model.{ending}").is_file()
    )
    try:
        network, found = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
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
    dtype = PRECISIONS[precision]
    config = network.config
    scaling, shift = _scale(config)
    network = network.to(device, dtype).eval().requires_grad_(False)
    return Autoencoder(network, file_hash(file), scaling, shift, dtype)


def _unread(file: Path, reason: str) -> str:
    return (
        f"{file} cannot be read as the weights of the AutoencoderKL that its config.json describes "
        f"({reason}); place both files of one autoencoder in the folder"
    )


def _scale(config: Any) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    """Scaling and shift of all channels, or of each where the config has statistics of each."""
    scaling = SCALING if config.scaling_factor is None else config.scaling_factor
    shift = config.get("shift_factor") or 0.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return float(scaling), float(shift)
    return tuple(float(scaling / s) for s in std), tuple(float(m) for m in mean)


def _per_channel(value: float | tuple[float, ...]) -> Tensor:
    """(1 or c, 1, 1)"""
    return torch.atleast_1d(torch.as_tensor(value, dtype=torch.float32))[:, None, None]
