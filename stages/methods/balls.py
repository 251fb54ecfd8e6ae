"""Balls around images that reach to their k-th nearest other image, and who lies in whose.

Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) are counts
of that. Distances are taken in blocks and in float64, on the device that is asked for: of sets of
any size, mapped ones too, a block is in memory at a time. Beside every value stand what each sample
contributes to it (ours; see influence.py), by the leave-one-out difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.influence import of_mean

__all__ = ["Balls", "Nearest", "Value"]

BLOCK = 1000  # rows of distances in memory at once
COLUMNS = 10_000

Value = tuple[float, Tensor]
"""A score, and psi (n,) of its n samples; the reference is fixed."""


@dataclass(frozen=True)
class Nearest:
    """Of every image of a set the nearest others: squares (n, k + 1) of distances, ascending, and
    which; without the last column in a set of k + 1 images. On the CPU."""

    squares: Tensor
    index: Tensor
    neighbours: int

    @property
    def reach(self) -> Tensor:
        """(n,) squared radius of the balls."""
        return self.squares[:, self.neighbours - 1]

    @property
    def grown(self) -> Tensor:
        """(n,) squared radius of the balls without one of the neighbours within."""
        return self.squares[:, self.neighbours :].amax(1)

    @classmethod
    def of(cls, x: Tensor, neighbours: int, device: torch.device | str | None = None) -> Nearest:
        """x: (n, d), n above the number of neighbours. device: where it is computed, that of x by
        default."""
        device = torch.device(x.device if device is None else device)
        kept = min(neighbours + 1, len(x) - 1)
        nearest = torch.full((len(x), kept), torch.inf, dtype=torch.float64, device=device)
        index = torch.zeros((len(x), kept), dtype=torch.long, device=device)
        for rows, columns, squares in _blocks(x, x, device):
            names = torch.arange(columns.start, columns.stop, device=device)
            own = torch.arange(rows.start, rows.stop, device=device)
            squares.masked_fill_(names == own[:, None], torch.inf)
            squares = torch.cat([nearest[rows], squares], 1)
            nearest[rows], chosen = squares.topk(kept, largest=False)
            names = torch.cat([index[rows], names.expand(len(own), -1)], 1)
            index[rows] = names.gather(1, chosen)
        return cls(nearest.cpu(), index.cpu(), neighbours)


@dataclass(frozen=True)
class Balls:
    """Who lies in whose ball, counted; on the CPU.

    around: (n,) balls of the reference that a sample lies in. inside: (m,) samples in a reference
    image's ball. reached: (m,) balls of samples that a reference image lies in. only, holder: (m,)
    which sample that is where `inside`, `reached` are 1.
    """

    samples: Tensor
    reference: Tensor
    own: Nearest
    closed: bool
    device: torch.device
    around: Tensor
    inside: Tensor
    only: Tensor
    reached: Tensor
    holder: Tensor

    @classmethod
    def of(
        cls,
        samples: Tensor,
        reference: Tensor,
        neighbours: int,
        closed: bool = False,
        reach: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Balls:
        """samples: (n, d), reference: (m, d), each of more than k images. closed: whether a point
        at a ball's edge lies in it. reach: (m,) squared radii of the reference's balls, where they
        are known."""
        device = torch.device(samples.device if device is None else device)
        n, m = len(samples), len(reference)
        own = Nearest.of(samples, neighbours, device)
        if reach is None:
            reach = Nearest.of(reference, neighbours, device).reach
        ours, theirs = own.reach.to(device), reach.to(device)
        around = torch.zeros(n, dtype=torch.long, device=device)
        inside, only, reached, holder = torch.zeros(4, m, dtype=torch.long, device=device)
        for rows, columns, squares in _blocks(samples, reference, device):
            names = torch.arange(rows.start, rows.stop, device=device)[:, None]
            here = _within(squares, theirs[columns], closed)
            around[rows] += here.sum(1)
            inside[columns] += here.sum(0)
            only[columns] += (here * names).sum(0)
            here = _within(squares, ours[rows, None], closed)
            reached[columns] += here.sum(0)
            holder[columns] += (here * names).sum(0)
        counts = (x.cpu() for x in (around, inside, only, reached, holder))
        return cls(samples, reference, own, closed, device, *counts)

    def precision(self) -> Value:
        """Share of samples in a ball of the reference."""
        return _mean((self.around > 0).double())

    def density(self) -> Value:
        """Balls of the reference that a sample lies in, of k."""
        return _mean(self.around.double() / self.own.neighbours)

    def coverage(self) -> Value:
        """Share of reference images whose ball holds a sample: one is lost with the only one."""
        n, m = len(self.samples), len(self.reference)
        lost = torch.bincount(self.only[self.inside == 1], minlength=n).double()
        return (self.inside > 0).double().mean().item(), of_mean((n - 1) * lost / m)

    def recall(self) -> Value:
        """Share of reference images in a ball of the samples: those that one ball alone holds are
        lost with its sample, and the balls of its neighbours grow to their next neighbour."""
        n, m = len(self.samples), len(self.reference)
        lost = torch.bincount(self.holder[self.reached == 1], minlength=n).double()
        pairs = self._gained()
        gained = torch.bincount(pairs // m, minlength=n) if len(pairs) else 0
        return (self.reached > 0).double().mean().item(), of_mean((n - 1) * (lost - gained) / m)

    def _gained(self) -> Tensor:
        """Pairs i m + j of samples i without which a ball grows to a reference image j that no
        other holds. An image may be gained through several balls, and counts once."""
        m, k, own = len(self.reference), self.own.neighbours, self.own
        rare = (self.reached <= 1).nonzero().flatten()
        if own.squares.shape[1] <= k or not len(rare):
            return rare[:0]
        reach, grown = own.reach.to(self.device), own.grown.to(self.device)
        rest, pairs = self.reference[rare.to(self.reference.device)], []
        for rows, columns, squares in _blocks(self.samples, rest, self.device):
            between = ~_within(squares, reach[rows, None], self.closed)
            between &= _within(squares, grown[rows, None], self.closed)
            ball, image = between.nonzero().cpu().unbind(1)
            image = rare[columns][image].repeat_interleave(k)
            without = own.index[rows][ball, :k].flatten()
            new = (self.reached[image] == 0) | (self.holder[image] == without)
            pairs.append((without[new] * m + image[new]).unique())
        return torch.cat(pairs).unique()


def _mean(values: Tensor) -> Value:
    return values.mean().item(), of_mean(values)


def _within(squares: Tensor, reach: Tensor, closed: bool) -> Tensor:
    return squares <= reach if closed else squares < reach


def _blocks(x: Tensor, y: Tensor, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances (b, c) in float64 between rows of x (n, d) and of y (m, d), in blocks, and
    of which rows they are."""
    for first in range(0, len(y), COLUMNS):
        columns = slice(first, min(first + COLUMNS, len(y)))
        other = y[columns].to(device).double()
        lengths = other.square().sum(1)
        for start in range(0, len(x), BLOCK):
            rows = slice(start, min(start + BLOCK, len(x)))
            part = x[rows].to(device).double()
            squares = torch.addmm(lengths, part, other.T, alpha=-2)
            squares += part.square().sum(1)[:, None]
            yield rows, columns, squares.clamp_min_(0)
