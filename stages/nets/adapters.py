"""Networks of other conventions as denoisers D(y, sigma, labels) in EDM coordinates.

y = x0 + sigma eps. What a network was trained to predict, on which path and in which time, is an
argument; every formula follows from x = alpha x0 + s eps with sigma = s / alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.methods.path import per_sample

PATHS = ("linear", "cosine", "vp")
VP_LEAST, VP_MOST = 0.1, 20.0  # SiT's variance-preserving path


def with_dropped(labels: Tensor | None, drop: Tensor | None, null: int) -> Tensor | None:
    """Labels (B,) with the null class's index where `drop` (B,) bool says so."""
    return labels if labels is None or drop is None else labels.masked_fill(drop, null)


class NoisePredictor(nn.Module):
    """A network of discrete variance-preserving diffusion.

    call: (x (B, C, H, W), time (B,), labels) -> (B, C or more, H, W); the first C channels count,
    a learned variance is left out. levels: sigma at the network's times 0, 1, ...; between them the
    time is interpolated in ln sigma, beyond them the nearest is taken. prediction: "epsilon",
    "v_prediction" or "sample". clip: D is cut to [-1, 1], as some published samplers do; then it is
    no posterior mean.
    """

    def __init__(
        self,
        call: nn.Module,
        levels: Sequence[float],
        prediction: str = "epsilon",
        channels: int = 3,
        clip: float | None = None,
    ):
        super().__init__()
        known = ("epsilon", "v_prediction", "sample")
        if prediction not in known:
            raise ValueError(f"prediction '{prediction}' is none of {', '.join(known)}")
        self.call, self.prediction, self.channels, self.clip = call, prediction, channels, clip
        logs = torch.tensor(levels, dtype=torch.float64, device="cpu").log()
        self.register_buffer("logs", logs[torch.isfinite(logs)], persistent=False)

    def time(self, sigma: Tensor) -> Tensor:
        """The network's time at sigma (any shape), float64."""
        logs = self.logs
        wanted = sigma.double().log().clamp(logs[0], logs[-1])
        above = torch.searchsorted(logs, wanted.contiguous()).clamp(1, len(logs) - 1)
        low, high = logs[above - 1], logs[above]
        return above - 1 + (wanted - low) / (high - low)

    def forward(self, y: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x0 | y], (B, C, H, W), at sigma > 0, a scalar or (B,)."""
        sigma = per_sample(sigma, y)
        norm = (1 + sigma**2).sqrt()
        dtype = next(self.call.parameters()).dtype
        times = self.time(sigma.flatten()).expand(len(y)).to(dtype)
        raw = self.call((y / norm).to(dtype), times, labels)[:, : self.channels].to(y.dtype)
        if self.prediction == "epsilon":
            clean = y - sigma * raw
        elif self.prediction == "sample":
            clean = raw
        else:
            clean = y / norm**2 - sigma / norm * raw
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)


class Interpolant(nn.Module):
    """A network of the SiT family on another path, or of another prediction, than the linear
    path's velocity.

    call: (x, t (B,), labels) with t = 0 data and t = 1 noise, scaled by `scale`. path: "linear",
    "cosine" (SiT's GVP) or "vp". prediction: "velocity" (dx/dt), "noise" or "score".
    """

    def __init__(
        self, call: nn.Module, path: str = "linear", prediction: str = "velocity", scale: float = 1
    ):
        super().__init__()
        for name, value, known in (
            ("path", path, PATHS),
            ("prediction", prediction, ("velocity", "noise", "score")),
        ):
            if value not in known:
                raise ValueError(f"{name} '{value}' is none of {', '.join(known)}")
        self.call, self.path, self.prediction, self.scale = call, path, prediction, scale

    def forward(self, y: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x0 | y], (B, C, H, W), at sigma > 0, a scalar or (B,)."""
        level = per_sample(sigma, y)
        t = time_of(level, self.path)
        (alpha, dalpha), (s, ds) = coefficients(t, self.path)
        x, dtype = alpha * y, next(self.call.parameters()).dtype
        times = (self.scale * t).flatten().expand(len(y)).to(dtype)
        raw = self.call(x.to(dtype), times, labels).to(y.dtype)
        if self.prediction == "velocity":
            return (ds * x - s * raw) / (alpha * ds - s * dalpha)
        noise = raw if self.prediction == "noise" else -s * raw
        return (x - s * noise) / alpha


def coefficients(t: Tensor, path: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(alpha, d alpha/dt), (s, ds/dt) at t, 0 being data and 1 noise."""
    if path == "linear":
        one = torch.ones_like(t)
        return (1 - t, -one), (t, one)
    if path == "cosine":
        angle, rate = math.pi / 2 * t, math.pi / 2
        return (angle.cos(), -rate * angle.sin()), (angle.sin(), rate * angle.cos())
    log = -0.25 * t**2 * (VP_MOST - VP_LEAST) - 0.5 * t * VP_LEAST
    dlog = -0.5 * t * (VP_MOST - VP_LEAST) - 0.5 * VP_LEAST
    alpha, s = log.exp(), (-(2 * log).expm1()).sqrt()
    return (alpha, alpha * dlog), (s, -(2 * log).exp() * dlog / s)


def time_of(sigma: Tensor, path: str) -> Tensor:
    """t with s / alpha = sigma."""
    if path == "linear":
        return sigma / (1 + sigma)
    if path == "cosine":
        return sigma.atan() * (2 / math.pi)
    # -2 ln alpha = ln(1 + sigma^2) = t^2 (most - least) / 2 + t least.
    growth, spread = (sigma**2).log1p(), VP_MOST - VP_LEAST
    return ((VP_LEAST**2 + 2 * spread * growth).sqrt() - VP_LEAST) / spread


def levels_of(alphas_cumprod: Sequence[float] | Tensor) -> list[float]:
    """sigma = sqrt((1 - abar) / abar) of a discrete diffusion, ascending."""
    kept = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
    return ((1 - kept) / kept).sqrt().tolist()


def linear_levels(num: int = 1000, first: float = 1e-4, last: float = 0.02) -> list[float]:
    """The levels of DDPM's linear betas (Ho et al. 2020), as DiT and ADM use them."""
    betas = torch.linspace(first, last, num, dtype=torch.float64, device="cpu")
    return levels_of(torch.cumprod(1 - betas, 0))
