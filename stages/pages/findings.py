"""What a run says of a paper's claim: an effect with its error, and a verdict that follows from
the two alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.methods.protocol import Score

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "inconclusive", "not measured in this run"
# Measured times differ from run to run and are no part of an artifact: the run's page has them.
TIMED = "stands with the run"
LOWER, HIGHER = "lower", "higher"
UNKNOWN = "no error known"
# Kinds of errors beyond those of scores: a closed form has none, a bound is on one side.
EXACT, BOUND = "exact", "bound"
# Spread over seeds: of what is not told, of repeated trainings, of noise sampled from one training.
SEEDS, TRAININGS, NOISES = "seeds", "seeds of training", "seeds of noise, one training"

BySeed = Mapping[int | None, "Score"]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    paper: the paper's own number, or that it gives none here. recipes: those that measure it.
    """

    method: str
    text: str
    paper: str
    recipes: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """A measured effect: its value, one standard error of a stated kind, and what it is of.

    error: None for kinds "exact" (a closed form), "bound" and "none". log: of a change of a ratio,
    natural logarithm of the ratio with its error, on which the verdict is taken; value and error
    say the same in percent, to first order.
    """

    value: float
    error: float | None
    error_kind: str
    num_seeds: int = 1
    unit: str = ""
    log: tuple[float, float | None] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"an effect is {self.value}; give a finite value")
        if (self.error is None) != (self.error_kind in (EXACT, BOUND, "none")):
            raise ValueError(f"an effect has error {self.error} of kind '{self.error_kind}'")


@dataclass(frozen=True)
class Finding:
    """What a run has to say of a claim.

    what: the effect in words, with its conditions. details: the same condition by condition, as
    rows of a table, the heading first. note: what a reader must know to weigh it.
    """

    claim: Claim
    what: str = ""
    effect: Effect | None = None
    verdict: str = ABSENT
    note: str = ""
    details: tuple[tuple[Any, ...], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self) | {"details": [list(row) for row in self.details]}


def side(difference: float, error: float | None) -> str:
    """On which side of none a difference is: beyond two standard errors, `OPEN` within them, and
    `UNKNOWN` without an error. Every verdict follows from this rule."""
    if error is None:
        return UNKNOWN
    if abs(difference) <= 2 * error:
        return OPEN
    return LOWER if difference < 0 else HIGHER


def verdict(effect: Effect | None, wanted: str, threshold: float = 0.0) -> str:
    """Whether an effect is on the wanted `side` of a threshold. An exact effect has no error; an
    unknown error decides nothing.

    A change of a ratio is tested on the logarithm, against none: which side is divided by which
    must not matter, and in percent it would. Raises ValueError for such a one with a threshold.
    """
    if effect is None:
        return ABSENT
    value, error = effect.log or (effect.value, effect.error)
    if effect.log and threshold:
        raise ValueError(f"a change of a ratio is tested against none, not {threshold}")
    said = side(value - threshold, error or 0.0)
    if effect.error_kind == "none" or said == OPEN:
        return OPEN
    return HOLDS if said == wanted else FAILS


def paired(
    ours: Mapping[Any, BySeed], theirs: Mapping[Any, BySeed]
) -> dict[Any, dict[int | None, tuple[Score, Score]]]:
    """Scores of both sides by condition and seed, where both have one of the same protocol and
    kind of error."""
    pairs: dict[Any, dict[int | None, tuple[Score, Score]]] = {}
    for condition in ours:
        for seed, score in ours[condition].items():
            other = theirs.get(condition, {}).get(seed)
            if other is not None and _comparable(score, other):
                pairs.setdefault(condition, {})[seed] = (score, other)
    return pairs


def _comparable(a: Score, b: Score) -> bool:
    return (a.metric, a.protocol, a.error_kind) == (b.metric, b.protocol, b.error_kind)


def change(pairs: Mapping[Any, Mapping[int | None, tuple[Score, Score]]]) -> Effect | None:
    """Relative change of ours against theirs in percent: the geometric mean over conditions.

    Several seeds that every condition has: the error is that of the mean over seeds, each seed
    paired with itself. One: the scores' own errors, taken as independent. None where no condition
    has both, or where a score is not positive.
    """
    if not pairs:
        return None
    seeds = set.intersection(*(set(by_seed) for by_seed in pairs.values()))
    chosen = {seed: [by_seed[seed] for by_seed in pairs.values()] for seed in seeds}
    if not chosen or any(a.value <= 0 or b.value <= 0 for s in chosen.values() for a, b in s):
        return None
    logs = [_mean_log_ratio(some) for some in chosen.values()]
    if len(logs) > 1:
        return ratio(*mean_with_error(logs), SEEDS, len(logs))
    (some,) = chosen.values()
    errors = [_relative_error(score) for pair in some for score in pair]
    if any(error is None for error in errors):
        return ratio(logs[0], None, "none")
    error = math.sqrt(math.fsum(error**2 for error in errors)) / len(some)
    first = some[0][0]
    return ratio(logs[0], error, first.error_kind, first.num_seeds)


