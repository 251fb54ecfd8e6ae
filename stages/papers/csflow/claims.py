"""CSFlow's claims, from scores over NFE by grid and by training density."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.pages.findings import Claim, Finding, compared, repeating
from stages.papers.csflow.section import DENSITY, UNIFORM, collect

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.made import Made
    from stages.papers.csflow.section import Which

PAPER = "FID 4.7 % lower (abstract; from the grid alone or short fine-tuning)"
GRID = Claim(
    "CSFlow",
    "Better FID at equal evaluations from the time grid alone",
    PAPER,
    ("full", "csflow"),
)
TUNED = Claim("CSFlow", "More with fine-tuning", PAPER, ("csflow",))
BASELINES = {
    name: Claim("CSFlow", f"Better than {word} at equal a", "no number stated here", ("csflow",))
    for name, word in (("minsnr", "MinSNR"), ("p2", "P2"))
}
SHARE = f"csflow{DENSITY}0.4"  # the paper's mix
METRIC = "fid"


def findings(scores: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """What curves over NFE say; every claim once."""
    found = collect(scores)
    curves = {which: metrics[METRIC] for which, metrics in found.items() if METRIC in metrics}
    ours = _main(curves)
    if ours is None:
        yield from (Finding(claim) for claim in (GRID, TUNED, *BASELINES.values()))
        return
    yield compared(
        GRID,
        f"FID on grid {ours.grid} against {UNIFORM}, {ours.model}",
        _said(curves[ours]),
        _said(curves.get(replace(ours, grid=UNIFORM), {})),
    )
    yield _tuned(curves, ours)
    share = ours.grid.partition(DENSITY)[2]
    for name, claim in BASELINES.items():
        other = replace(ours, grid=f"{name}{DENSITY}{share}")
        what = f"FID on grid {ours.grid} against {other.grid}, {ours.model}"
        yield compared(claim, what, _said(curves[ours]), _said(curves.get(other, {})))


def _main(curves: Mapping[Which, object]) -> Which | None:
    """CSFlow's grid at the paper's mix, of the model that was trained with a plain density."""
    grids = [
        which
        for which in curves
        if which.grid.startswith("csflow") and not which.time_density.startswith("csflow")
    ]
    at_mix = [which for which in grids if which.grid == SHARE] or grids
    return min(at_mix, key=lambda which: which.training_step, default=None)


def _tuned(curves: Mapping[Which, Mapping], grid: Which) -> Finding:
    """Fine-tuned with CSFlow's density against equal steps with the base one, both on CSFlow's
    grid."""
    for which in curves:
        if which.time_density.startswith("csflow") and which.grid == grid.grid:
            base = replace(which, time_density=grid.time_density)
            what = (
                f"FID after training on with t {which.time_density} against as many steps with "
                f"{base.time_density}, both on grid {which.grid}"
            )
            return compared(TUNED, what, _said(curves[which]), _said(curves.get(base, {})))
    return Finding(TUNED)


def _said(by_nfe: Mapping[int, object]) -> dict[str, object]:
    return {f"NFE {nfe}": by_seed for nfe, by_seed in sorted(by_nfe.items())}


def claimed(made: Made) -> Iterator[Finding]:
    """What a run says of CSFlow's claims."""
    yield from repeating(findings(made.over_nfe), made.repeated(made.over_nfe))
