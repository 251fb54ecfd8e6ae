"""Claims of our own, from scores over NFE and grids compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.pages.curves import PLAIN, by_condition, collect, of_metric
from stages.pages.findings import (
    EXACT,
    LOWER,
    ONE_NETWORK,
    Claim,
    Effect,
    Finding,
    compared,
    ratio,
    repeating,
    verdict,
)

if TYPE_CHECKING:
    from pipeline.artifact import Manifest
    from stages.artifacts.compared_grids import ComparedGrids
    from stages.artifacts.scores import Row
    from stages.pages.made import Made

OURS = "Ours"
WHOLE = "whole"
BOTH = ("full", "stein", "beyond")
NEARER = {
    solver: Claim(
        OURS,
        f"A solver fitted to the whole trajectory, with its own levels, is nearer to the model's "
        f"own samples than {name}",
        "not in the papers",
        BOTH,
        f"rms {solver}",
    )
    for solver, name in (("dpmpp2m", "DPM-Solver++ 2M"), ("unipc", "UniPC"))
}
FID = Claim(OURS, "Its FID is better than DPM-Solver++ 2M's", "not in the papers", BOTH, "FID")
AROUND = Claim(
    OURS,
    "Gammas calibrated around it improve its FID",
    "not in the papers",
    ("stein", "beyond"),
    "gammas",
)
GRIDS = Claim(
    OURS,
    "The model's best grid is better than any of CSFlow's",
    "not in the papers",
    ("beyond",),
    "best grid",
)
PERCEPTUAL = Claim(
    OURS,
    "The best of CSFlow's grids is better than the uniform one",
    "better",
    ("beyond",),
    "CSFlow's grids",
)
COST = Claim(
    OURS,
    "All its fits together take less time than the training",
    "not in the papers",
    BOTH,
    "cost",
)
STATES = "states, one network"


def findings(
    scores: Mapping[str, Sequence[Row]], grids: Sequence[ComparedGrids]
) -> Iterator[Finding]:
    """What a run says; every claim once."""
    curves = collect(scores)
    for solver, claim in NEARER.items():
        yield _against(curves, claim, "trajectory_rms", solver)
    yield _against(curves, FID, "fid", "dpmpp2m")
    yield _against(curves, AROUND, "fid", WHOLE, "calibrated")
    yield from _of_grids(grids)


def _against(
    curves: Any, claim: Claim, metric: str, other: str, correction: str = PLAIN
) -> Finding:
    """The whole solver, or it with a correction, against a plain solver of the same model."""
    by_which = of_metric(curves, metric)
    for which, ours in by_which.items():
        if which.solver != WHOLE or which.correction != correction:
            continue
        for theirs, by_nfe in by_which.items():
            asked = replace(theirs, grid=which.grid, correction=correction)
            if asked == replace(which, solver=other) and theirs.correction == PLAIN:
                what = f"{metric} of {which.solved} against {theirs.solved}, grid {theirs.grid}"
                sides = (by_condition(ours), by_condition(by_nfe))
                return compared(claim, f"{what}, {which.model}", *sides)
    return Finding(claim)


def least(rows: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The grid of a kind that leaves least of the states that were searched on: chosen on those
    that it is shown on, the best of many would look better than it is."""
    of_kind = (row for row in rows if row["kind"] == kind)
    return min(of_kind, key=lambda row: row["rms_searched"], default=None)


def _of_grids(compared_grids: Sequence[ComparedGrids]) -> Iterator[Finding]:
    if not compared_grids:
        yield Finding(GRIDS)
        yield Finding(PERCEPTUAL)
        return
    facts = compared_grids[0].description
    rows = facts["grids"]
    details = (
        ("grid", "rms, weights fitted", "rms, plain solver", "over the best grid's (%)", "error"),
        *(
            (row["name"], row["rms"], row["rms_plain"], effect.value, effect.error)
            for row in rows
            for effect in [ratio(row["log"], row["log_error"], STATES)]
        ),
    )
    best, ours = (least(rows, kind) for kind in ("best", "csflow"))
    at = (
        f"rms to the model's own samples at {facts['nfe']} evaluations, weights fitted to each grid"
    )
    if ours is None:
        yield Finding(GRIDS)
        yield Finding(PERCEPTUAL)
        return
    effect = replace(ratio(-ours["log"], ours["log_error"], STATES), scope=ONE_NETWORK)
    what = f"{at}: {best['name']} against {ours['name']}"
    yield Finding(GRIDS, what, effect, verdict(effect, LOWER), "", details)
    to_uniform = (ours["log_to_uniform"], ours["log_to_uniform_error"])
    effect = replace(ratio(*to_uniform, STATES), scope=ONE_NETWORK)
    what = f"{at}: {ours['name']} against uniform"
    yield Finding(PERCEPTUAL, what, effect, verdict(effect, LOWER))


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of all of it."""
    measured = findings(made.over_nfe, list(made.of("grids").values()))
    yield from repeating(measured, made.repeated(made.over_nfe))


def timed(seconds: Mapping[str, Sequence[float]], made: Mapping[str, Manifest]) -> list[Finding]:
    """What fits took beside the training. made: the manifests of a run's nodes."""
    stages = ("trajectory/", "follow/")
    fits = {name: one.seconds for name, one in made.items() if name.startswith(stages)}
    followed = next((n for n in fits if n.startswith("trajectory/")), None)
    trained = made.get(f"train/{followed.partition('/')[2]}") if followed else None
    training = trained.seconds if trained else None
    if not training:
        return []
    total = math.fsum(fits.values())
    effect = Effect(100 * total / training, None, EXACT, unit="%", against=100.0)
    rows = (("node", "seconds"), *fits.items())
    what = f"{total:.0f} s for {len(fits) - 1} numbers of evaluations, of the training's time"
    return [Finding(COST, what, effect, verdict(effect, LOWER), "other work is in it", rows)]
