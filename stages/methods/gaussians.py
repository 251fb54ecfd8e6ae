"""Means and covariances of features that may be larger than the memory.

Features are read some thousand rows at a time, from a tensor or from mapped files, and are in
float64, on the device that is asked for, only then. What is kept is of d x d numbers whatever the
number of images is; from fewer images than dimensions the rows themselves are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.methods.jackknife import deal

__all__ = ["Dealt", "Gaussian", "Moments", "Rows", "from_covariance", "gram", "parts_of"]

ROWS = 5000  # images whose features are looked at, or held in float64, at a time


class Rows:
    """Rows of several arrays (n_i, d), one array after another; a row is read when it is taken.

    which: (n,) the rows that these are, in order; unset is all of them.
    """

    def __init__(self, arrays: Sequence[Tensor], which: Tensor | None = None) -> None:
        self._arrays, self._which = tuple(arrays), which
        self._total = sum(map(len, self._arrays))
        self.dtype, self.device = self._arrays[0].dtype, self._arrays[0].device

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._arrays[0].shape[1]

    def __len__(self) -> int:
        return self._total if self._which is None else len(self._which)

    def only(self, which: Tensor) -> Rows:
        """The rows which (k,) of these."""
        return Rows(self._arrays, which if self._which is None else self._which[which])

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """(k, d) of a slice, or of indices (k,)."""
        if isinstance(which, slice):
            which = torch.arange(*which.indices(len(self)))
        which = which.cpu()
        places = which if self._which is None else self._which[which]
        found = torch.empty((len(places), self.shape[1]), dtype=self.dtype, device=self.device)
        first = 0
        for array in self._arrays:
            own = ((places >= first) & (places < first + len(array))).nonzero().flatten()
            if len(own):
                found[own.to(self.device)] = array[(places[own] - first).to(array.device)]
            first += len(array)
        return found


def parts_of(x: Tensor | Rows, rows: int | None = None) -> Iterator[Tensor]:
    """x (n, d), so many rows at a time."""
    rows = rows or ROWS
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance, as factored."""

    mean: Tensor  # (d,)
    trace: float
    factor: Tensor  # (d, k), covariance = factor factor^T


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d), in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor | Rows, device: torch.device | str | None = None) -> Moments:
        """x: (n, d). device: where it is computed, that of x by default."""
        return Dealt(x, device=device).moments()


class Dealt:
    """Features (n, d) dealt to blocks: the Gaussian of all of them, or of all but one block's.

    x is read twice, and is not needed any more where every n - n_block is above d. device: where
    it is computed; what is kept is in the CPU's memory, (blocks, d, d).
    """

    def __init__(
        self,
        x: Tensor | Rows,
        blocks: int = 1,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.n, self.d = len(x), x.shape[1]
        self.device = torch.device(x.device if device is None else device)
        # Of a sum the order does not matter, and a file is read in its own.
        dealt = [b.to(x.device).sort().values for b in deal(self.n, blocks, generator, labels)]
        self.sizes = tuple(map(len, dealt))
        sums = [sum(p.sum(0) for p in self._doubles(x, block)) for block in dealt]
        self.mean = (sum(sums) / self.n).cpu()
        few = self.n - (max(self.sizes) if blocks > 1 else 0) <= self.d
        self._rows = [x[block].cpu() for block in dealt] if few else None
        if not few:
            self._scatters = [self._scatter(x, block) for block in dealt]

    def _doubles(self, x: Tensor | Rows, block: Tensor) -> Iterator[Tensor]:
        for part in block.split(ROWS):
            yield x[part].to(self.device).double()

    def _scatter(self, x: Tensor | Rows, block: Tensor) -> tuple[Tensor, Tensor]:
        """Sum (d,) and x^T x (d, d) of a block's rows about the mean of all."""
        mean = self.mean.to(self.device)
        total = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        squares: Tensor | float = 0.0
        for part in self._doubles(x, block):
            part -= mean
            total += part.sum(0)
            squares = gram(part) + squares
        return total.cpu(), squares.cpu()

    @cached_property
    def _scatters(self) -> list[tuple[Tensor, Tensor]]:
        """Of few rows these are made only where they are asked for."""
        return [self._scatter(rows, torch.arange(len(rows))) for rows in self._rows]

    def moments(self) -> Moments:
        """Of all images."""
        squares = sum(squares for _, squares in self._scatters)
        return Moments(self.mean, squares / (self.n - 1))

    def gaussian(self, without: int | None = None) -> Gaussian:
        """Of all images, or of those outside a block; on the device."""
        n = self.n - (0 if without is None else self.sizes[without])
        if n <= self.d:
            rows = torch.cat([rows for i, rows in enumerate(self._rows) if i != without])
            rows = rows.to(self.device).double()
            mean = rows.mean(0)
            factor = (rows - mean).T / math.sqrt(n - 1)
            return Gaussian(mean, factor.square().sum().item(), factor)
        squares, mean = sum(squares for _, squares in self._scatters), self.mean
        if without is not None:
            total, gone = self._scatters[without]
            mean = mean - total / n
            squares = squares - gone - torch.outer(total, total) / n
        covariance = (squares / (n - 1)).to(self.device)
        return from_covariance(mean.to(self.device), covariance, name="the features' covariance")

    def shrinkage(self) -> float:
        """Mean of N / (N left) - 1: how much a bias of the form constant / N grows."""
        return sum(self.n / (self.n - size) for size in self.sizes) / len(self.sizes) - 1


def from_covariance(mean: Tensor, cov: Tensor, name: str) -> Gaussian:
    """Factored by Cholesky, or by eigenvectors where it is singular; ValueError, with the name,
    for one with an eigenvalue clearly below zero."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed:
        values, vectors = torch.linalg.eigh(cov)
        smallest, largest = values[0].item(), values[-1].item()
        if smallest < -1e-6 * max(largest, 0.0) - 1e-300:
            raise ValueError(
                f"{name} has the eigenvalue {smallest:.3g} (largest {largest:.3g}); a covariance "
                "has none below zero: compute it in float64"
            )
        kept = values > largest * len(values) * torch.finfo(cov.dtype).eps
        factor = vectors[:, kept] * values[kept].sqrt()
    return Gaussian(mean, cov.trace().item(), factor)


def gram(x: Tensor) -> Tensor:
    """x^T x. On the CPU by numpy, which computes only one triangle of it; torch computes both."""
    if x.device.type == "cpu":
        array = x.numpy()
        return torch.from_numpy(array.T @ array)
    return x.T @ x
