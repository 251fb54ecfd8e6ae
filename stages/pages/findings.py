"""What a run says of a paper's claim: an effect with its error, and a verdict that follows from
the two alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.methods.effects import Term
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
# Of which networks an effect speaks whose error holds no spread of training.
ONE_NETWORK, NETWORKS = "this network", "these networks"

BySeed = Mapping[int | None, "Score"]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    paper: the paper's own number, or that it gives none here. recipes: those that measure it.
    short: what tells it from the method's others in a narrow column; its text where it is empty.
    """

    method: str
    text: str
    paper: str
    recipes: tuple[str, ...]
    short: str = ""


@dataclass(frozen=True)
class Effect:
    """A measured effect: its value, one standard error of a stated kind, and what it is of.

    error: None for kinds "exact" (a closed form), "bound" and "none". log: of a change of a ratio,
    natural logarithm of the ratio with its error, on which the verdict is taken; value and error
    say the same in percent, to first order. against: what it is tested against. degrees: of freedom
    of the error where they are not one less than the seeds. beside: where a spread over seeds
    decides, the error that the samples alone give. scope: of which networks it speaks, "" for any
    that are trained so. among: of how many effects it is the one that was chosen, to all of which
    interval and probability then hold together (Bonferroni). terms: the scores it is made of with
    their derivatives in `tested`. by_seed: what is averaged over seeds, by seed.
    """

    value: float
    error: float | None
    error_kind: str
    num_seeds: int = 1
    unit: str = ""
    log: tuple[float, float | None] | None = None
    against: float = 0.0
    degrees: float | None = None
    beside: float | None = None
    scope: str = ""
    among: int = 1
    terms: tuple[Term, ...] = field(default=(), compare=False, repr=False)
    by_seed: Mapping[Any, float] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"an effect is {self.value}; give a finite value")
        if (self.error is None) != (self.error_kind in (EXACT, BOUND, "none")):
            raise ValueError(f"an effect has error {self.error} of kind '{self.error_kind}'")
        if self.log and self.against:
            raise ValueError(f"a change of a ratio is tested against none, not {self.against}")

    @property
    def tested(self) -> tuple[float, float | None]:
        """Value and error that the verdict is taken on: of a ratio its logarithm."""
        return self.log or (self.value - self.against, self.error)

    @property
    def freedom(self) -> float:
        """Degrees of freedom: one less than the seeds whose spread the error is, infinite for a
        normal distribution."""
        if self.degrees is not None:
            return self.degrees
        over = self.error_kind in (SEEDS, TRAININGS, NOISES) and self.num_seeds > 1
        return self.num_seeds - 1 if over else math.inf

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval in the effect's unit, None without an error."""
        from stages.methods.decisions import CONFIDENCE, quantile

        if self.error is None:
            return None
        value, error = self.log or (self.value, self.error)
        reach = quantile(self.freedom, 1 - (1 - CONFIDENCE) / self.among) * error
        ends = (value - reach, value + reach)
        low, high = (100 * math.expm1(end) for end in ends) if self.log else ends
        return low, high

    @property
    def probability(self) -> float | None:
        """Of an effect so far from what it is tested against, were that the truth; None without an
        error."""
        from stages.methods.decisions import probability

        value, error = self.tested
        if error is None:
            return None
        return min(1.0, self.among * probability(value, error, self.freedom))


@dataclass(frozen=True)
class Finding:
    """What a run has to say of a claim.

    what: the effect in words, with its conditions. details: the same condition by condition, as
    rows of a table, the heading first. note: what a reader must know to weigh it. instead: what
    the verdict follows from where it is not the effect. together: whether the verdict stays when
    all of a report are looked at together.
    """

    claim: Claim
    what: str = ""
    effect: Effect | None = None
    verdict: str = ABSENT
    note: str = ""
    details: tuple[tuple[Any, ...], ...] = ()
    instead: str = ""
    together: bool = False

    @property
    def probability(self) -> float | None:
        """The effect's, where the verdict follows from it; None where no test is behind it."""
        return self.effect.probability if self.effect and not self.instead else None

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        bare = replace(self, effect=self.effect and replace(self.effect, terms=(), by_seed={}))
        values = asdict(bare) | {"details": [list(row) for row in self.details]}
        if self.effect is not None:
            del values["effect"]["terms"], values["effect"]["by_seed"]
            values["effect"]["interval"] = self.effect.interval
        return values


