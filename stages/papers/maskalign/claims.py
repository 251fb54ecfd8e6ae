"""MaskAlign's claims, from scores over training steps and stability gaps; what a step costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stages.pages.curves import by_training
from stages.pages.findings import (
    BOUND,
    FAILS,
    HOLDS,
    LOWER,
    NETWORKS,
    OPEN,
    TIMED,
    TRAININGS,
    BySeed,
    Claim,
    Effect,
    Finding,
    change,
    compared,
    details,
    over_seeds,
    paired,
    ratio,
    repeating,
    verdict,
)
from stages.pages.page import with_error

if TYPE_CHECKING:
    from pipeline.artifact import Manifest
    from stages.artifacts.diagnosis import Diagnosis, Measured
    from stages.artifacts.scores import Row
    from stages.methods.protocol import Score
    from stages.pages.made import Made

METHOD, METRIC = "MaskAlign", "fid"
OURS, ANCESTORS = "maskalign", {"sit": "SiT", "repa": "REPA", "reg": "REG"}
NO_NUMBER = "no number stated here"
RECIPES = ("full", "train")
FEWER = {
    name: Claim(
        METHOD, f"Fewer steps to a given FD than {word}", NO_NUMBER, RECIPES, f"steps {word}"
    )
    for name, word in ANCESTORS.items()
}
BETTER = {
    name: Claim(
        METHOD,
        f"Better FD at equal steps than {word}",
        "FID 2.67 against 3.01" if name == "reg" else NO_NUMBER,
        RECIPES,
        f"FD {word}",
    )
    for name, word in ANCESTORS.items()
}
GAP = Claim(METHOD, "Smaller stability gap than REG", "13.8 % of REG's", RECIPES, "gap")
PARTS = {
    ("maskalign-mix0", "without mixing"): Claim(
        METHOD, "Mixing is needed", "FID 2.67 against 3.54", ("train",), "mixing"
    ),
    ("maskalign-ratio0", "without masking"): Claim(
        METHOD, "Masking is needed", "FID 2.67 against 3.20", ("train",), "masking"
    ),
}
COST = Claim(METHOD, "A step is cheaper than REG's", "0.883 of the time", RECIPES, "cost")
# Where a curve passes a score, among its checkpoints.
BEFORE, BETWEEN, NEVER, UNKNOWN = "at most", "about", "more than", "unknown"
COMPARED = (f"train/{OURS}", "train/reg")
# By the name of an evaluation, then training step, then seed.
Curves = Mapping[str, Mapping[int, BySeed]]


def findings(
    scores: Mapping[str, Sequence[Row]], diagnoses: Mapping[str, Diagnosis]
) -> Iterator[Finding]:
    """What scores over training steps and stability gaps say; every claim once.

    scores: single sets of samples over training steps, by node.
    """
    curves = over_steps(scores)
    ours = curves.get(OURS, {})
    for name, claim in FEWER.items():
        yield _fewer(claim, ours, curves.get(name, {}))
    for name, claim in BETTER.items():
        yield _better(claim, ours, curves.get(name, {}), ANCESTORS[name])
    yield _gap(diagnoses)
    for (name, word), claim in PARTS.items():
        yield _better(claim, ours, curves.get(name, {}), word)


def over_steps(scores: Mapping[str, Sequence[Row]]) -> Curves:
    """The Fréchet distance of every single set, by the name of its evaluation."""
    curves: dict[str, dict[int, dict[int | None, Any]]] = {}
    for node, rows in scores.items():
        by_step = curves.setdefault(node.partition("/")[2], {})
        for row in rows:
            if row.score.metric == METRIC:
                by_step.setdefault(row.training_step, {})[row.seed] = row.score
    return curves


def _better(
    claim: Claim, ours: Mapping[int, BySeed], theirs: Mapping[int, BySeed], word: str
) -> Finding:
    """FD at the last step that both have; all steps as details."""
    steps = sorted(set(ours) & set(theirs))
    if not steps:
        return Finding(claim)
    last = steps[-1]
    finding = compared(
        claim, f"FD against {word} at step {last}", {last: ours[last]}, {last: theirs[last]}
    )
    every = paired(*({f"step {s}": by[s] for s in steps} for by in (ours, theirs)))
    return replace(finding, details=details(every)) if finding.effect else finding


def _fewer(claim: Claim, ours: Mapping[int, BySeed], theirs: Mapping[int, BySeed]) -> Finding:
    """By how many per cent sooner or later we reach their FD of the last step that both have.

    Between our checkpoints the step is interpolated. Before the first or past the last it is a
    bound, of which FD decides: ours there (at the last common step) against theirs. Seeds of which
    not all are of one kind decide nothing.
    """
    steps = sorted(set(ours) & set(theirs))
    if len(steps) < 2:
        return Finding(claim)
    last = steps[-1]
    reached = {seed: _reached(ours, seed, goal) for seed, goal in theirs[last].items()}
    reached = {seed: one for seed, one in reached.items() if one is not None}
    between = [one for one in reached.values() if one.side == BETWEEN]
    if not reached:
        return Finding(claim)
    if between:
        effect = over_seeds([_sooner(one, last) for one in between])
        about = f"about {last * (1 + effect.value / 100):.0f}"
        said = verdict(effect, LOWER) if len(between) == len(reached) else OPEN
    else:
        effect, about, said = _bounded(list(reached.values()), last, ours, theirs)
    note, instead = "interpolated in log FD between checkpoints", ""
    if others := [
        f"seed {one.seed}: {one.words}" for one in reached.values() if one not in between
    ]:
        if between:  # the interval is of these seeds alone
            instead = "; ".join(others)
        else:
            note = f"{'; '.join(others)}, a bound, decided by FD"
    what = f"steps until FD is theirs at step {last}: {about}"
    return Finding(claim, what, effect, said, note, instead=instead)


@dataclass(frozen=True)
class _Reached:
    """When a curve passes a score: at a step with its standard error, before the curve's first
    step, or not up to its last. UNKNOWN: a score is not positive, or there is but one."""

    seed: int | None
    side: str
    step: float
    error: float | None = None
    kind: str = "none"

    @property
    def words(self) -> str:
        if self.side == UNKNOWN:
            return "no step, for want of two positive scores"
        return f"{self.side} step {self.step:.0f}"


def _sooner(reached: _Reached, last: int) -> Effect:
    error = None if reached.error is None else 100 * reached.error / last
    change = 100 * (reached.step / last - 1)
    return Effect(change, error, reached.kind, unit="%", scope=NETWORKS)


def _bounded(
    reached: Sequence[_Reached], last: int, ours: Mapping[int, BySeed], theirs: Mapping[int, BySeed]
) -> tuple[Effect, str, str]:
    """Effect, words and verdict where no curve passes the goal between its checkpoints."""
    step = max(one.step for one in reached)
    effect = Effect(100 * (step / last - 1), None, BOUND, unit="%")
    sides = {one.side for one in reached}
    if len(sides) > 1 or sides == {UNKNOWN}:
        return replace(effect, error_kind="none"), "not known", OPEN
    (side,) = sides
    at = {one.seed: ours[int(one.step) if side == BEFORE else last] for one in reached}
    mine = {seed: by_seed[seed] for seed, by_seed in at.items() if seed in by_seed}
    fd = verdict(change(paired({last: mine}, {last: theirs[last]})), LOWER)
    shows = fd == HOLDS and step < last if side == BEFORE else fd == FAILS
    return effect, f"{side} {step:.0f}", (fd if shows else OPEN)


def _reached(ours: Mapping[int, BySeed], seed: int | None, goal: Score) -> _Reached | None:
    """When our curve of a seed passes a score, linear in its logarithm, with the error of the goal
    and of the checkpoints around. None where we have no scores of the seed."""
    from stages.methods.effects import combined

    curve = [(step, ours[step][seed]) for step in sorted(ours) if seed in ours[step]]
    if not curve:
        return None
    if len(curve) < 2 or min(score.value for _, score in (*curve, (0, goal))) <= 0:
        return _Reached(seed, UNKNOWN, curve[-1][0])
    logs = [(step, math.log(score.value), score) for step, score in curve]
    wanted = math.log(goal.value)
    passing = (pair for pair in pairwise(logs) if pair[1][1] <= wanted <= pair[0][1])
    bracket = next((pair for pair in passing if pair[1][1] < pair[0][1]), None)
    if logs[0][1] < wanted or (bracket is None and logs[0][1] == wanted):
        return _Reached(seed, BEFORE, logs[0][0])
    if bracket is None:
        return _Reached(seed, NEVER, logs[-1][0])
    (a, at_a, first), (b, at_b, second) = bracket
    steps_a_log = (b - a) / (at_a - at_b)
    reached = a + (at_a - wanted) * steps_a_log
    share = (at_a - wanted) / (at_a - at_b)
    slopes = (((1 - share), first), (share, second), (-1, goal))
    terms = [(steps_a_log * slope / score.value, score) for slope, score in slopes]
    found = combined(terms)
    return _Reached(seed, BETWEEN, reached, found.error, found.kind)


def _gap(diagnoses: Mapping[str, Diagnosis]) -> Finding:
    """Gap of MaskAlign minus that of REG at the last step that both have, seed by seed; beside it
    their ratio, which the paper gives and which has no logarithm where a gap is not positive."""
    gaps = by_training(
        {node: {one.step: one for one in artifact.load()} for node, artifact in diagnoses.items()}
    )
    ours, theirs = gaps.get(OURS, {}), gaps.get("reg", {})
    effects, pairs, rows = [], [], [("seed", "step", "MaskAlign", "REG", "difference", "its error")]
    for seed in sorted(set(ours) & set(theirs)):
        steps = set(ours[seed]) & set(theirs[seed])
        if not steps:
            continue
        a, b = (by[seed][max(steps)] for by in (ours, theirs))
        known = a.gap_error is not None and b.gap_error is not None
        error = math.hypot(a.gap_error, b.gap_error) if known else None
        kind = "jackknife" if known else "none"
        pairs.append((a, b))
        effects.append(Effect(a.gap - b.gap, error, kind, scope=NETWORKS))
        rows.append(
            (
                seed.removeprefix("-seed") or "the run's own",
                max(steps),
                a.gap,
                b.gap,
                a.gap - b.gap,
                error,
            )
        )
    effect = over_seeds(effects, TRAININGS)
    if effect is None:
        return Finding(GAP)
    what = (
        "difference of L_align(masked) - L_align(full) at equal steps; MaskAlign "
        f"{statistics.fmean(row[2] for row in rows[1:]):.3g}, REG "
        f"{statistics.fmean(row[3] for row in rows[1:]):.3g} at step {rows[-1][1]}"
        f"{_gap_ratio(pairs)}"
    )
    note = "" if effect.num_seeds > 1 else "error over blocks of images, of one training each"
    return Finding(GAP, what, effect, verdict(effect, LOWER), note, tuple(rows))


def _gap_ratio(pairs: Sequence[tuple[Measured, Measured]]) -> str:
    """The mean of our gaps over that of REG's, in words, with one standard error to first order:
    over seeds, or over blocks of images of one."""
    ours, theirs = (statistics.fmean(one.gap for one in gaps) for gaps in zip(*pairs, strict=True))
    if theirs <= 0:
        return ""
    value, error = ours / theirs, None
    if len(pairs) > 1:
        parts = [a.gap - value * b.gap for a, b in pairs]
        error = statistics.stdev(parts) / len(parts) ** 0.5
    elif None not in (errors := [one.gap_error for one in pairs[0]]):
        error = math.hypot(errors[0], value * errors[1])
    percent = with_error(100 * value, None if error is None else 100 * error / theirs)
    return f", a ratio of {percent} %"


# --- time, which is no part of an artifact --------------------------------------------------------


def cost_elsewhere(nodes: Collection[str]) -> Finding:
    """Where a reader finds the claim about time, if both trainings are among a run's nodes."""
    if not set(COMPARED) <= set(nodes):
        return Finding(COST)
    what = "measured times differ from run to run: the effect and its verdict are in the run's part"
    return Finding(COST, what, verdict=TIMED)


