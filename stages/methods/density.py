"""Densities over time: where a model is trained, and where a solver spends its steps.

t = 0 is data, t = 1 is noise. A density serves training through `sample`, which maps uniform
numbers to times, and inference through `grid`, which puts the points of a solver at equal
quantiles. Both go through the inverse of the cumulative distribution.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

STEPS_ON_DEVICE = 24
"""Of a search on a device, which is not asked whether it has ended: asking would wait for it. A
bracket of 1 / 256 is halved to 2^-32; Newton's steps end it before the twentieth."""


class TimeDensity(ABC):
    """A probability density over t in [0, 1]; the mathematics is done in float64.

    Numbers on a device are not read, since that would wait for it: there `inverse_cdf` takes u as
    it comes.
    """

    @property
    def is_stepwise(self) -> bool:
        """Whether the density is constant between `knots`."""
        return False

    @cached_property
    def _table(self) -> tuple[Tensor, ...]:
        """What its functions look up, on the CPU."""
        return ()

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def _table_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The table on a device, where it is kept: to copy it waits."""
        if device not in self._copies:
            self._copies[device] = tuple(part.to(device) for part in self._table)
        return self._copies[device]

    @abstractmethod
    def pdf(self, t: Tensor) -> Tensor:
        """Density at t in [0, 1], any shape; zero outside. float64."""

    @abstractmethod
    def cdf(self, t: Tensor) -> Tensor:
        """Probability of a time below t, any shape; 0 below 0 and 1 above 1. float64."""

    @abstractmethod
    def inverse_cdf(self, u: Tensor) -> Tensor:
        """The smallest t with cdf(t) >= u, for u in [0, 1], any shape. float64."""

    def knots(self) -> Tensor:
        """Increasing times from 0 to 1, between which the density is smooth. float64."""
        return torch.linspace(0, 1, 257, dtype=torch.float64)

    def sample(self, u: Tensor) -> Tensor:
        """Times for training: `u` uniform in [0, 1), any shape -> t, in u's shape and dtype."""
        return self.inverse_cdf(u).to(u.dtype)

    def grid(self, num_steps: int) -> Tensor:
        """Times for a solver: (num_steps + 1,), float64, from exactly 1 (noise) down to exactly 0.

        The inner points lie at equal quantiles, so that every step carries the same probability.
        Raises ValueError if num_steps is no whole number above 0, or if the density is so
        concentrated that neighbouring points are equal.
        """
        if not isinstance(num_steps, Integral) or num_steps < 1:
            raise ValueError(f"num_steps must be a whole number of at least 1, got {num_steps}")
        t = self.inverse_cdf(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64))
        t[0], t[-1] = 1, 0
        if not (t.diff() < 0).all():
            raise ValueError(
                f"num_steps={num_steps} puts two points at the same time, because the density "
                "is too concentrated; take fewer steps or a smaller mix"
            )
        return t


@dataclass(frozen=True)
class Uniform(TimeDensity):
    """Every time alike: the base of inference grids, and SiT's training density."""

    def pdf(self, t: Tensor) -> Tensor:
        t = t.double()
        return ((t >= 0) & (t <= 1)).double()

    def cdf(self, t: Tensor) -> Tensor:
        return t.double().clamp(0, 1)

    def inverse_cdf(self, u: Tensor) -> Tensor:
        return _checked_quantile(u)

    @property
    def is_stepwise(self) -> bool:
        return True


