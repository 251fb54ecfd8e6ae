"""The random draws of a training step, each a pure function of (seed, step, sample index).

A counter-based generator (ours): element j of a stream is a hash of (seed, stream, step, index,
j), so a sample's t, noise, dropout and mask do not depend on the batch it comes in, on the
number of workers, or on which other draws were made. There is no state to save, nothing to
synchronise, and all of it runs on the samples' own device. The hash is SplitMix64 (Steele et
al. 2014), whose output passes BigCrush.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity

# One number for each use, so that a new use leaves the others' draws as they are.
_TIME, _NOISE, _CLASS_NOISE, _DROP, _KEEP, _POSTERIOR = range(1, 7)


@dataclass(frozen=True)
class Draws:
    """All draws of one step for the samples `indices`.

    seed: of the run. indices: (B,) long, unique within the step, such as the position in the
    global batch or the sample's number in the data set; results lie on its device.
    step: training step (or sampling step), or one that `stages.methods.drawn_at` keeps for another
    use; any integer.

    Methods are pure: calling one twice gives the same values, bit for bit on one device and up
    to rounding of log, cos and sin across devices.
    """

    seed: int
    indices: Tensor
    step: int = 0

    def at(self, step: int) -> Draws:
        """The same samples at another step."""
        return replace(self, step=step)

    def __getitem__(self, which) -> Draws:
        """The draws of some of the samples: `draws[:8]`."""
        return replace(self, indices=self.indices[which])

    def time(self, density: TimeDensity | None = None) -> Tensor:
        """t, (B,) float32 in (0, 1]; uniform unless a density is given."""
        u = _uniform(self._bits(_TIME, 1)[:, 0])
        return u if density is None else density.inverse_cdf(u).to(u)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, (B, *shape) float32."""
        return self._normal(_NOISE, shape)

    def class_noise(self, dim: int) -> Tensor:
        """Standard normal for the class token, (B, dim) float32."""
        return self._normal(_CLASS_NOISE, (dim,))

    def posterior(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, (B, *shape) float32: where in an autoencoder's posterior latents lie."""
        return self._normal(_POSTERIOR, shape)

    def drop(self, probability: float) -> Tensor:
        """(B,) bool, True with the given probability: whose label is dropped."""
        return _uniform(self._bits(_DROP, 1)[:, 0]) < probability

    def keep(self, num_tokens: int, num_keep: int) -> Tensor:
        """(B, num_keep) long, a uniform random subset of 0..num_tokens-1, ascending."""
        order = self._bits(_KEEP, num_tokens).argsort(dim=1, stable=True)
        return order[:, :num_keep].sort(dim=1).values

    def _normal(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """Box-Muller: each 64-bit word gives a pair of normals."""
        size = math.prod(shape)
        bits = self._bits(stream, (size + 1) // 2)
        radius = _uniform(bits).log().mul_(-2).sqrt_()
        angle = _uniform(bits << 31).mul_(2 * math.pi)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :size].reshape(-1, *shape)

    def _bits(self, stream: int, count: int) -> Tensor:
        """(B, count) int64 of 64 random bits each."""
        key = _mix_int(_mix_int(self.seed + stream * _GOLDEN) + self.step * _GOLDEN)
        samples = _mix(self.indices.long() * _signed(_GOLDEN) + _signed(key))
        counter = torch.arange(1, count + 1, device=self.indices.device) * _signed(_GOLDEN)
        return _mix(samples[:, None] + counter)


def _uniform(bits: Tensor) -> Tensor:
    """The upper 31 bits -> float32 in (0, 1]; never 0, whose logarithm would be infinite."""
    return _shift(bits, 33).float().add_(0.5).mul_(2.0**-31)


_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix_int(z: int) -> int:
    """SplitMix64's finaliser on a Python integer modulo 2^64."""
    z %= 2**64
    z = (z ^ z >> 30) * _MIX1 % 2**64
    z = (z ^ z >> 27) * _MIX2 % 2**64
    return z ^ z >> 31


def _mix(z: Tensor) -> Tensor:
    """The same on int64, whose products wrap modulo 2^64."""
    z = (z ^ _shift(z, 30)).mul_(_signed(_MIX1))
    z = (z ^ _shift(z, 27)).mul_(_signed(_MIX2))
    return z ^ _shift(z, 31)


def _shift(z: Tensor, count: int) -> Tensor:
    """Logical right shift of int64, whose own shift repeats the sign."""
    return (z >> count).bitwise_and_(2 ** (64 - count) - 1)


def _signed(value: int) -> int:
    """A number below 2^64 as the signed one with the same bits."""
    return value - 2**64 if value >= 2**63 else value
