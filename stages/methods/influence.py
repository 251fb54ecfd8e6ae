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
from stages.methods.gaussians import Gaussian, Moments, parts_of

__all__ = [
    "Principal",
    "frechet",
    "kernel",
    "kernel_means",
    "of_mean",
    "of_root",
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
class Principal:
    """Samples (n, d), their mean, the axes (d, r) in which their covariance is diagonal, and its
    values (r,) there; a decomposition that serves for any number of references.

    Samples are read some thousand rows at a time and may be mapped; mean, axes and values are on
    the device that computes.
    """

    samples: Tensor
    mean: Tensor
    axes: Tensor
    values: Tensor

    @classmethod
    def of(
        cls,
        samples: Tensor,
        moments: Moments | None = None,
        device: torch.device | str | None = None,
    ) -> Principal:
        """samples: (n, d). moments: theirs, where they are known. device: where it is computed,
        that of the samples by default."""
        device = torch.device(samples.device if device is None else device)
        moments = moments or Moments.of(samples, device)
        mean, n = moments.mean.to(device), len(samples)
        if n > samples.shape[1]:
            values, axes = torch.linalg.eigh(moments.covariance.to(device))
        else:
            z = samples.to(device).double() - mean
            values, left = torch.linalg.eigh(z @ z.T / (n - 1))
            axes = z.T @ left / (values.clamp_min(torch.finfo(z.dtype).tiny) * (n - 1)).sqrt()
        # Without the axes of rounding.
        kept = values > values[-1] * max(samples.shape) * torch.finfo(values.dtype).eps
        return cls(samples, mean, axes[:, kept], values[kept])

    def distance_to(self, reference: Moments | Gaussian) -> tuple[float, Tensor]:
        """The Fréchet distance to a fixed reference, and psi (n,) of it.

        With z = x - m1: 2 z.(m1 - m2) + z^T (I - A) z - its mean, where
        A = C1^(-1/2) (C1^(1/2) C2 C1^(1/2))^(1/2) C1^(-1/2), the derivative of the trace term; for
        n <= d in the span of the samples. Also that of the distance extrapolated to infinitely
        many.
        """
        device, roots = self.mean.device, self.values.sqrt()
        shift, half = self.mean - reference.mean.to(device), self.axes * roots
        if isinstance(reference, Gaussian):
            turned = half.T @ reference.factor.to(device)
            inner, trace = turned @ turned.T, reference.trace
        else:
            covariance = reference.covariance.to(device)
            inner, trace = half.T @ covariance @ half, covariance.trace()
        levels, turned = torch.linalg.eigh((inner + inner.T) / 2)
        levels = levels.clamp_min(0).sqrt()
        # z^T A z = |outward^T z|^2.
        outward = self.axes / roots @ turned * levels.sqrt()
        distance = shift.square().sum() + self.values.sum() + trace - 2 * levels.sum()
        return max(distance.item(), 0.0), of_mean(self._psi(shift, outward))

    def _psi(self, shift: Tensor, outward: Tensor) -> Tensor:
        """(n,) on the CPU, up to a constant."""
        psi, unbiased = [], len(self.samples) / (len(self.samples) - 1)  # of the covariance
        for part in parts_of(self.samples):
            z = part.to(self.mean.device).double() - self.mean
            apart = z.square().sum(1) - (z @ outward).square().sum(1)
            psi.append(2 * z @ shift + unbiased * apart)
        return torch.cat(psi).cpu()


def kernel_means(
    x: Tensor,
    y: Tensor | None = None,
    rows: int = 1024,
    device: torch.device | str | None = None,
) -> Tensor:
    """(n,) mean of KID's kernel (x_i.y_j / d + 1)^3 over the rows j of y (m, d), or over the other
    rows of x (n, d), a batch of rows at a time, on a device; given on the CPU."""
    device = torch.device(x.device if device is None else device)
    other, d = (x if y is None else y).to(device).double(), x.shape[1]
    sums, squares = [], []
    for part in parts_of(x, rows):
        part = part.to(device).double()
        plain = (part @ other.T).div_(d).add_(1)
        sums.append((plain * plain).mul_(plain).sum(1))
        squares.append(part.square().sum(1))
    total = torch.cat(sums).cpu()
    if y is not None:
        return total / len(other)
    own = (torch.cat(squares).cpu() / d + 1) ** 3
    return (total - own) / (len(x) - 1)


def kernel(own: Tensor, across: Tensor) -> Tensor:
    """psi (n,) of the unbiased squared MMD to a fixed reference, from the `kernel_means` of each
    sample over the others and over the reference."""
    return of_mean(2 * (own - across))
