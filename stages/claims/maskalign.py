"""MaskAlign's claims, from scores over training steps and stability gaps; what a step costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stages.claims.findings import (
    LOWER,
    BySeed,
    Claim,
    Effect,
    Finding,
    compared,
    details,
    over_seeds,
    paired,
    verdict,
)

if TYPE_CHECKING:
    from stages.diagnosis import Diagnosis
    from stages.scores import Row

METHOD, METRIC = "MaskAlign", "fid"
OWN, BASELINES = "maskalign", {"sit": "SiT", "repa": "REPA", "reg": "REG"}
NO_NUMBER = "no number stated here"
RECIPES = ("full", "train")
FEWER = {
    name: Claim(METHOD, f"Fewer steps to a given FD than {word}", NO_NUMBER, RECIPES)
    for name, word in BASELINES.items()
}
BETTER = {
    name: Claim(
        METHOD,
        f"Better FD at equal steps than {word}",
        "FID 2.67 against 3.01" if name == "reg" else NO_NUMBER,
        RECIPES,
    )
    for name, word in BASELINES.items()
}
GAP = Claim(METHOD, "Smaller stability gap than REG", "13.8 %", RECIPES)
PARTS = {
    "maskalign-mix0": Claim(METHOD, "Mixing is needed", "FID 2.67 against 3.54", ("train",)),
    "maskalign-ratio0": Claim(METHOD, "Masking is needed", "FID 2.67 against 3.20", ("train",)),
}
COST = Claim(METHOD, "A step is cheaper than REG's", "0.883 of the time", RECIPES)
# By the name of an evaluation, then training step, then seed.
Curves = Mapping[str, Mapping[int, BySeed]]


def findings(
    scores: Mapping[str, Sequence[Row]], diagnoses: Mapping[str, Diagnosis]
) -> Iterator[Finding]:
    """What scores over training steps and stability gaps say; every claim once.

    scores: single sets of samples over training steps, by node.
    """
    curves = _curves(scores)
    for name, claim in FEWER.items():
        yield _fewer(claim, curves.get(OWN, {}), curves.get(name, {}))
    for name, claim in BETTER.items():
        yield _better(claim, curves.get(OWN, {}), curves.get(name, {}), BASELINES[name])
    yield _gap(diagnoses)
    for name, claim in PARTS.items():
        word = "without mixing" if name.endswith("mix0") else "without masking"
        yield _better(claim, curves.get(OWN, {}), curves.get(name, {}), word)


def _curves(scores: Mapping[str, Sequence[Row]]) -> Curves:
    found: dict[str, dict[int, dict[int | None, Any]]] = {}
    for node, rows in scores.items():
        of = found.setdefault(node.partition("/")[2], {})
        for row in rows:
            if row.score.metric == METRIC:
                of.setdefault(row.training_step, {})[row.seed] = row.score
    return found


def _better(
    claim: Claim, ours: Mapping[int, BySeed], theirs: Mapping[int, BySeed], word: str
) -> Finding:
    """FD at the last step that both have; all steps as details."""
    steps = sorted(set(ours) & set(theirs))
    if not steps:
        return Finding(claim)
    last = steps[-1]
    found = compared(
        claim, f"FD against {word} at step {last}", {last: ours[last]}, {last: theirs[last]}
    )
    every = paired(*({f"step {s}": by[s] for s in steps} for by in (ours, theirs)))
    return replace(found, details=details(every)) if found.effect else found


def _fewer(claim: Claim, ours: Mapping[int, BySeed], theirs: Mapping[int, BySeed]) -> Finding:
    """Our FD one checkpoint before the last common step against theirs at it: if it is not above,
    we were there in fewer steps."""
    steps = sorted(set(ours) & set(theirs))
    if len(steps) < 2:
        return Finding(claim)
    before, last = steps[-2:]
    what = f"FD at step {before} against theirs at step {last}"
    pair = ({what: ours[before]}, {what: theirs[last]})
    return compared(claim, what, *pair, note=_reached(ours, theirs[last]))


def _reached(ours: Mapping[int, BySeed], target: BySeed) -> str:
    """At which step our mean FD passes the target, by interpolation in its logarithm."""
    if min(map(_mean, (target, *ours.values()))) <= 0:
        return ""
    goal = math.log(_mean(target))
    curve = [(step, math.log(_mean(by_seed))) for step, by_seed in sorted(ours.items())]
    for (a, at_a), (b, at_b) in pairwise(curve):
        if at_b <= goal <= at_a:
            share = (at_a - goal) / (at_a - at_b) if at_a > at_b else 0.0
            return f"reached at about step {round(a + share * (b - a))}"
    first = curve[0]
    return f"reached before step {first[0]}" if first[1] <= goal else "not reached in this run"


def _mean(by_seed: BySeed) -> float:
    return math.fsum(score.value for score in by_seed.values()) / len(by_seed)


def _gap(diagnoses: Mapping[str, Diagnosis]) -> Finding:
    """Gap of MaskAlign minus that of REG at the last step that both have, seed by seed."""
    gaps: dict[str, dict[str, Mapping[int, Any]]] = {}
    for node, artifact in diagnoses.items():
        name, _, seed = node.partition("/")[2].partition("-seed")
        gaps.setdefault(name, {})[seed] = {one.step: one for one in artifact.load()}
    ours, theirs = gaps.get(OWN, {}), gaps.get("reg", {})
    effects, rows = [], [("seed", "step", "MaskAlign", "REG", "difference", "its error")]
    for seed in sorted(set(ours) & set(theirs)):
        steps = set(ours[seed]) & set(theirs[seed])
        if not steps:
            continue
        a, b = (by[seed][max(steps)] for by in (ours, theirs))
        known = a.gap_error is not None and b.gap_error is not None
        error = math.hypot(a.gap_error, b.gap_error) if known else None
        kind = "jackknife" if known else "none"
        effects.append(Effect(a.gap - b.gap, error, kind))
        rows.append((seed or "the run's own", max(steps), a.gap, b.gap, a.gap - b.gap, error))
    effect = over_seeds(effects)
    if effect is None:
        return Finding(GAP)
    what = (
        "difference of L_align(masked) - L_align(full) at equal steps; MaskAlign "
        f"{rows[-1][2]:.3g}, REG {rows[-1][3]:.3g} at step {rows[-1][1]}"
    )
    note = "" if effect.num_seeds > 1 else "error over blocks of images, of one training each"
    return Finding(GAP, what, effect, verdict(effect, LOWER), note, tuple(rows))


# --- time, which is no part of an artifact --------------------------------------------------------


def cost(seconds: Mapping[str, Sequence[float]]) -> Finding:
    """Median seconds a step against REG's; seconds: of every logging window, by node."""
    ours, theirs = seconds.get(f"train/{OWN}", ()), seconds.get("train/reg", ())
    if len(ours) < 2 or len(theirs) < 2:
        return Finding(COST)
    ratio = statistics.median(ours) / statistics.median(theirs)
    error = ratio * math.hypot(_relative_error(ours), _relative_error(theirs))
    effect = Effect(100 * (ratio - 1), 100 * error, "windows", unit="%")
    what = (
        f"median seconds a step {statistics.median(ours):.4g} against "
        f"{statistics.median(theirs):.4g}, a ratio of {ratio:.3f}"
    )
    note = "error over logging windows; the machine was shared with other nodes"
    return Finding(COST, what, effect, verdict(effect, LOWER), note)


def _relative_error(values: Sequence[float]) -> float:
    """Standard error of a median over itself, from the quartiles, as of a normal distribution."""
    low, middle, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values)) / middle