def cost(seconds: Mapping[str, Sequence[float]], beside: Collection[str]) -> Finding:
    """Median seconds a step against REG's.

    seconds: of every logging window, by node. beside: the nodes that ran on the same machine during
    either training. They slow it by an amount that no error holds, so that nothing is decided then.
    """
    ours, theirs = (seconds.get(name, ()) for name in COMPARED)
    if len(ours) < 2 or len(theirs) < 2:
        return Finding(COST)
    medians = statistics.median(ours), statistics.median(theirs)
    error = math.hypot(_relative_error(ours), _relative_error(theirs))
    effect = ratio(math.log(medians[0]) - math.log(medians[1]), error, "windows")
    what = (
        f"median seconds a step {medians[0]:.4g} against {medians[1]:.4g}, a ratio of "
        f"{medians[0] / medians[1]:.3f}"
    )
    if not beside:
        note = "error over logging windows; no other node of the run shared the machine"
        return Finding(COST, what, effect, verdict(effect, LOWER), note)
    note = (
        f"inconclusive: other nodes of the run that shared the machine meanwhile ({len(beside)}) "
        "slow a step by what the error, over logging windows, does not hold; --jobs 1 runs one "
        "node at a time"
    )
    return Finding(COST, what, effect, OPEN, note)


def _relative_error(values: Sequence[float]) -> float:
    """Standard error of a median over itself, from the quartiles, as of a normal distribution."""
    low, middle, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values)) / middle


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of MaskAlign's claims."""
    about_steps = findings(made.over_steps, made.of("diagnose"))
    yield from repeating(about_steps, made.repeated(made.over_steps))
    yield cost_elsewhere(made.trainings)


def timed(seconds: Mapping[str, Sequence[float]], made: Mapping[str, Manifest]) -> list[Finding]:
    """What measured times say. seconds: of the steps of every training. made: all manifests."""
    return [cost(seconds, beside(made))]


def beside(made: Mapping[str, Manifest]) -> list[str]:
    """The nodes that ran on the same machine while one of the compared trainings did, each other
    included; made: the manifests of a run's nodes, which know when and where each was made."""
    names = set()
    for ours in (made[name] for name in COMPARED if name in made):
        names |= {
            name
            for name, other in made.items()
            if other is not ours
            and other.host.get("name") == ours.host.get("name")
            and other.started < ours.finished
            and ours.started < other.finished
        }
    return sorted(names)