@dataclass(frozen=True)
class LogitNormal(TimeDensity):
    """logit(t) ~ N(mean, std^2), Esser et al. 2024 (Stable Diffusion 3), section 3.1.

    A positive mean favours noise, as in that paper, whose t has noise at 1 too.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                f"a logit-normal density takes a finite mean and a positive std, "
                f"got mean={self.mean}, std={self.std}"
            )

    def pdf(self, t: Tensor) -> Tensor:
        t = t.double()
        z = (torch.logit(t) - self.mean) / self.std
        density = torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))
        return torch.where((t > 0) & (t < 1), density, 0.0)

    def cdf(self, t: Tensor) -> Tensor:
        z = (torch.logit(t.double().clamp(0, 1)) - self.mean) / self.std
        return torch.special.ndtr(z)

    def inverse_cdf(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(_checked_quantile(u)))


@dataclass(frozen=True)
class PiecewiseConstant(TimeDensity):
    """Constant inside each of K equal intervals of t; the inverse is linear inside each.

    weights: the K non-negative interval weights in order of t, of any scale; zeros are allowed.
    Raises ValueError for an empty, negative, non-finite or all-zero sequence.
    """

    weights: tuple[float, ...] = field(repr=False)

    def __post_init__(self):
        weights = torch.as_tensor(self.weights, dtype=torch.float64).detach().cpu()
        if weights.ndim != 1 or not len(weights):
            raise ValueError(f"weights must have shape (K,) with K >= 1, got {(*weights.shape,)}")
        if not torch.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
            raise ValueError("weights must be finite, none negative, and at least one positive")
        object.__setattr__(self, "weights", tuple(weights.tolist()))

    @cached_property
    def _levels(self) -> Tensor:
        """The cumulative distribution at the K + 1 edges; exactly 0 and 1 at the ends."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        # Scaled by the largest, so that neither huge nor tiny weights overflow or vanish.
        levels = torch.cat([weights.new_zeros(1), torch.cumsum(weights / weights.max(), 0)])
        return levels / levels[-1]

    @cached_property
    def _table(self) -> tuple[Tensor, ...]:
        return (self._levels,)

    @property
    def is_stepwise(self) -> bool:
        return True

    def pdf(self, t: Tensor) -> Tensor:
        t = t.double()
        (levels,) = self._table_on(t.device)
        heights = levels.diff() * len(self.weights)
        return torch.where((t >= 0) & (t <= 1), heights[self._interval(t)], 0.0)

    def cdf(self, t: Tensor) -> Tensor:
        t = t.double().clamp(0, 1)
        (levels,), i = self._table_on(t.device), self._interval(t)
        inside = t * len(self.weights) - i
        return levels[i] + inside * (levels[i + 1] - levels[i])

    def inverse_cdf(self, u: Tensor) -> Tensor:
        u = _checked_quantile(u)
        (levels,) = self._table_on(u.device)
        # levels[i] < u <= levels[i + 1]: an interval of zero weight is never met, except at u = 0.
        i = (torch.searchsorted(levels, u) - 1).clamp(min=0)
        inside = (u - levels[i]) / (levels[i + 1] - levels[i])
        return torch.where(u > 0, (i + inside) / len(self.weights), 0.0).clamp(0, 1)

    def knots(self) -> Tensor:
        K = len(self.weights)
        return torch.arange(K + 1, dtype=torch.float64) / K

    def _interval(self, t: Tensor) -> Tensor:
        K = len(self.weights)
        return (t * K).floor().long().clamp(0, K - 1)


@dataclass(frozen=True)
class Mixture(TimeDensity):
    """mix * target + (1 - mix) * base: the share `mix`, called a in CSFlow, of one in the other.

    Ours: the densities themselves are mixed, so that mix=0 is the base exactly; the paper mixes
    interval weights, which is the same when both are constant inside the same intervals.
    Raises ValueError if mix is outside [0, 1].
    """

    target: TimeDensity
    base: TimeDensity = Uniform()
    mix: float = 0.4

    def __post_init__(self):
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be between 0 (base only) and 1, got {self.mix}")

    def pdf(self, t: Tensor) -> Tensor:
        return self.mix * self.target.pdf(t) + (1 - self.mix) * self.base.pdf(t)

    def cdf(self, t: Tensor) -> Tensor:
        return self.mix * self.target.cdf(t) + (1 - self.mix) * self.base.cdf(t)

    def inverse_cdf(self, u: Tensor) -> Tensor:
        if self.mix == 0 or self.mix == 1:
            return (self.target if self.mix else self.base).inverse_cdf(u)
        u = _checked_quantile(u)
        # Below both quantiles the mixture has less than u, above both more: they bracket it.
        low, high = torch.aminmax(
            torch.stack([self.target.inverse_cdf(u), self.base.inverse_cdf(u)]), dim=0
        )
        # So do two neighbouring knots; between them the density is smooth.
        knots, levels = self._table_on(u.device)
        i = torch.searchsorted(levels, u).clamp(1, len(knots) - 1)
        low, high = torch.maximum(low, knots[i - 1]), torch.minimum(high, knots[i])
        # Between knots of a stepwise density Newton's first step is exact.
        steps = 2 if self.is_stepwise else STEPS_ON_DEVICE
        return _solve_increasing(self.cdf, self.pdf, u, low, high, 200 if u.is_cpu else steps)

    @property
    def is_stepwise(self) -> bool:
        return self.target.is_stepwise and self.base.is_stepwise

    def knots(self) -> Tensor:
        return torch.cat([self.target.knots(), self.base.knots()]).unique()

    @cached_property
    def _table(self) -> tuple[Tensor, ...]:
        knots = self.knots()
        return knots, self.cdf(knots)


