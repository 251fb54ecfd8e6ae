"""Labels in fixed shares: the order in which samples take them, and errors where they are strata
(ours).

Labels whose shares are fixed are no part of the error of a score: what samples of different labels
differ in would be there again in every other set.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["at_most", "drawn", "in_turn", "standard_error"]


def in_turn(counts: Sequence[int], n: int) -> np.ndarray:
    """(n,) int64: labels of samples 0..n-1 in the shares of `counts`, whole numbers, one a label.

    Among any first n samples every label is off by less than 1 from n times its share: its j-th
    sample comes after place j / share and before (j + 1) / share, and of those that may come the
    one that must come first does (Tijdeman 1980). A label is a function of the place alone,
    whatever n is; equal counts take strict turns. Raises ValueError for counts that are negative or
    all 0.
    """
    weights = [int(count) for count in counts]
    total = sum(weights)
    if min(weights, default=0) < 0 or total == 0:
        raise ValueError(f"counts are {weights[:10]}; give images of each label, some above 0")

    def window(label: int, j: int) -> tuple[int, int]:
        """The first place that the j-th sample of a label may take, and where it is too late."""
        return j * total // weights[label], -(-(j + 1) * total // weights[label])

    waiting = [(0, label, 0) for label, count in enumerate(weights) if count]
    ready: list[tuple[int, int, int]] = []
    labels = np.empty(n, np.int64)
    for place in range(n):
        while waiting and waiting[0][0] <= place:
            _, label, j = heapq.heappop(waiting)
            heapq.heappush(ready, (window(label, j)[1], label, j))
        _, label, j = heapq.heappop(ready)
        labels[place] = label
        heapq.heappush(waiting, (window(label, j + 1)[0], label, j + 1))
    return labels


def drawn(labels: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Places (n,) drawn without replacement from labels (m,) so that label i occurs counts[i]
    times; where there are fewer of one, all of them."""
    parts = []
    for label, count in enumerate(counts):
        parts.append(generator.permutation(np.flatnonzero(labels == label))[:count])
    return np.concatenate(parts)


def at_most(n: int, confidence: float = 0.95) -> float:
    """The upper bound of a share of which none was seen among n: 1 - 0.05^(1/n), about 3 / n."""
    if n < 1:
        raise ValueError(f"n is {n}; a share needs at least 1 sample")
    return 1 - (1 - confidence) ** (1 / n)


def standard_error(psi: np.ndarray, labels: np.ndarray | None = None) -> float:
    """One standard error of a score from its influence values (n,), see `influence`.

    labels: (n,) integers of samples whose labels stand in fixed shares, by which the values are
    centred; None for samples whose labels were drawn at random. A label of a single sample adds
    its whole value, which is cautious. NaN where nothing can be known: fewer than 2 values.
    """
    psi = np.asarray(psi, np.float64)
    if len(psi) < 2:
        return math.nan
    if labels is None:
        return math.sqrt(psi.var(ddof=1) / len(psi))
    if np.shape(labels) != psi.shape:
        raise ValueError(f"labels have shape {np.shape(labels)} for {len(psi)} influence values")
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(place, psi) / counts
    squares = np.bincount(place, (psi - means[place]) ** 2)
    alone = np.bincount(place, psi**2)
    variances = np.where(counts > 1, squares / np.maximum(counts - 1, 1), alone)
    return math.sqrt((counts / len(psi) ** 2 * variances).sum())
