"""What a gamma can gain, by SteinDiff's Theorem 4.8: its claims and its part of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.pages.figures import Axes, Curve, Figure, plot
from stages.pages.findings import (
    LOWER,
    NETWORKS,
    ONE_NETWORK,
    Claim,
    Finding,
    ratio,
    verdict,
)
from stages.pages.page import Section, folded, table
from stages.settings.solvers import OWN

if TYPE_CHECKING:
    from stages.artifacts.schedule import Schedule
    from stages.methods.protocol import Influence
    from stages.pages.findings import Effect

    Weighted = tuple[float, Influence]  # a derivative, and what it is taken in

BOTH = ("full", "stein", "beyond")
GAINED = Claim(
    "SteinDiff",
    "Steps with a calibrated gamma leave less error than the solver's own (Theorem 4.8)",
    "(1 - rho) of it",
    BOTH,
    "gain",
)
LIMIT = {
    target: Claim(
        "SteinDiff",
        f"What gammas can gain falls to 0 as steps shrink (corollary of 4.8), {target} target",
        "rho to 0",
        BOTH,
        f"{target} to 0",
    )
    for target in ("matched", "literal")
}
NOTE = "error: of the calibration's images, the same for all solvers and evaluations"


def findings(schedules: Sequence[Schedule]) -> Iterator[Finding]:
    """What calibrations say of the theorem and its corollary; every claim once."""
    of_models = gains(schedules)
    yield _gained(of_models)
    for target, claim in LIMIT.items():
        yield _limit(of_models, claim, target)


@dataclass(frozen=True)
class Gained:
    """What gammas gain at an NFE. targets: by target and column step by step. contributions: by
    target and column what images contribute to the sum over steps."""

    targets: Mapping[str, Mapping[str, Sequence[float]]]
    contributions: Mapping[str, Mapping[str, Influence]]

    def sums(self, target: str) -> dict[str, float]:
        """By column, the squared error of all steps together."""
        return {name: math.fsum(column) for name, column in self.targets[target].items()}

    def share(self, target: str) -> float:
        """Of that error, what the best gammas take away."""
        sums = self.sums(target)
        return 1 - sums["predicted"] / sums["plain"]

    def log_left(self) -> tuple[float, list[Weighted]]:
        """Logarithm of the measured error over the plain one's, matched target, and its
        derivatives."""
        sums, of = self.sums("matched"), self.contributions["matched"]
        log = math.log(sums["measured"] / sums["plain"])
        signs = {"measured": 1, "plain": -1}
        return log, [(sign / sums[name], of[name]) for name, sign in signs.items()]

    def log_share(self, target: str) -> tuple[float, list[Weighted]]:
        """Logarithm of `share` and its derivatives."""
        sums, of, share = self.sums(target), self.contributions[target], self.share(target)
        share = max(share, 1e-12)
        slopes = {
            "predicted": -1 / sums["plain"] / share,
            "plain": sums["predicted"] / sums["plain"] ** 2 / share,
        }
        return math.log(share), [(slope, of[name]) for name, slope in slopes.items()]


Gains = dict[tuple[str, str, str], dict[int, Gained]]


def gains(schedules: Sequence[Schedule]) -> Gains:
    """By method, solver and grid, what gammas gain at every NFE; solvers that repeat another's
    numbers, as UniPC does DPM-Solver++ 2M's, are left out."""
    found: Gains = {}
    for schedule in schedules:
        facts = schedule.description
        if "gains" in facts:
            which = (facts["method"], facts["solver"], facts["grid"])
            gained = Gained(facts["gains"], schedule.contributions())
            found.setdefault(which, {})[facts["nfe"]] = gained
    kept: Gains = {}
    for which, by_nfe in found.items():
        numbers = {nfe: one.targets for nfe, one in by_nfe.items()}
        if numbers not in [{n: one.targets for n, one in of.items()} for of in kept.values()]:
            kept[which] = dict(sorted(by_nfe.items()))
    return kept


def _gained(of_models: Gains) -> Finding:
    """Measured error over the plain step's, on images that the gammas have not seen."""
    rows: list[tuple[Any, ...]] = [("solver", "NFE", "plain", "predicted", "measured")]
    logs = []
    for (_, solver, _), by_nfe in of_models.items():
        for nfe, gained in by_nfe.items():
            sums = gained.sums("matched")
            if "measured" in sums:
                columns = (sums[name] for name in ("plain", "predicted", "measured"))
                rows.append((solver, nfe, *columns))
                logs.append(gained.log_left())
    if not logs:
        return Finding(GAINED)
    effect = _mean(logs)
    what = (
        "mean squared error to the matched target, all steps together, gammas found on other "
        f"images, against the solver's own steps; mean over {_listed(row[0] for row in rows[1:])}"
    )
    return Finding(GAINED, what, effect, verdict(effect, LOWER), NOTE, tuple(rows))


def _mean(logs: Sequence[tuple[float, Sequence[Weighted]]]) -> Effect:
    """The mean of logarithms of the same solvers on the same images: the images are drawn, the
    solvers are named."""
    from stages.methods.effects import INDEPENDENT, PAIRED, influenced

    terms = [(slope / len(logs), one) for _, of in logs for slope, one in of]
    errors = influenced(terms)
    kind = PAIRED if len(errors) == 1 else INDEPENDENT
    networks = {one.network for _, one in terms}
    mean = math.fsum(log for log, _ in logs) / len(logs)
    scope = ONE_NETWORK if len(networks) == 1 else NETWORKS
    return replace(ratio(mean, math.hypot(*errors), kind), scope=scope)


def _listed(solvers: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(solvers))


def _limit(of_models: Gains, claim: Claim, target: str) -> Finding:
    """The share that gammas can take away, at the most evaluations against the fewest."""
    rows: list[tuple[Any, ...]] = [("solver", "grid", "NFE", "share that gammas can take away")]
    logs, solvers = [], []
    for (_, solver, grid), by_nfe in of_models.items():
        if grid == OWN:  # whose steps do not shrink alike
            continue
        rows += [(solver, grid, nfe, one.share(target)) for nfe, one in by_nfe.items()]
        if len(by_nfe) > 1:
            (first, low), (last, high) = (by_nfe[n].log_share(target) for n in _ends(by_nfe))
            logs.append((last - first, [*high, *((-slope, one) for slope, one in low)]))
            solvers.append(solver)
    if not logs:
        return Finding(claim)
    effect = _mean(logs)
    what = (
        f"share of the error to the {target} target, at the most evaluations over the fewest; mean "
        f"over {_listed(solvers)}"
    )
    return Finding(claim, what, effect, verdict(effect, LOWER), NOTE, tuple(rows))


def _ends(by_nfe: Mapping[int, Any]) -> tuple[int, int]:
    return min(by_nfe), max(by_nfe)


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
        for target in LIMIT:
            for nfe, gained in by_nfe.items():
                sums = (gained.sums(target).get(name) for name in rows[0][4:7])
                rows.append((solver, grid, nfe, target, *sums, gained.share(target)))
        figures.append(_rho(solver, grid, by_nfe))
    tables = [folded("Errors of all steps together, in numbers", table(rows))]
    return Section("Corrections: what a gamma can gain", text, tables, (), (), (), figures)


def _rho(solver: str, grid: str, by_nfe: Mapping[int, Gained]) -> Figure:
    curves = []
    for nfe, gained in by_nfe.items():
        columns = gained.targets["matched"]
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
