"""Mean image and variances of a data set, added up from parts of it.

Of uint8 pixels the sums are integers, so they are exact and depend neither on the order of the
images nor on how these were cut into parts. Of others means and squared deviations are merged
(Chan, Golub & LeVeque 1983), which for given parts in a given order gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

UNIT_BITS = 24  # every value of `levels` is a multiple of 2^-24


def levels(white: int) -> np.ndarray:
    """(256,) float32: what each stored uint8 value is in [-1, 1]; 0 is -1 and `white` 1."""
    return np.arange(256).astype(np.float32) / np.float32(white / 2) - np.float32(1)


def _units(white: int) -> np.ndarray:
    """(256,) int64: the levels in units of 2^-24, up to white; 0 for values that do not occur."""
    units = np.ldexp(levels(white).astype(np.float64), UNIT_BITS).astype(np.int64)
    units[white + 1 :] = 0
    return units


@dataclass(frozen=True)
class Summary:
    """mu: (C, H, W) float64, the mean image. mean, std: over all values. V = E|x0 - mu|^2."""

    mu: np.ndarray
    mean: float
    std: float
    V: float


@dataclass(frozen=True)
class PixelSums:
    """Of uint8 images: sums (C, H, W) int64 of their values in units of 2^-24, and counts (256,)
    int64, how often each stored value occurs. white: the stored value that is 1."""

    num_images: int
    sums: np.ndarray
    counts: np.ndarray
    white: int

    @classmethod
    def of(cls, images: np.ndarray, white: int) -> PixelSums:
        """images: (n, C, H, W) uint8."""
        units = _units(white).astype(np.int32)
        sums = np.zeros(images.shape[1:], np.int64)
        for image in images if images[0].size > 4096 else (images,):
            taken = units[image]
            sums += taken if taken.ndim == 3 else taken.sum(0, dtype=np.int64)
        return cls(len(images), sums, np.bincount(images.reshape(-1), minlength=256), white)

    def __add__(self, other: PixelSums) -> PixelSums:
        """Of both; where one of them is grey and the other is not, the grey one is coloured."""
        ours, theirs = self, other
        if ours.sums.shape[0] != theirs.sums.shape[0]:
            ours, theirs = ours.coloured(), theirs.coloured()
        sums, counts = ours.sums + theirs.sums, ours.counts + theirs.counts
        return PixelSums(ours.num_images + theirs.num_images, sums, counts, ours.white)

    def coloured(self) -> PixelSums:
        """The same images with three equal channels where they have one."""
        if len(self.sums) != 1:
            return self
        sums = self.sums.repeat(3, axis=0)
        return PixelSums(self.num_images, sums, self.counts * 3, self.white)

    def summary(self) -> Summary:
        """Every number is the exact one, rounded; only `mean` is the mean of the rounded mu."""
        units = _units(self.white)
        n, size = self.num_images, self.sums.size
        squares = sum(int(c) * int(u) ** 2 for c, u in zip(self.counts, units, strict=True))
        of_means = sum(s * s for s in self.sums.reshape(-1).tolist())
        mu = np.ldexp(self.sums.astype(np.float64), -UNIT_BITS) / n
        one = 1 << 2 * UNIT_BITS
        variance = Fraction(squares, n * size) - Fraction(int(self.sums.sum()), n * size) ** 2
        V = Fraction(n * squares - of_means, n * n * one)
        return Summary(mu, float(mu.mean()), math.sqrt(variance / one), float(V))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` makes the same sums of."""
        facts = np.array([self.num_images, self.white])
        return {"sums": self.sums, "counts": self.counts, "facts": facts}


@dataclass(frozen=True)
class Moments:
    """Of images of any values: their mean (C, H, W), float64, and the sum of |x - mean|^2."""

    num_images: int
    mean: np.ndarray
    squares: float

    @classmethod
    def of(cls, images: np.ndarray, std: np.ndarray | None = None) -> Moments:
        """images: (n, C, H, W). std: of the same shape where they are the means of normal
        distributions, whose variance is counted then."""
        values = images.astype(np.float64)
        mean = values.mean(0)
        squares = float(np.square(values - mean).sum())
        if std is not None:
            squares += float(np.square(std.astype(np.float64)).sum())
        return cls(len(images), mean, squares)

    def __add__(self, other: Moments) -> Moments:
        n = self.num_images + other.num_images
        apart = other.mean - self.mean
        share = self.num_images * other.num_images / n
        squares = self.squares + other.squares + share * float(np.square(apart).sum())
        return Moments(n, self.mean + apart * (other.num_images / n), squares)

    def summary(self) -> Summary:
        mean, V = float(self.mean.mean()), self.squares / self.num_images
        std = math.sqrt(V / self.mean.size + float(np.square(self.mean - mean).mean()))
        return Summary(self.mean, mean, std, V)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` makes the same of."""
        return {"mean": self.mean, "facts": np.array([self.num_images, self.squares])}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> PixelSums | Moments:
    """What `arrays()` of either kind gave."""
    if "sums" in arrays:
        number, white = map(int, arrays["facts"])
        return PixelSums(number, arrays["sums"], arrays["counts"], white)
    number, squares = arrays["facts"].tolist()
    return Moments(int(number), arrays["mean"], squares)