def side(difference: float, error: float | None, degrees: float = math.inf) -> str:
    """On which side of none a difference is: beyond its 95 % interval, `OPEN` within it, and
    `UNKNOWN` without an error. Every verdict follows from this rule.

    degrees: of freedom of the error, by Student's t; infinite for a normal distribution.
    """
    from stages.methods.decisions import quantile

    if error is None:
        return UNKNOWN
    if abs(difference) <= quantile(degrees) * error:
        return OPEN
    return LOWER if difference < 0 else HIGHER


def verdict(effect: Effect | None, wanted: str) -> str:
    """Whether an effect is on the wanted `side` of what it is tested against. An exact effect has
    no error; an unknown error decides nothing.

    A change of a ratio is tested on the logarithm, against none: which side is divided by which
    must not matter, and in percent it would.
    """
    if effect is None:
        return ABSENT
    value, error = effect.tested
    said = side(value, error or 0.0, effect.freedom)
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
    paired with itself. One: what the samples give, see `effects`. None where no condition has both,
    or where a score is not positive.
    """
    chosen = _by_seed(pairs)
    if not chosen or any(a.value <= 0 or b.value <= 0 for some in chosen.values() for a, b in some):
        return None
    logs = {
        seed: math.fsum(math.log(a.value) - math.log(b.value) for a, b in some) / len(some)
        for seed, some in chosen.items()
    }
    terms = [
        (sign / one.value / len(some), one)
        for some in chosen.values()
        for pair in some
        for sign, one in zip((1, -1), pair, strict=True)
    ]
    return _of_scores(logs, terms, as_ratio=True)


def difference(pairs: Mapping[Any, Mapping[int | None, tuple[Score, Score]]]) -> Effect | None:
    """Ours minus theirs, the mean over conditions, with its error as `change` has it. Raises
    ProtocolError for scores that are not to be compared."""
    from stages.methods.effects import difference as of_pair

    chosen = _by_seed(pairs)
    if not chosen:
        return None
    values = {
        seed: math.fsum(of_pair(a, b).value for a, b in some) / len(some)
        for seed, some in chosen.items()
    }
    terms = [
        (sign / len(some), one)
        for some in chosen.values()
        for pair in some
        for sign, one in zip((1, -1), pair, strict=True)
    ]
    return _of_scores(values, terms, as_ratio=False)


def _by_seed(
    pairs: Mapping[Any, Mapping[int | None, tuple[Score, Score]]],
) -> dict[int | None, list[tuple[Score, Score]]]:
    """The pairs of every condition, by the seeds that all conditions have."""
    if not pairs:
        return {}
    seeds = set.intersection(*(set(by_seed) for by_seed in pairs.values()))
    return {seed: [by_seed[seed] for by_seed in pairs.values()] for seed in sorted(seeds, key=str)}


def _of_scores(values: Mapping[Any, float], terms: Sequence[Term], as_ratio: bool) -> Effect:
    """The mean over seeds of values, whose derivatives in scores are `terms`, those of each seed
    for itself."""
    from stages.methods import decisions
    from stages.methods.effects import combined

    count = len(values)
    found = combined([(weight / count, one) for weight, one in terms])
    scope = {0: "", 1: ONE_NETWORK}.get(found.networks, NETWORKS)
    more = {"scope": scope, "terms": tuple(terms), "by_seed": dict(values)}
    if count > 1:
        mean, error, _ = decisions.over_seeds(list(values.values()))
        more |= {"beside": found.error, "terms": ()}
        kind, num_seeds = SEEDS, count
    else:
        (mean,), error, kind = values.values(), found.error, found.kind
        num_seeds = terms[0][1].num_seeds
        more["degrees"] = None if math.isinf(found.degrees) else found.degrees
        if num_seeds > 1:
            kind = SEEDS
    one = ratio(mean, error, kind, num_seeds) if as_ratio else Effect(mean, error, kind, num_seeds)
    if as_ratio and more.get("beside") is not None:
        more["beside"] *= 100 * math.exp(mean)
    return replace(one, **more)


def ratio(log: float, error: float | None, kind: str, num_seeds: int = 1) -> Effect:
    """The effect of a ratio, given as its natural logarithm with one standard error: in percent,
    with the logarithm to test."""
    scale = 100 * math.exp(log)
    shown = None if error is None else scale * error
    return Effect(scale - 100, shown, kind, num_seeds, "%", (log, error))


def mean_with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of values, and its standard error from their spread; None for a single one."""
    from stages.methods import decisions

    if len(values) == 1:
        return values[0], None
    mean, error, _ = decisions.over_seeds(values)
    return mean, error


