"""Noise levels as settings, in standard deviations of the training pixels, and on curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSCISSA = "sigma_1000"


def check_sigmas(sigmas: Sequence[float], name: str = "sigmas") -> None:
    """Raise ValueError unless all are above 0, finite, ascending and 0.001 apart."""
    wrong = [sigma for sigma in sigmas if not (sigma > 0 and math.isfinite(sigma))]
    if wrong:
        raise ValueError(
            f"{name} has {wrong[0]:g}; a noise level is above 0 and finite, in standard deviations "
            "of the training pixels"
        )
    steps = [sigma_1000(sigma) for sigma in sigmas]
    if steps != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(
            f"{name}={tuple(sigmas)} must ascend by at least 0.001, from at least 0.001"
        )


def sigma_1000(sigma: float) -> int:
    """The place of a noise level on the curves' abscissa."""
    return round(1000 * sigma)
