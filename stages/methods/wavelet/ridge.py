"""Ridge of a wavelet score, and size of a principal one, by cross-validation on statistics: no
image is read again (**ours**)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.methods.wavelet import WaveletStatistics, merge
from stages.methods.wavelet.principal import PrincipalStatistics


@dataclass(frozen=True)
class RidgeChoice:
    """ridge: the one of least cross-validated risk; risks: of every candidate, in their order."""

    ridge: float
    ridges: tuple[float, ...]
    risks: tuple[float, ...]


def choose_ridge(
    folds: Sequence[WaveletStatistics | PrincipalStatistics], sigma: float, ridges: Sequence[float]
) -> RidgeChoice:
    """The ridge of least cross-validated risk at `sigma` (**ours**).

    Each fold in turn is subtracted from the total, the rest is fitted, and the fold's own moments
    give the exact held-out risk: no image is read again. The reference (mean and scale) is of all
    folds together; it sets the basis and the centre of the ridge, nothing more.
    """
    if len(folds) < 2:
        raise ValueError(f"choose_ridge needs at least 2 folds, got {len(folds)}.")
    if not ridges:
        raise ValueError("ridges is empty: give at least one candidate.")
    total = merge(folds)
    risks = torch.zeros(len(ridges), dtype=torch.float64)
    for fold in folds:
        scores = (total - fold).at_ridges(sigma, ridges)
        risks += fold.count / total.count * fold.risks(scores).mean(1).cpu()
    best = int(risks.argmin())
    return RidgeChoice(float(ridges[best]), tuple(map(float, ridges)), tuple(risks.tolist()))


@dataclass(frozen=True)
class PrincipalChoice:
    """components, degree: of the least cross-validated risk, the geometric mean over sigmas, and
    ridges: the best one at each of them. risks: that mean of every (components, degree) tried."""

    components: int
    degree: int
    ridges: tuple[float, ...]
    risks: dict[tuple[int, int], float]


def choose_principal(
    folds: Sequence[PrincipalStatistics],
    sigmas: Sequence[float],
    ridges: Sequence[float],
    components: Sequence[int],
    degrees: Sequence[int],
) -> PrincipalChoice:
    """Components, degree and the ridge of each sigma, by folds of the largest model among them."""
    found = {}
    for size in ((k, n) for k in components for n in degrees):
        parts = [fold.restricted(*size) for fold in folds]
        found[size] = [choose_ridge(parts, sigma, ridges) for sigma in sigmas]
    risks = {
        size: math.exp(math.fsum(math.log(min(c.risks)) for c in chosen) / len(chosen))
        for size, chosen in found.items()
    }
    best = min(risks, key=risks.get)
    return PrincipalChoice(*best, tuple(choice.ridge for choice in found[best]), risks)