def minus(a: Effect | None, b: Effect | None) -> Effect | None:
    """a - b; None where one is missing. Of two changes of ratios: the change from b's ratio to a's.
    Seeds that both have are paired with themselves, single sets as `effects` has it."""
    from stages.methods import decisions
    from stages.methods.effects import INDEPENDENT, combined

    if a is None or b is None:
        return None
    seeds = [seed for seed in a.by_seed if seed in b.by_seed]
    (x, x_error), (y, y_error) = a.tested, b.tested
    value, error, degrees, kind = x - y, None, math.inf, "none"
    if len(seeds) > 1:
        parts = [a.by_seed[seed] - b.by_seed[seed] for seed in seeds]
        value, error, degrees = decisions.over_seeds(parts)
        kind = SEEDS
    elif a.terms and b.terms:
        found = combined([*a.terms, *((-weight, score) for weight, score in b.terms)])
        error, degrees, kind = found.error, found.degrees, found.kind
    elif x_error is not None and y_error is not None:
        error, degrees = decisions.welch((x_error, y_error), (a.freedom, b.freedom))
        kind = INDEPENDENT
    num_seeds = max(1, len(seeds))
    if a.log and b.log:
        one = ratio(value, error, kind, num_seeds)
    else:
        one = Effect(value, error, kind, num_seeds, a.unit)
    return replace(one, degrees=None if math.isinf(degrees) else degrees, scope=a.scope)


def over_seeds(effects: Sequence[Effect], kind: str = SEEDS) -> Effect | None:
    """The mean of one effect over repeated runs, with the error of their spread, said to be of a
    kind; one effect stays as it is, none is None."""
    from stages.methods import decisions

    if len(effects) < 2:
        return effects[0] if effects else None
    logs = [one.log[0] for one in effects if one.log]
    whole = len(logs) == len(effects)
    mean, error, _ = decisions.over_seeds(logs if whole else [one.value for one in effects])
    known = [one.error for one in effects if one.error is not None]
    beside = math.hypot(*known) / len(effects) if len(known) == len(effects) else None
    more = {"beside": beside, "against": effects[0].against}
    more |= {"scope": "" if kind == TRAININGS else effects[0].scope}
    if whole:
        return replace(ratio(mean, error, kind, len(effects)), **more)
    return replace(Effect(mean, error, kind, len(effects), effects[0].unit), **more)


def repeating(findings: Iterable[Finding], kind: str) -> Iterator[Finding]:
    """Findings whose errors over seeds are of a kind, where they do not tell themselves."""
    for finding in findings:
        if finding.effect is not None and finding.effect.error_kind == SEEDS:
            scope = "" if kind == TRAININGS else finding.effect.scope
            finding = replace(finding, effect=replace(finding.effect, error_kind=kind, scope=scope))
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


def either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings have each verdict."""
    counts = dict.fromkeys((HOLDS, FAILS, OPEN, TIMED, ABSENT), 0)
    for finding in findings:
        counts[finding.verdict] += 1
    return counts
