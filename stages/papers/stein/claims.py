"""SteinDiff's claims, from scores over NFE by solver and correction, and steps' singular values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.methods import table as names
from stages.pages.curves import PLAIN, by_condition, collect, of_metric
from stages.pages.findings import (
    BOUND,
    HIGHER,
    HOLDS,
    LOWER,
    OPEN,
    Claim,
    Effect,
    Finding,
    change,
    compared,
    minus,
    paired,
    repeating,
    verdict,
)
from stages.papers.stein import gains

if TYPE_CHECKING:
    from stages.artifacts.lipschitz import Lipschitz, StepRow
    from stages.artifacts.scores import Row
    from stages.pages.curves import ByNfe, Which
    from stages.pages.made import Made

NO_NUMBER = "no number stated here"
FEW = range(5, 11)
SOLVERS = {"dpmpp2m": "DPM-Solver++ 2M", "unipc": "UniPC"}
METRIC = "fid"


def _claims(
    text: str, short: str, recipes: tuple[str, ...], solvers: Iterable[str] = SOLVERS
) -> dict[str, Claim]:
    return {
        solver: Claim(
            "SteinDiff", f"{text} for {SOLVERS[solver]}", NO_NUMBER, recipes, f"{short} {solver}"
        )
        for solver in solvers
    }


BETTER = _claims("Better FID at 5 to 10 evaluations", "FID", ("full", "stein"))
LITERAL = _claims("The same with the paper's literal form", "literal", ("stein",), ("dpmpp2m",))
FADES = _claims("The gain fades with more evaluations", "fades", ("stein",))
PEAKS = Claim(
    "SteinDiff",
    "Singular values of large steps peak above 1",
    "above 1",
    ("full", "stein"),
    "peak",
)


def findings(
    scores: Mapping[str, Sequence[Row]], lipschitz: Sequence[Lipschitz]
) -> Iterator[Finding]:
    """What curves over NFE and singular values say; every claim once."""
    curves = of_metric(collect(scores), METRIC)
    for solver, claim in BETTER.items():
        yield _better(curves, claim, solver, "calibrated")
    for solver, claim in LITERAL.items():
        yield _better(curves, claim, solver, "literal")
    for solver, claim in FADES.items():
        yield _fades(curves, claim, solver)
    yield _peaks(lipschitz)


def corrected(curves: Mapping[Which, Any]) -> Iterator[tuple[Which, Which]]:
    """Every corrected curve with the plain one of its solver; a fitted solver with DPM-Solver++
    2M, or with Heun, on any grid where its levels are its own."""
    for which in curves:
        other = replace(which, correction=PLAIN)
        if other == which and which.solver in names.FITTED_SOLVERS:
            base = "heun" if names.counted_as(which.solver) == "heun" else "dpmpp2m"
            other = replace(other, solver=base)
            if names.SOLVERS[which.solver].own_levels:
                grids = (one for one in curves if replace(one, grid=other.grid) == other)
                other = next(grids, other)
        if other != which and other in curves:
            yield which, other


def _pair(
    curves: Mapping[Which, ByNfe], solver: str, correction: str
) -> tuple[Which, Which] | None:
    """The corrected curve of a solver and its plain one."""
    wanted = (solver, correction)
    pairs = (pair for pair in corrected(curves) if (pair[0].solver, pair[0].correction) == wanted)
    return next(pairs, None)


def _better(curves: Mapping[Which, ByNfe], claim: Claim, solver: str, correction: str) -> Finding:
    pair = _pair(curves, solver, correction)
    if pair is None:
        return Finding(claim)
    ours, _ = pair
    what = f"FID with correction {correction} against plain, grid {ours.grid}, {ours.model}"
    note = (
        "noise-matched form with stored coefficients, not the paper's literal one"
        if correction == "calibrated"
        else ""
    )
    few = [by_condition({n: by for n, by in curves[which].items() if n in FEW}) for which in pair]
    return compared(claim, what, *few, note=note)


def _fades(curves: Mapping[Which, ByNfe], claim: Claim, solver: str) -> Finding:
    """The ratio to plain at the most evaluations over that at the fewest from 5 on."""
    pair = _pair(curves, solver, "calibrated")
    if pair is None:
        return Finding(claim)
    ours, theirs = (curves[which] for which in pair)
    nfes = sorted(nfe for nfe in set(ours) & set(theirs) if nfe >= FEW[0])
    if len(nfes) < 2:
        return Finding(claim)
    first, last = (
        change(paired(*(by_condition({n: of[n]}) for of in (ours, theirs))))
        for n in (nfes[0], nfes[-1])
    )
    effect = minus(last, first)
    if effect is None:
        return Finding(claim)
    what = f"FID over the plain one's: the ratio at {nfes[-1]} over that at {nfes[0]} evaluations"
    if verdict(first, LOWER) != HOLDS:
        return Finding(claim, what, effect, OPEN, f"no gain at {nfes[0]} evaluations to fade")
    return Finding(claim, what, effect, verdict(effect, HIGHER))


def peak(rows: Sequence[StepRow]) -> tuple[StepRow, str]:
    """The step with the largest singular value, and how many have one above 1, of how many."""
    above = sum(row.maximum > 1 for row in rows)
    return max(rows, key=lambda row: row.maximum), f"{above} of {len(rows)}"


def _peaks(lipschitz: Sequence[Lipschitz]) -> Finding:
    """The largest singular value found, of the fewest evaluations; a lower bound."""
    if not lipschitz:
        return Finding(PEAKS)
    artifact = min(lipschitz, key=lambda one: one.description["nfe"])
    facts, rows = artifact.description, artifact.load()
    largest, above = peak(rows)
    effect = Effect(largest.maximum, None, BOUND, against=1.0)
    what = (
        f"largest singular value of a step of {facts['solver']} at {facts['nfe']} evaluations, "
        f"at t = {largest.t:.2g}"
    )
    note = f"{above} steps above 1; the power method gives a lower bound"
    said = HOLDS if verdict(effect, HIGHER) == HOLDS else OPEN
    heading = ("step at t", "mean", "maximum")
    details = (heading, *((row.t, row.mean, row.maximum) for row in rows))
    return Finding(PEAKS, what, effect, said, note, details)


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of SteinDiff's claims."""
    measured = findings(made.over_nfe, list(made.of("lipschitz").values()))
    yield from repeating(measured, made.repeated(made.over_nfe))
    yield from gains.findings(list(made.of("calibrate").values()))