@dataclass(frozen=True)
class Shifted(TimeDensity):
    """Times moved by t -> shift t / (1 + (shift - 1) t), Esser et al. 2024, equation 23.

    shift above 1 favours noise (large images), below 1 favours data; 1 changes nothing.
    Raises ValueError if shift is not positive.
    """

    density: TimeDensity
    shift: float = 1.0

    def __post_init__(self):
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, got {self.shift}")

    def pdf(self, t: Tensor) -> Tensor:
        t = t.double()
        slope = self.shift / (self.shift + (1 - self.shift) * t.clamp(0, 1)) ** 2
        return torch.where((t >= 0) & (t <= 1), self.density.pdf(self._undo(t)) * slope, 0.0)

    def cdf(self, t: Tensor) -> Tensor:
        return self.density.cdf(self._undo(t.double()))

    def inverse_cdf(self, u: Tensor) -> Tensor:
        t = self.density.inverse_cdf(u)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def knots(self) -> Tensor:
        knots = self.density.knots()
        return self.shift * knots / (1 + (self.shift - 1) * knots)

    def _undo(self, t: Tensor) -> Tensor:
        t = t.clamp(0, 1)
        return t / (self.shift + (1 - self.shift) * t)


def min_snr_weight(t: Tensor, gamma: float = 5.0) -> Tensor:
    """MinSNR (Hang et al. 2023) as a weight on the squared error of the velocity.

    The paper weights the clean prediction's squared error by min(SNR, gamma). On our path
    SNR = (1-t)^2 / t^2 and D - x0 = -t (v - v*), so the velocity's squared error takes t^2 of it
    (ours: the paper's path is variance-preserving). t: any shape in [0, 1].
    """
    if not gamma > 0:
        raise ValueError(f"MinSNR's gamma must be positive, got {gamma}")
    return torch.minimum((1 - t) ** 2, gamma * t**2)


def p2_weight(t: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """P2 (Choi et al. 2022) as a weight on the squared error of the velocity.

    The paper weights the noise prediction's squared error by (k + SNR)^-gamma. On our path
    eps - eps* = (1-t) (v - v*), so the velocity's squared error takes (1-t)^2 of it (ours, as
    for MinSNR). t: any shape in [0, 1].
    """
    if gamma < 0 or not k > 0:
        raise ValueError(f"P2 takes gamma >= 0 and k > 0, got gamma={gamma}, k={k}")
    # Multiplied out by t^(2 gamma), so that t = 0 needs no division.
    return (1 - t) ** 2 * t ** (2 * gamma) / (k * t**2 + (1 - t) ** 2) ** gamma


def from_loss_weight(
    weight: Callable[[Tensor], Tensor], num_intervals: int = 500
) -> PiecewiseConstant:
    """The density proportional to a loss weight.

    Drawing t from it has the same expected gradient, up to a factor, as weighting the loss with
    t uniform. Each interval holds the weight's integral (Gauss-Legendre, 8 points), so the
    cumulative distribution is that of the continuous weight at every edge.

    weight: t of any shape in (0, 1) -> non-negative weights of that shape.
    """
    if num_intervals < 1:
        raise ValueError(f"num_intervals must be at least 1, got {num_intervals}")
    nodes, shares = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    left = torch.arange(num_intervals, dtype=torch.float64)
    t = (left[:, None] + (nodes + 1) / 2) / num_intervals
    return PiecewiseConstant((weight(t) * shares).sum(1))


def min_snr(gamma: float = 5.0, num_intervals: int = 500) -> PiecewiseConstant:
    """The density of `min_snr_weight`."""
    return from_loss_weight(lambda t: min_snr_weight(t, gamma), num_intervals)


def p2(gamma: float = 1.0, k: float = 1.0, num_intervals: int = 500) -> PiecewiseConstant:
    """The density of `p2_weight`."""
    return from_loss_weight(lambda t: p2_weight(t, gamma, k), num_intervals)


def _checked_quantile(u: Tensor) -> Tensor:
    if u.is_floating_point() and (not u.is_cpu or ((u >= 0) & (u <= 1)).all()):
        return u.double()
    raise ValueError("u must hold floating-point numbers between 0 and 1")


def _solve_increasing(
    function, slope, value: Tensor, low: Tensor, high: Tensor, steps: int
) -> Tensor:
    """x in [low, high] with function(x) = value: at most so many of Newton's steps in a bracket.

    A step that would leave the bracket is a bisection instead. On the CPU it ends as soon as all
    have settled, to rounding.
    """
    x = (low + high) / 2
    for _ in range(steps):
        error = function(x) - value
        high, low = torch.where(error >= 0, x, high), torch.where(error <= 0, x, low)
        settled = (error.abs() <= 2**-50) | (high - low <= 2**-52)
        if x.is_cpu and settled.all():
            break
        newton, middle = x - error / slope(x), (low + high) / 2
        inside = (newton > low) & (newton < high)
        x = torch.where(settled, x, torch.where(inside, newton, middle))
    return x
