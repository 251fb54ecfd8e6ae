"""Networks of EDM as denoisers: D = c_skip y + c_out F(c_in y, c_noise) (Karras et al. 2022, table
1), for networks trained under EDM, VP, VE or iDDPM preconditioning."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from stages.methods.path import per_sample
from stages.nets.adapters import with_dropped
from stages.nets.edm.dhariwal import DhariwalUNet
from stages.nets.edm.song import SongUNet

VP_BETA_D, VP_BETA_MIN, VP_TIMES = 19.9, 0.1, 999
IDDPM_STEPS, IDDPM_LEAST, IDDPM_OFFSET = 1000, 0.001, 0.008

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


def edm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """c_skip, c_out, c_in, c_noise at sigma (any shape, > 0)."""
    total = sigma**2 + sigma_data**2
    root = total.sqrt()
    return sigma_data**2 / total, sigma * sigma_data / root, 1 / root, sigma.log() / 4


def vp(sigma: Tensor, sigma_data: float) -> Coefficients:
    """As `edm`, of the variance-preserving networks, whose time runs to 999."""
    growth = (1 + sigma**2).log()
    time = (VP_BETA_MIN**2 + 2 * VP_BETA_D * growth).sqrt() - VP_BETA_MIN
    one = torch.ones_like(sigma)
    return one, -sigma, (1 + sigma**2).rsqrt(), VP_TIMES * time / VP_BETA_D


def ve(sigma: Tensor, sigma_data: float) -> Coefficients:
    """As `edm`, of the variance-exploding networks."""
    one = torch.ones_like(sigma)
    return one, sigma, one, (sigma / 2).log()


def iddpm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """As `edm`, of the networks of improved DDPM, which know 1000 levels: the nearest is taken."""
    levels = _iddpm_levels_on(sigma.device)
    nearest = (sigma.double().reshape(-1, 1) - levels).abs().argmin(1).reshape(sigma.shape)
    one = torch.ones_like(sigma)
    return one, -sigma, (1 + sigma**2).rsqrt(), (IDDPM_STEPS - 1 - nearest).to(sigma)


@cache
def iddpm_levels() -> tuple[float, ...]:
    """u_0 to u_1000, descending, the last 0 (Karras et al. 2022, table 1)."""

    def kept(j: int) -> float:
        return math.sin(0.5 * math.pi * j / IDDPM_STEPS / (IDDPM_OFFSET + 1)) ** 2

    levels = [0.0]
    for j in range(IDDPM_STEPS, 0, -1):
        ratio = max(kept(j - 1) / kept(j), IDDPM_LEAST)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return tuple(reversed(levels))


@cache
def _iddpm_levels_on(device: torch.device) -> Tensor:
    """They are kept there: to copy them waits for the device."""
    return torch.tensor(iddpm_levels(), dtype=torch.float64, device=device)


PRECONDITIONINGS: dict[str, Callable[[Tensor, float], Coefficients]] = {
    "edm": edm,
    "vp": vp,
    "ve": ve,
    "iddpm": iddpm,
}


class Preconditioned(nn.Module):
    """A network F as a denoiser D(y, sigma, labels) in EDM coordinates.

    kind: of `PRECONDITIONINGS`. channels: of the image; further outputs of F, such as a learned
    variance, are left out. The network computes in its weights' own type, sums in the image's.
    """

    def __init__(
        self, model: nn.Module, kind: str = "edm", sigma_data: float = 0.5, channels: int = 3
    ):
        super().__init__()
        if kind not in PRECONDITIONINGS:
            known = ", ".join(PRECONDITIONINGS)
            raise ValueError(f"preconditioning '{kind}' is unknown; it must be one of {known}")
        self.model, self.kind, self.sigma_data, self.channels = model, kind, sigma_data, channels
        self.num_classes = getattr(model, "label_dim", 0)

    def forward(
        self,
        y: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        drop: Tensor | None = None,
        **more: Tensor,
    ) -> Tensor:
        """E[x0 | y], (B, C, H, W), at sigma > 0, a scalar or (B,). labels: as the network's; drop
        (B,) bool: those to leave out."""
        sigma, labels = per_sample(sigma, y), with_dropped(labels, drop, self.num_classes)
        c_skip, c_out, c_in, c_noise = PRECONDITIONINGS[self.kind](sigma, self.sigma_data)
        dtype = next(self.model.parameters()).dtype
        times = c_noise.flatten().expand(len(y)).to(dtype)
        raw = self.model((c_in * y).to(dtype), times, labels, **more)
        return c_skip * y + c_out * raw[:, : self.channels].to(y.dtype)


def song(
    img_channels: int = 3, preconditioning: str = "edm", sigma_data: float = 0.5, **arguments: Any
) -> Preconditioned:
    """A preconditioned `SongUNet` of images of `img_channels`; arguments as its own."""
    return _built(SongUNet, img_channels, preconditioning, sigma_data, arguments)


def dhariwal(
    img_channels: int = 3, preconditioning: str = "edm", sigma_data: float = 0.5, **arguments: Any
) -> Preconditioned:
    """A preconditioned `DhariwalUNet` of images of `img_channels`; arguments as its own."""
    return _built(DhariwalUNet, img_channels, preconditioning, sigma_data, arguments)


def _built(
    network: type, channels: int, kind: str, sigma_data: float, arguments: dict[str, Any]
) -> Preconditioned:
    # Networks of improved DDPM give a learned variance beside the noise.
    outputs = 2 * channels if kind == "iddpm" else channels
    model = network(in_channels=channels, out_channels=outputs, **arguments)
    made = Preconditioned(model, kind, sigma_data, channels)
    made.image_size = (arguments["img_resolution"],) * 2
    return made
