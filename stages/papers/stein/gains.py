"""What a gamma can gain, by SteinDiff's Theorem 4.8: its claims and its part of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.pages.figures import Axes, Curve, Figure, plot
from stages.pages.findings import (
    LOWER,
    ONE_NETWORK,
    Claim,
    Finding,
    mean_with_error,
    ratio,
    verdict,
)
from stages.pages.page import Section, folded, table
from stages.settings.solvers import OWN

if TYPE_CHECKING:
    from stages.artifacts.schedule import Schedule
    from stages.pages.findings import Effect

BOTH = ("full", "stein", "beyond")
GAINED = Claim(
    "SteinDiff",
    "Steps with a calibrated gamma leave less error than the solver's own (Theorem 4.8)",
    "(1 - rho) of it",
    BOTH,
)
LIMIT = {
    target: Claim(
        "SteinDiff",
        f"What gammas can gain falls to 0 as steps shrink (corollary of 4.8), {target} target",
        "rho to 0",
        BOTH,
    )
    for target in ("matched", "literal")
}


def findings(schedules: Sequence[Schedule]) -> Iterator[Finding]:
    """What calibrations say of the theorem and its corollary; every claim once."""
    of_models = gains(schedules)
    yield _gained(of_models)
    for target, claim in LIMIT.items():
        yield _limit(of_models, claim, target)


Gains = dict[tuple[str, str, str], dict[int, dict[str, dict[str, list[float]]]]]


def gains(schedules: Sequence[Schedule]) -> Gains:
    """By method, solver and grid, what gammas gain at every NFE; solvers that repeat another's
    numbers, as UniPC does DPM-Solver++ 2M's, are left out."""
    found: Gains = {}
    for schedule in schedules:
        facts = schedule.description
        if "gains" in facts:
            which = (facts["method"], facts["solver"], facts["grid"])
            found.setdefault(which, {})[facts["nfe"]] = facts["gains"]
    kept: Gains = {}
    for which, by_nfe in found.items():
        if by_nfe not in kept.values():
            kept[which] = dict(sorted(by_nfe.items()))
    return kept


def share(columns: Mapping[str, Sequence[float]]) -> float:
    """Of the error of all steps together that the best gammas take away."""
    return 1 - math.fsum(columns["predicted"]) / math.fsum(columns["plain"])


def _gained(of_models: Gains) -> Finding:
    """Measured error over the plain step's, on images that the gammas have not seen."""
    rows: list[tuple[Any, ...]] = [("solver", "NFE", "plain", "predicted", "measured")]
    logs = []
    for (_, solver, _), by_nfe in of_models.items():
        for nfe, targets in by_nfe.items():
            columns = targets["matched"]
            if "measured" in columns:
                sums = [math.fsum(columns[name]) for name in ("plain", "predicted", "measured")]
                rows.append((solver, nfe, *sums))
                logs.append(math.log(sums[2] / sums[0]))
    if not logs:
        return Finding(GAINED)
    mean, error = mean_with_error(logs)
    effect = _spread(mean, error, len(logs), "calibrations")
    what = (
        "mean squared error to the matched target, all steps together, gammas found on other "
        "images, against the solver's own steps"
    )
    return Finding(GAINED, what, effect, verdict(effect, LOWER), "", tuple(rows))


def _spread(mean: float, error: float | None, count: int, of: str) -> Effect:
    """A log ratio with the error of so few values: Student's."""
    kind = "none" if error is None else f"spread over {count} {of}"
    degrees = None if error is None else count - 1
    return replace(ratio(mean, error, kind), scope=ONE_NETWORK, degrees=degrees)


def _limit(of_models: Gains, claim: Claim, target: str) -> Finding:
    """The share that gammas can take away, at the most evaluations against the fewest."""
    rows: list[tuple[Any, ...]] = [("solver", "grid", "NFE", "share that gammas can take away")]
    logs = []
    for (_, solver, grid), by_nfe in of_models.items():
        if grid == OWN:  # whose steps do not shrink alike
            continue
        shares = {nfe: max(share(targets[target]), 1e-12) for nfe, targets in by_nfe.items()}
        rows += [(solver, grid, nfe, value) for nfe, value in shares.items()]
        if len(shares) > 1:
            ends = (min(shares), max(shares))
            logs.append(math.log(shares[ends[1]]) - math.log(shares[ends[0]]))
    if not logs:
        return Finding(claim)
    mean, error = mean_with_error(logs)
    effect = _spread(mean, error, len(logs), "solvers")
    what = f"share of the error to the {target} target, at the most evaluations over the fewest"
    return Finding(claim, what, effect, verdict(effect, LOWER), "", tuple(rows))


def section(schedules: Sequence[Schedule]) -> Section:
    text = (
        "<p>SteinDiff's Theorem 4.8: with u the residual of a step and e its error to the step's "
        "target, a gamma leaves (1 - rho) E|e|² of E|e|², rho = E&lt;u,e&gt;² / (E|u|² E|e|²). "
        "<b>Measured</b> is the error with gammas that were found on other images. The "
        "<b>matched</b> target (ours) is the same path's next point; of the <b>literal</b> one, "
        "the clean image, the share that can be gained does not fall as steps shrink, because the "
        "step then stays where it is: it measures the way to the image, not an error of the "
        "solver.</p>"
    )
    figures, rows = (
        [],
        [("solver", "grid", "NFE", "target", "plain", "predicted", "measured", "share")],
    )
    for (_, solver, grid), by_nfe in gains(schedules).items():
        for target in ("matched", "literal"):
            for nfe, targets in by_nfe.items():
                columns = targets[target]
                sums = [sum(columns[n]) if n in columns else None for n in rows[0][4:7]]
                rows.append((solver, grid, nfe, target, *sums, share(columns)))
        figures.append(_rho(solver, grid, by_nfe))
    tables = [folded("Errors of all steps together, in numbers", table(rows))]
    return Section("Corrections: what a gamma can gain", text, tables, (), (), (), figures)


def _rho(solver: str, grid: str, by_nfe: Mapping[int, Any]) -> Figure:
    curves = []
    for nfe, targets in by_nfe.items():
        columns = targets["matched"]
        steps = [(k + 1) / len(columns["rho"]) for k in range(len(columns["rho"]))]
        curves.append(Curve(f"NFE {nfe}, predicted", steps, columns["rho"]))
        if "measured" in columns:
            pairs = zip(columns["measured"], columns["plain"], strict=True)
            seen = [1 - m / p if p else 0.0 for m, p in pairs]
            look = {"like": len(curves) - 1}
            curves.append(Curve(f"NFE {nfe}, on other images", steps, seen, **look))
    stem = f"gained-{solver}-{grid.split()[0].replace('_', '-')}"
    caption = (
        f"Share of a step's squared error that its gamma takes away, matched target: {solver}, "
        f"grid {grid}."
    )
    return plot(stem, caption, curves, Axes("share of the steps done", "rho"))
