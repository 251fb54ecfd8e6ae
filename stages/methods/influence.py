"""What each sample contributes to a score, and the errors that follow from it (ours).

A score theta of n samples has influence values psi: with sample i's weight up by e,
theta becomes theta + e psi_i / n to first order. They sum to 0. Any smooth function of scores has
the values of its derivative, so that the error of a difference of two scores of the same noise is
that of the differences of their values, sample by sample: what the two share cancels.

Errors are of the samples alone: the reference is fixed. Labels drawn in fixed shares are strata,
and what samples of different labels differ in is no error. Values are taken at the samples
themselves, as in every jackknife, so that what is of second order in them counts twice (Efron and
Stein 1981): of a distance that is mostly bias errors are too large, by up to a third where FD is
near its floor at 500 samples (`python -m tests.bench.errors`), and verdicts cautious. For
methods.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import strata

__all__ = [
    "Balls",
    "Moments",
    "Principal",
    "coverage",
    "density_and_precision",
    "frechet",
    "frechet_to",
    "kernel",
    "kernel_means",
    "neighbour_distances",
    "of_mean",
    "of_root",
    "recall",
    "standard_error",
]


def standard_error(psi: Tensor, labels: Tensor | None = None) -> float:
    """One standard error of a score from its influence values (n,): `strata.standard_error`."""
    return strata.standard_error(psi.numpy(), None if labels is None else labels.numpy())


def of_mean(values: Tensor) -> Tensor:
    """psi (n,) of the mean of values (n,)."""
    return values.double() - values.double().mean()


def of_root(squares: Tensor) -> Tensor:
    """psi (n,) of the root of the mean of squares (n,); 0 where that is 0."""
    root = squares.double().mean().sqrt()
    return (
        torch.zeros_like(squares, dtype=torch.float64)
        if root == 0
        else of_mean(squares) / (2 * root)
    )


def frechet(samples: Tensor, reference: Tensor) -> Tensor:
    """psi (n,) of the Fréchet distance of samples (n, d) to a fixed reference (m, d); see
    `Principal.distance_to`."""
    return Principal.of(samples).distance_to(Moments.of(reference))[1]


@dataclass(frozen=True)
class Moments:
    """Of a reference: mean (d,) and covariance (d, d), in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, reference: Tensor) -> Moments:
        """reference: (m, d)."""
        y = reference.double()
        z = y - y.mean(0)
        return cls(y.mean(0), z.T @ z / (len(y) - 1))


@dataclass(frozen=True)
class Principal:
    """Samples about their mean (n, d), the axes (d, r) in which their covariance is diagonal, its
    values (r,) there, and the samples along these axes at unit variance (n, r); a decomposition
    that serves for any number of references."""

    mean: Tensor
    centred: Tensor
    axes: Tensor
    values: Tensor
    whitened: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Principal:
        """samples: (n, d)."""
        x = samples.double()
        z = x - x.mean(0)
        axes, values = _principal(z)
        return cls(x.mean(0), z, axes, values, z @ axes / values.sqrt())

    def distance_to(self, reference: Moments) -> tuple[float, Tensor]:
        """The Fréchet distance to a fixed reference, and psi (n,) of it.

        With z = x - m1: 2 z.(m1 - m2) + z^T (I - A) z - its mean, where
        A = C1^(-1/2) (C1^(1/2) C2 C1^(1/2))^(1/2) C1^(-1/2), the derivative of the trace term; for
        n <= d in the span of the samples. Also that of the distance extrapolated to infinitely
        many.
        """
        z, shift, roots = self.centred, self.mean - reference.mean, self.values.sqrt()
        inner = self.axes.T @ reference.covariance @ self.axes * roots[:, None] * roots
        levels, turned = torch.linalg.eigh((inner + inner.T) / 2)
        levels = levels.clamp_min(0).sqrt()
        # z^T A z = |levels^(1/2) turned^T C1^(-1/2) z|^2.
        attracted = (self.whitened @ turned).square() @ levels
        unbiased = len(z) / (len(z) - 1)  # of the covariance, whose weights sum to it
        distance = shift.square().sum() + self.values.sum() + reference.covariance.trace()
        psi = of_mean(2 * z @ shift + unbiased * (z.square().sum(1) - attracted))
        return max((distance - 2 * levels.sum()).item(), 0.0), psi


def frechet_to(
    samples: Tensor,
    center: Tensor,
    covariance: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    rows: int,
) -> Tensor:
    """`frechet` of samples (n, d), n > 1, whose mean and covariance are known, to a reference of
    mean (d,) and covariance factor factor^T, factor (d, k); so many rows are in double precision at
    a time. covariance: (d, d); None for n <= d."""
    n, parts = len(samples), samples.split(rows)
    if covariance is None:
        axes, values = _principal(samples.double() - center)
    else:
        axes, values = _axes(covariance, n)
    roots, shift = values.sqrt(), center - mean
    half = axes.T @ factor * roots[:, None]
    levels, turned = torch.linalg.eigh(half @ half.T)
    # z^T A z = |outward^T z|^2.
    outward = axes / roots @ turned * levels.clamp_min(0).sqrt().sqrt()
    psi = []
    for part in parts:
        z = part.double() - center
        apart = z.square().sum(1) - (z @ outward).square().sum(1)
        psi.append(2 * z @ shift + n / (n - 1) * apart)
    return of_mean(torch.cat(psi))


