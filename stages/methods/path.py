"""The one convention of the project, and the adapters that bring networks under it.

Time: t in [0, 1], **t=0 is data, t=1 is noise**. Linear interpolant

    x_t = alpha x0 + sigma eps,   alpha = 1 - t,   sigma = t,   v = dx/dt = eps - x0.

Solvers and corrections work in EDM coordinates (Karras et al. 2022) only:

    y = x / alpha = x0 + s eps,   s = sigma / alpha = t / (1 - t),

with a denoiser D(y, s) = E[x0 | y]. Every network enters through an adapter below. s is infinite
at t=1, so a flow model starts at `T_START`, or at `AT_NOISE`, which stands for 1.

In this module `t` and `s` are floats, scalar tensors, or tensors of shape (B,), one per sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

T_START = 0.999
"""The time at which sampling from a flow model starts: s = 999 instead of infinity."""

AT_NOISE = 1 - 2.0**-26
"""What stands for t = 1, where the papers' samplers start: s is 2^26 - 1, states go to it and back
without a rounding in float64, and in float32 a network is asked at exactly 1."""

ROUNDING = 1e-9
"""How far a time may have moved on its way t -> s -> t; in float64 it is below 1e-13."""

Denoiser = Callable[[Tensor, float | Tensor], Tensor]
"""denoiser(y, s) -> E[x0 | y]: y (B, ...), s a float, a scalar tensor, or (B,); shape of y."""


def per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """Give `value`, a scalar or (B,), the shape that broadcasts against x (B, ...)."""
    value = on_device(value, x.dtype, x.device)
    if value.ndim == 0:
        return value
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"time or level has shape {tuple(value.shape)} for a batch of {x.shape[0]}; "
            "pass a scalar or one value per sample"
        )
    return value.reshape(-1, *[1] * (x.ndim - 1))


def on_device(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number or a tensor as a tensor of this type on this device; a number is written there,
    since a copy would wait for the device."""
    if isinstance(value, float | int):
        return torch.full((), value, dtype=dtype, device=device)
    return torch.as_tensor(value, dtype=dtype, device=device)


