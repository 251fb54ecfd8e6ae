"""Ridge of a wavelet score by cross-validation on statistics: no image is read again (**ours**)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.methods.wavelet import WaveletStatistics, merge


@dataclass(frozen=True)
class RidgeChoice:
    """ridge: the one of least cross-validated risk; risks: of every candidate, in their order."""

    ridge: float
    ridges: tuple[float, ...]
    risks: tuple[float, ...]


def choose_ridge(
    folds: Sequence[WaveletStatistics], sigma: float, ridges: Sequence[float]
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
