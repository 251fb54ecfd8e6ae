"""SteinDiff's claims, from scores over NFE by solver and correction, and steps' singular values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.pages.curves import PLAIN, collect
from stages.pages.findings import (
    BOUND,
    HIGHER,
    HOLDS,
    OPEN,
    Claim,
    Effect,
    Finding,
    change,
    compared,
    difference,
    paired,
    repeating,
    verdict,
)

if TYPE_CHECKING:
    from stages.artifacts.lipschitz import Lipschitz
    from stages.artifacts.scores import Row
    from stages.pages.curves import Which
    from stages.pages.made import Made

NO_NUMBER = "no number stated here"
FEW = range(5, 11)
SOLVERS = {"dpmpp2m": "DPM-Solver++ 2M", "unipc": "UniPC"}
METRIC = "fid"
BETTER = {
    solver: Claim(
        "SteinDiff", f"Better FID at 5 to 10 evaluations for {word}", NO_NUMBER, ("full", "stein")
    )
    for solver, word in SOLVERS.items()
}
LITERAL = {
    solver: Claim(
        "SteinDiff", f"The same with the paper's literal form for {word}", NO_NUMBER, ("stein",)
    )
    for solver, word in (("dpmpp2m", SOLVERS["dpmpp2m"]),)
}
FADES = {
    solver: Claim(
        "SteinDiff", f"The gain fades with more evaluations for {word}", NO_NUMBER, ("stein",)
    )
    for solver, word in SOLVERS.items()
}
PEAKS = Claim(
    "SteinDiff",
    "Singular values of large steps peak above 1",
    "above 1",
    ("full", "stein"),
)


def findings(
    scores: Mapping[str, Sequence[Row]], lipschitz: Sequence[Lipschitz]
) -> Iterator[Finding]:
    """What curves over NFE and singular values say; every claim once."""
    curves = {which: m[METRIC] for which, m in collect(scores).items() if METRIC in m}
    for solver, claim in BETTER.items():
        yield _better(curves, claim, solver, "calibrated")
    for solver, claim in LITERAL.items():
        yield _better(curves, claim, solver, "literal")
    for solver, claim in FADES.items():
        yield _fades(curves, claim, solver)
    yield _peaks(lipschitz)


def _pair(curves: Mapping[Which, Any], solver: str, correction: str) -> tuple[Which, Which] | None:
    """The corrected curve of a solver and its plain one."""
    for which in curves:
        plain = replace(which, correction=PLAIN)
        if (which.solver, which.correction) == (solver, correction) and plain in curves:
            return which, plain
    return None


def _better(curves: Mapping[Which, Any], claim: Claim, solver: str, correction: str) -> Finding:
    pair = _pair(curves, solver, correction)
    if pair is None:
        return Finding(claim)
    ours, theirs = pair
    what = f"FID with correction {correction} against plain, grid {ours.grid}, {ours.model}"
    note = (
        "noise-matched form with stored coefficients, not the paper's literal one"
        if correction == "calibrated"
        else ""
    )
    few = [
        _said({n: by for n, by in curves[which].items() if n in FEW}) for which in (ours, theirs)
    ]
    return compared(claim, what, *few, note=note)


def _fades(curves: Mapping[Which, Any], claim: Claim, solver: str) -> Finding:
    """The change at the most evaluations minus that at the fewest from 5 on."""
    pair = _pair(curves, solver, "calibrated")
    if pair is None:
        return Finding(claim)
    ours, theirs = (curves[which] for which in pair)
    nfes = sorted(nfe for nfe in set(ours) & set(theirs) if nfe >= FEW[0])
    if len(nfes) < 2:
        return Finding(claim)
    first, last = (
        change(paired(_said({n: ours[n]}), _said({n: theirs[n]}))) for n in nfes[:: len(nfes) - 1]
    )
    effect = difference(last, first)
    if effect is None:
        return Finding(claim)
    what = f"relative change of FID at {nfes[-1]} minus that at {nfes[0]} evaluations"
    if verdict(first, "lower") != HOLDS:
        return Finding(claim, what, effect, OPEN, f"no gain at {nfes[0]} evaluations to fade")
    return Finding(claim, what, effect, verdict(effect, HIGHER))


def _peaks(lipschitz: Sequence[Lipschitz]) -> Finding:
    """The largest singular value found, of the fewest evaluations; a lower bound."""
    if not lipschitz:
        return Finding(PEAKS)
    artifact = min(lipschitz, key=lambda one: one.description["nfe"])
    facts, rows = artifact.description, artifact.load()
    largest = max(rows, key=lambda row: row.maximum)
    effect = Effect(largest.maximum, None, BOUND)
    what = (
        f"largest singular value of a step of {facts['solver']} at {facts['nfe']} evaluations, "
        f"at t = {largest.t:.2g}"
    )
    above = sum(row.maximum > 1 for row in rows)
    note = f"{above} of {len(rows)} steps above 1; the power method gives a lower bound"
    found = verdict(effect, HIGHER, 1.0)
    heading = ("step at t", "mean", "maximum")
    return Finding(
        PEAKS,
        what,
        effect,
        found if found == HOLDS else OPEN,
        note,
        (heading, *((row.t, row.mean, row.maximum) for row in rows)),
    )


def _said(by_nfe: Mapping[int, Any]) -> dict[str, Any]:
    return {f"NFE {nfe}": by_seed for nfe, by_seed in sorted(by_nfe.items())}


def claimed(made: Made) -> Iterator[Finding]:
    """What a run says of SteinDiff's claims."""
    found = findings(made.over_nfe, list(made.of("lipschitz").values()))
    yield from repeating(found, made.repeated(made.over_nfe))
