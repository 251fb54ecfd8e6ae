"""Response curves of a fitted wavelet score: how one coefficient's score answers to its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.wavelet import WaveletScore


@dataclass(frozen=True, eq=False)
class ResponseCurves:
    """Curves of k coefficients at n values; all float64.

    coefficients: (k,) flat indices. w: (k, n) noisy coefficient, in the units of the images.
    score: (k, n) fitted score with every other coefficient at its mean. linear: (k, n) the
    diagonal Wiener score -(w - mean) / tau^2. shrinkage, wiener: (k, n) the same as denoised
    coefficients, w + sigma^2 score.
    """

    sigma: float
    coefficients: Tensor
    w: Tensor
    score: Tensor
    linear: Tensor

    @property
    def shrinkage(self) -> Tensor:
        return self.w + self.sigma**2 * self.score

    @property
    def wiener(self) -> Tensor:
        return self.w + self.sigma**2 * self.linear


def response_curves(
    fitted: WaveletScore, coefficients: Sequence[int], span: float = 4.0, num_points: int = 81
) -> ResponseCurves:
    """Score of each of `coefficients` (flat indices) over mean +- span * tau, the rest at their
    means. A slice through the fit, not an average over the data."""
    mean, tau = fitted.statistics.mean, fitted.tau
    index = torch.as_tensor(list(coefficients), device=mean.device)
    if len(index) == 0 or index.min() < 0 or index.max() >= len(mean):
        raise ValueError(
            f"coefficients must be flat indices from 0 to {len(mean) - 1}, got {coefficients!r}."
        )
    grid = torch.linspace(-span, span, num_points, dtype=torch.float64, device=mean.device)
    w = mean[index, None] + tau[index, None] * grid
    rows = torch.arange(len(index), device=mean.device)
    points = mean.repeat(len(index), num_points, 1)
    points[rows, :, index] = w
    score = fitted.coefficient_score(points.flatten(0, 1)).unflatten(0, w.shape)[rows, :, index]
    return ResponseCurves(fitted.sigma, index, w, score, -grid.expand_as(w) / tau[index, None])


def band_centres(fitted: WaveletScore, channel: int = 0) -> dict[str, int]:
    """For each band, `A2`, `H2` .. `D1`, the flat index of its middle coefficient."""
    basis = fitted.statistics.layout.basis
    start = channel * basis.size_per_channel
    return {
        band.name: start + band.offset + band.height // 2 * band.width + band.width // 2
        for band in basis.bands
    }