def _principal(z: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (d, r) and variances (r,) of centred samples (n, d), without those of rounding."""
    n, d = z.shape
    if n > d:
        return _axes(z.T @ z / (n - 1), n)
    values, left = torch.linalg.eigh(z @ z.T / (n - 1))
    axes = z.T @ left / (values.clamp_min(torch.finfo(z.dtype).tiny) * (n - 1)).sqrt()
    return _kept(axes, values, d)


def _axes(covariance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`_principal` of n > d samples of this covariance (d, d)."""
    values, axes = torch.linalg.eigh(covariance)
    return _kept(axes, values, n)


def _kept(axes: Tensor, values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    kept = values > values[-1] * most * torch.finfo(values.dtype).eps
    return axes[:, kept], values[kept]


def kernel_means(x: Tensor, y: Tensor | None = None, rows: int = 1024) -> Tensor:
    """(n,) mean of KID's kernel (x_i.y_j / d + 1)^3 over the rows j of y (m, d), or over the other
    rows of x (n, d), a batch of rows at a time."""
    x = x.double()
    other = x if y is None else y.double()
    sums = []
    for part in x.split(rows):
        plain = (part @ other.T).div_(x.shape[1]).add_(1)
        sums.append((plain * plain).mul_(plain).sum(1))
    total = torch.cat(sums)
    if y is not None:
        return total / len(other)
    return (total - (x.square().sum(1) / x.shape[1] + 1) ** 3) / (len(x) - 1)


def kernel(own: Tensor, across: Tensor) -> Tensor:
    """psi (n,) of the unbiased squared MMD to a fixed reference, from the `kernel_means` of each
    sample over the others and over the reference."""
    return of_mean(2 * (own - across))


def neighbour_distances(x: Tensor, neighbours: int) -> Tensor:
    """(n,) distance of each of x (n, d) to its k-th neighbour among the others."""
    between = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    return between.kthvalue(neighbours, dim=1).values


@dataclass(frozen=True)
class Balls:
    """Distances that the manifold scores are made of, and who lies in whose ball.

    inside_reference: (m, n), sample in a reference image's ball. inside_samples: (m, n), reference
    image in a sample's ball. Balls reach to the k-th neighbour of their own set.
    """

    inside_reference: Tensor
    inside_samples: Tensor
    across: Tensor
    sample_distances: Tensor
    neighbours: int

    @classmethod
    def of(
        cls, samples: Tensor, reference: Tensor, neighbours: int, radii: Tensor | None = None
    ) -> Balls:
        """samples (n, d), reference (m, d); radii (m,): the reference's, where they are known."""
        x, y = samples.double(), reference.double()
        own = torch.cdist(x, x).fill_diagonal_(torch.inf)
        across = torch.cdist(y, x)
        if radii is None:
            radii = neighbour_distances(y, neighbours)
        reach = own.kthvalue(neighbours, dim=1).values
        return cls(across < radii[:, None], across < reach, across, own, neighbours)


def density_and_precision(balls: Balls) -> tuple[Tensor, Tensor]:
    """psi (n,) of density and of precision, means over samples."""
    counts = balls.inside_reference.sum(0).double()
    return of_mean(counts / balls.neighbours), of_mean((counts > 0).double())


def coverage(balls: Balls) -> Tensor:
    """psi (n,) of coverage by the leave-one-out difference: a reference image is lost with the
    only sample in its ball."""
    counts = balls.inside_reference.sum(1)
    only = balls.inside_reference & (counts == 1)[:, None]
    lost = only.sum(0).double() / len(counts)
    return of_mean((balls.inside_reference.shape[1] - 1) * lost)


def recall(balls: Balls) -> Tensor:
    """psi (n,) of recall by the leave-one-out difference: reference images that only this sample's
    ball holds are lost, and the balls of its neighbours grow to their next neighbour."""
    inside, own, k = balls.inside_samples, balls.sample_distances, balls.neighbours
    m, n = inside.shape
    counts = inside.sum(1)
    lost = (inside & (counts == 1)[:, None]).sum(0).double()
    ordered, index = own.topk(min(k + 1, n - 1), largest=False)
    gained = torch.zeros(n, dtype=torch.float64)
    if ordered.shape[1] > k:
        # What ball l holds beyond its k-th neighbour, up to the next, is reached without any of
        # its k neighbours; it is gained where no ball, or that neighbour's alone, holds it.
        image, ball = (~inside & (balls.across < ordered[:, k])).nonzero(as_tuple=True)
        image, without = image.repeat_interleave(k), index[ball, :k].flatten()
        alone = (counts[image] == 1) & inside[image, without]
        new = (counts[image] == 0) | alone
        pairs = (without[new] * m + image[new]).unique()
        gained = torch.bincount(pairs // m, minlength=n).double()
    return of_mean((n - 1) * (lost - gained) / m)
