"""Decisions at 95 %: intervals, verdicts, and what many of them at once allow (ours).

An effect has an error from influence values of hundreds of samples, whose quantile is the
normal's, or from a few seeds, whose quantile is Student's: at 2, 3 and 5 seeds "2 standard errors"
decides 30, 18 and 12 % of comparisons where nothing is true. For methods.md section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def quantile(degrees: float = math.inf, confidence: float = CONFIDENCE) -> float:
    """How many standard errors an interval reaches on each side: 1.96 for infinitely many degrees
    of freedom, 4.30 for the 2 of three seeds."""
    tail = 0.5 + confidence / 2
    return float(stats.norm.ppf(tail) if math.isinf(degrees) else stats.t.ppf(tail, degrees))


def probability(value: float, error: float, degrees: float = math.inf) -> float:
    """The two-sided probability of a value so far from 0 where the truth is 0; 0 for an exact
    value (error 0) that is not 0, 1 for one that is."""
    if error == 0:
        return float(value == 0)
    ratio = abs(value) / error
    tail = stats.norm.sf(ratio) if math.isinf(degrees) else stats.t.sf(ratio, degrees)
    return float(2 * tail)


def welch(errors: Sequence[float], degrees: Sequence[float]) -> tuple[float, float]:
    """The error of a sum of independent values, and its degrees of freedom (Welch 1947,
    Satterthwaite 1946)."""
    squares = [error**2 for error in errors]
    total = math.fsum(squares)
    weights = [s**2 / d for s, d in zip(squares, degrees, strict=True) if not math.isinf(d)]
    spread = math.fsum(weights)
    return math.sqrt(total), math.inf if spread == 0 else total**2 / spread


def over_seeds(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard error and degrees of freedom of the same effect over seeds.

    Raises ValueError for fewer than 2.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} value has no spread over seeds; give at least 2")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n), n - 1


def holm(probabilities: Sequence[float], confidence: float = CONFIDENCE) -> list[bool]:
    """Which of several tests stay decided when all are looked at together (Holm 1979): the chance
    of one false decision or more among them is then at most 5 %."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    decided = [False] * len(probabilities)
    for rank, place in enumerate(order):
        if probabilities[place] > (1 - confidence) / (len(probabilities) - rank):
            break
        decided[place] = True
    return decided