def ratio(log: float, error: float | None, kind: str, num_seeds: int = 1) -> Effect:
    """The effect of a ratio, given as its natural logarithm with one standard error: in percent,
    with the logarithm to test."""
    scale = 100 * math.exp(log)
    shown = None if error is None else scale * error
    return Effect(scale - 100, shown, kind, num_seeds, "%", (log, error))


def mean_with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of values, and its standard error from their spread; None for a single one."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _mean_log_ratio(pairs: Sequence[tuple[Score, Score]]) -> float:
    return math.fsum(math.log(a.value) - math.log(b.value) for a, b in pairs) / len(pairs)


def _relative_error(score: Score) -> float | None:
    return None if score.error is None else score.error / score.value


def minus(a: Effect | None, b: Effect | None) -> Effect | None:
    """a - b, errors added as of independent effects; None where one is missing. Of two changes of
    ratios: their difference in percent, tested on that of the logarithms."""
    if a is None or b is None:
        return None
    known = a.error is not None and b.error is not None and a.error_kind == b.error_kind
    error = math.hypot(a.error, b.error) if known else None
    log = None
    if a.log and b.log:
        log = (a.log[0] - b.log[0], math.hypot(a.log[1], b.log[1]) if known else None)
    kind = a.error_kind if known else "none"
    return replace(a, value=a.value - b.value, error=error, error_kind=kind, log=log)


def over_seeds(effects: Sequence[Effect], kind: str = SEEDS) -> Effect | None:
    """The mean of one effect over repeated runs, with the error of their spread, said to be of a
    kind; one effect stays as it is, none is None."""
    if len(effects) < 2:
        return effects[0] if effects else None
    if all(effect.log for effect in effects):
        return ratio(*mean_with_error([one.log[0] for one in effects]), kind, len(effects))
    mean, error = mean_with_error([effect.value for effect in effects])
    changed = {"value": mean, "error": error, "error_kind": kind, "num_seeds": len(effects)}
    return replace(effects[0], **changed, log=None)


def repeating(findings: Iterable[Finding], kind: str) -> Iterator[Finding]:
    """Findings whose errors over seeds are of a kind, where they do not tell themselves."""
    for finding in findings:
        if finding.effect is not None and finding.effect.error_kind == SEEDS:
            finding = replace(finding, effect=replace(finding.effect, error_kind=kind))
        yield finding


def compared(
    claim: Claim,
    what: str,
    ours: Mapping[Any, BySeed],
    theirs: Mapping[Any, BySeed],
    note: str = "",
) -> Finding:
    """The finding on "ours is lower", over the conditions that both sides have."""
    pairs = paired(ours, theirs)
    effect = change(pairs)
    if effect is None:
        return Finding(claim)
    return Finding(claim, what, effect, verdict(effect, LOWER), note, details(pairs))


def details(pairs: Mapping[Any, Mapping[int | None, tuple[Score, Score]]]) -> tuple[tuple, ...]:
    """Condition by condition: both sides, averaged over seeds, and the change in percent."""
    rows: list[tuple[Any, ...]] = [
        ("condition", "metric", "ours", "theirs", "change (%)", "its error", "seeds")
    ]
    for condition, by_seed in pairs.items():
        effect = change({condition: by_seed})
        ours, theirs = (
            math.fsum(pair[side].value for pair in by_seed.values()) / len(by_seed)
            for side in (0, 1)
        )
        metric = next(iter(by_seed.values()))[0].metric
        value, error = (effect.value, effect.error) if effect else (None, None)
        rows.append((str(condition), metric, ours, theirs, value, error, len(by_seed)))
    return tuple(rows)


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings have each verdict."""
    counts = dict.fromkeys((HOLDS, FAILS, OPEN, TIMED, ABSENT), 0)
    for finding in findings:
        counts[finding.verdict] += 1
    return counts