def path(t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """alpha and sigma of the linear interpolant at t."""
    return 1 - t, t


def interpolate(x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps."""
    alpha, sigma = path(per_sample(t, x0))
    return alpha * x0 + sigma * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """v = dx/dt = eps - x0, the target of the SiT family."""
    return eps - x0


def clean_from_velocity(x: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """x0 = x_t - t v; with the expected velocity, E[x0 | x_t]."""
    return x - per_sample(t, x) * v


def velocity_from_clean(x: Tensor, x0: Tensor, t: float | Tensor) -> Tensor:
    """v = (x_t - x0) / t, t > 0."""
    return (x - x0) / per_sample(t, x)


def level_from_time(t: float | Tensor) -> float | Tensor:
    """s = t / (1 - t), for t in [0, 1)."""
    return t / (1 - t)


def time_from_level(s: float | Tensor) -> float | Tensor:
    """t = s / (1 + s), for s >= 0."""
    return s / (1 + s)


def start(t_start: float) -> float:
    """A time in (0, 1] to start from, whose level is finite."""
    if not 0 < t_start <= 1:
        raise ValueError(f"t_start is {t_start}; it must be above 0 and at most 1")
    return min(t_start, AT_NOISE)


def to_edm(x: Tensor, t: float | Tensor) -> tuple[Tensor, float | Tensor]:
    """(x_t, t) -> (y, s)."""
    return x / (1 - per_sample(t, x)), level_from_time(t)


def from_edm(y: Tensor, s: float | Tensor) -> tuple[Tensor, float | Tensor]:
    """(y, s) -> (x_t, t)."""
    return y / (1 + per_sample(s, y)), time_from_level(s)


@dataclass(frozen=True)
class Packing:
    """One state vector for an image and the class token that REG and MaskAlign carry beside it.

    The state is (B, image coordinates + token width), **image first**, so that "the first
    `image_coordinates` coordinates" names the image wherever a correction asks for coordinates.
    Both parts follow the same path: y = s z with z ~ N(0, I) at the start.
    """

    image_shape: tuple[int, ...]

    @property
    def image_coordinates(self) -> int:
        return torch.Size(self.image_shape).numel()

    def pack(self, image: Tensor, token: Tensor) -> Tensor:
        """image (B, *image_shape), token (B, width) -> (B, image coordinates + width)."""
        return torch.cat([image.flatten(1), token.flatten(1)], dim=1)

    def unpack(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `pack`."""
        image, token = state.split(
            [self.image_coordinates, state.shape[1] - self.image_coordinates], dim=1
        )
        return image.unflatten(1, self.image_shape), token


@dataclass(frozen=True)
class VelocityDenoiser:
    """A velocity network as a denoiser(y, s): D = x_t - t v(x_t, t).

    network: called as network(x, t, **condition), x (B, ...), t (B,), returning v of x's shape.
        With `packing` the state holds an image and a class token (B, n), and it is called as
        network(image, t, class_token=token, **condition), returning the pair of velocities.
    condition: keyword arguments, such as labels of shape (B,).
    dtype: the network's own floating type; the state keeps its type. Default: the state's type.
    """

    network: Callable[..., Any]
    condition: Mapping[str, Any] = field(default_factory=dict)
    packing: Packing | None = None
    dtype: torch.dtype | None = None

    def __call__(self, y: Tensor, s: float | Tensor) -> Tensor:
        x, t = from_edm(y, s)
        times = on_device(t, self.dtype or y.dtype, y.device).expand(y.shape[0])
        inputs = x.to(self.dtype or y.dtype)
        if self.packing is None:
            v = self.network(inputs, times, **self.condition)
        else:
            image, token = self.packing.unpack(inputs)
            pair = self.network(image, times, class_token=token, **self.condition)
            v = self.packing.pack(*pair)
        return clean_from_velocity(x, v.to(y.dtype), t)


@dataclass(frozen=True)
class EDMDenoiser:
    """An EDM-preconditioned network as a denoiser (Karras et al. 2022, eq. 7 and table 1).

    D = c_skip y + c_out F(c_in y, c_noise), for a network called as
    network(c_in y, c_noise, **condition) with c_noise = ln(s) / 4 of shape (B,); s > 0.
    sigma_data: standard deviation of the training data, as used in training.
    condition, dtype: as in `VelocityDenoiser`.
    """

    network: Callable[..., Tensor]
    sigma_data: float = 0.5
    condition: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    def __call__(self, y: Tensor, s: float | Tensor) -> Tensor:
        dtype = self.dtype or y.dtype
        s = per_sample(s, y)
        total = (s**2 + self.sigma_data**2).sqrt()
        c_skip, c_out, c_in = (self.sigma_data / total) ** 2, s * self.sigma_data / total, 1 / total
        c_noise = (s.log() / 4).flatten().expand(y.shape[0])
        output = self.network((c_in * y).to(dtype), c_noise.to(dtype), **self.condition)
        return c_skip * y + c_out * output.to(y.dtype)


@dataclass(frozen=True)
class DirectDenoiser:
    """A network that is a denoiser itself, called as network(y, s, **condition).

    It gets s as a tensor of y's type, a scalar or (B,): a number would be a constant of what is
    compiled, which every level would compile anew.
    """

    network: Callable[..., Tensor]
    condition: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, y: Tensor, s: float | Tensor) -> Tensor:
        return self.network(y, on_device(s, y.dtype, y.device), **self.condition)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance around two denoisers; solvers receive this one.

    D = D_u + scale (D_c - D_u) (Ho and Salimans 2022) where t lies in `interval` (Kynkäänniemi et
    al. 2024), D_c elsewhere. Guiding denoisers equals guiding velocities, noises or scores, all of
    them being affine in D with the same coefficients. The unconditional denoiser is called only
    where it counts. One guided evaluation counts as one evaluation, though it calls two networks,
    or one on twice the samples.

    pair: both denoisers' outputs at (y, s) in one call; None calls one after the other. scale: 1
    is no guidance. interval: closed interval of t, in [0, 1]. channels: only the first so
    many channels of y (B, C, ...) are guided, as in the published samplers of SiT and DiT; None
    for all. is_open: the ends of the interval are left out, but for t = 1, as in JiT's sampler.
    noise_scale: n of a path whose noise has this standard deviation, whose own t is s / (n + s).
    token_scale, packing: of packed states, the scale of the class token, as REG's sampler has it: 0
    leaves it where its class leads, None guides it as the image. s must be a scalar.
    """

    conditional: Denoiser
    unconditional: Denoiser
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    is_open: bool = False
    noise_scale: float = 1.0
    token_scale: float | None = None
    packing: Packing | None = None
    pair: Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"interval is {self.interval}; give (low, high) with 0 <= low <= high <= 1, in t"
            )

    def __call__(self, y: Tensor, s: float | Tensor) -> Tensor:
        if self.scale == 1 or not self._acts_at(float(s)):
            return self.conditional(y, s)
        if self.pair is not None:
            clean, unconditional = self.pair(y, s)
        else:
            clean, unconditional = self.conditional(y, s), self.unconditional(y, s)
        guided = unconditional + self.scale * (clean - unconditional)
        if self.packing is not None:
            return self._with_token(guided, clean, unconditional)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], clean[:, self.channels :]], dim=1)

    def _acts_at(self, s: float) -> bool:
        low, high = self.interval
        # On the path's own noise scale.
        t = float(time_from_level(s / self.noise_scale))
        # A level at an end of the interval may come back from t -> s -> t with a rounding.
        if not self.is_open:
            return low - ROUNDING <= t <= high + ROUNDING
        return low + ROUNDING < t and (high == 1 or t < high - ROUNDING)

    def _with_token(self, guided: Tensor, clean: Tensor, unconditional: Tensor) -> Tensor:
        """The guided state, its class token guided by its own scale."""
        if self.token_scale is None:
            return guided
        first = self.packing.image_coordinates
        token = clean[:, first:]
        if self.token_scale:
            away = unconditional[:, first:]
            token = away + self.token_scale * (token - away)
        return torch.cat([guided[:, :first], token], dim=1)
