"""The error of any function of scores, from what each sample contributes to each (ours).

To first order a function f of scores changes by sum_k (df / d score_k) times the change of each, so
that the same sum of their influence values is f's own. Scores of sets made from the same noise and
labels are *paired*: their values are added sample by sample, and what the sets share cancels.
Others are independent, and so are scores without such values: their squared errors are added. For
methods.md section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.methods.decisions import quantile, welch
from stages.methods.protocol import Influence, ProtocolError, Score, same_measurement
from stages.methods.strata import standard_error

PAIRED, INDEPENDENT, PARTLY = "paired", "independent", "partly paired"

Term = tuple[float, Score]  # a score's derivative in the function, and the score


@dataclass(frozen=True)
class Combined:
    """One standard error of a function of scores, its degrees of freedom, and of which kind it is:
    PAIRED, INDEPENDENT, PARTLY, a single score's own, or "none" with error None. networks: how many
    the samples are of, 0 where nobody knows."""

    error: float | None
    degrees: float
    kind: str
    networks: int


def combined(terms: Sequence[Term]) -> Combined:
    """The error of a function of scores, given its derivatives; see the module."""
    networks = {one.influence.network for _, one in terms if one.influence} - {""}
    if any(score.error is None for _, score in terms):
        return Combined(None, math.inf, "none", len(networks))
    errors, degrees = [], []
    groups: dict[str, list[Term]] = {}
    for weight, score in terms:
        if score.influence is not None and score.at_most is None:
            groups.setdefault(score.influence.samples, []).append((weight, score))
            continue
        # None was seen of a share: its error is of the size of its bound.
        one = score.error if score.at_most is None else score.at_most / quantile()
        errors.append(abs(weight) * one)
        degrees.append(score.num_seeds - 1 if score.num_seeds > 1 else math.inf)
    of_groups = influenced(
        [(weight, score.influence) for group in groups.values() for weight, score in group]
    )
    errors += of_groups
    degrees += [math.inf] * len(of_groups)
    error, freedom = welch(errors, degrees)
    return Combined(error, freedom, _kind(terms, list(groups.values())), len(networks))


def influenced(terms: Sequence[tuple[float, Influence]]) -> list[float]:
    """The errors of a function of values, given its derivatives, one for each set of samples that
    they are of: what sets made from the same share is added sample by sample."""
    groups: dict[str, list[tuple[float, Influence]]] = {}
    for weight, influence in terms:
        groups.setdefault(influence.samples, []).append((weight, influence))
    return [
        standard_error(
            sum(weight * one.psi.astype("float64") for weight, one in group), group[0][1].strata
        )
        for group in groups.values()
    ]


def _kind(terms: Sequence[Term], groups: Sequence[Sequence[Term]]) -> str:
    """PAIRED where every set on one side has one on the other from the same noise."""
    if len(terms) == 1 or len({weight > 0 for weight, _ in terms}) == 1:
        return terms[0][1].error_kind
    both = [group for group in groups if len({weight > 0 for weight, _ in group}) == 2]
    if not both:
        return INDEPENDENT
    return PAIRED if sum(map(len, both)) == len(terms) else PARTLY


@dataclass(frozen=True)
class Difference:
    """a - b and its standard error; ``error_kind`` as in Combined, with its degrees of
    freedom."""

    value: float
    error: float | None
    error_kind: str
    degrees: float = math.inf


def difference(a: Score, b: Score) -> Difference:
    """a - b, with the error of what its samples contribute: see `combined`.

    Raises ProtocolError where metric, protocol or kind of error differ: an error over seeds holds
    the spread of training, an influence's or a jackknife's only that of one set of samples.
    """
    same_measurement([a, b])
    if a.error_kind != b.error_kind:
        raise ProtocolError(
            f"{a.metric} has errors of kind {a.error_kind!r} and {b.error_kind!r}; score both over "
            "several seeds, or both from one"
        )
    found = combined([(1.0, a), (-1.0, b)])
    return Difference(a.value - b.value, found.error, found.kind, found.degrees)
