"""CSFlow's claims, from scores over NFE by grid and by training density."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.pages.curves import DENSITY, PLAIN, by_condition, collect, of_metric
from stages.pages.findings import Claim, Finding, compared, repeating
from stages.settings.densities import DensityOptions

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.curves import ByNfe, Curves, Which
    from stages.pages.made import Made

PAPER = "FID 4.7 % lower (abstract; from the grid alone or short fine-tuning)"
GRID = Claim(
    "CSFlow",
    "Better FID at equal evaluations from the time grid alone",
    PAPER,
    ("full", "csflow"),
    "grid alone",
)
TUNED = Claim("CSFlow", "More with fine-tuning", PAPER, ("csflow",), "fine-tuned")
BASELINES = {
    name: Claim(
        "CSFlow", f"Better than {word} at equal a", "no number stated here", ("csflow",), word
    )
    for name, word in (("minsnr", "MinSNR"), ("p2", "P2"))
}
OWN, UNIFORM = "csflow", "uniform_t"
SHARE = DensityOptions().label(OWN)  # the paper's mix
METRIC = "fid"


def is_own(density: str) -> bool:
    """Whether a grid, or the density of a training, is CSFlow's."""
    return density.startswith(OWN)


def on_grids(scores: Mapping[str, Sequence[Row]]) -> Curves:
    """All grids of the solver CSFlow's ran on, without corrections; a model as it was trained comes
    before those that went on from it."""
    curves = {which: of for which, of in collect(scores).items() if which.correction == PLAIN}
    solvers = {which.solver for which in curves if DENSITY in which.grid}
    kept = (which for which in curves if DENSITY in which.grid or which.grid == UNIFORM)
    ordered = sorted(kept, key=lambda which: (which.training_step, which))
    return {which: curves[which] for which in ordered if which.solver in solvers}


def findings(scores: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """What curves over NFE say; every claim once."""
    curves = of_metric(on_grids(scores), METRIC)
    ours = _main(curves)
    if ours is None:
        yield from (Finding(claim) for claim in (GRID, TUNED, *BASELINES.values()))
        return
    yield _on_grid(GRID, curves, ours, UNIFORM)
    yield _tuned(curves, ours)
    for name, claim in BASELINES.items():
        yield _on_grid(claim, curves, ours, rival(ours, name).grid)


def rival(ours: Which, kind: str) -> Which:
    """The same on the grid of another density, at equal mix."""
    return replace(ours, grid=ours.grid.replace(OWN, kind, 1))


def claimed(curves: Curves) -> Iterator[tuple[str, Which, Which]]:
    """(claim, ours, theirs) for every pair that stands in the run: lower is claimed for ours."""
    for ours in filter(lambda which: is_own(which.grid), curves):
        for other in (replace(ours, grid=UNIFORM), *(rival(ours, kind) for kind in BASELINES)):
            if other in curves:
                yield f"Grid {ours.grid} beats {other.grid}; {trained(ours)}", ours, other
    for ours in filter(_is_tuned, curves):
        for other in curves:
            if not _is_tuned(other) and replace(other, time_density=ours.time_density) == ours:
                claim = (
                    f"Training with t {ours.time_density} beats {other.time_density} at step "
                    f"{ours.training_step}, on grid {ours.grid}"
                )
                yield claim, ours, other


def trained(which: Which) -> str:
    """A model in words, by the density and steps of its training."""
    return f"trained with t {which.time_density}, step {which.training_step}"


def _is_tuned(which: Which) -> bool:
    return is_own(which.time_density)


def _main(curves: Mapping[Which, object]) -> Which | None:
    """CSFlow's grid at the paper's mix, of the model that was trained with a plain density."""
    grids = [which for which in curves if is_own(which.grid) and not _is_tuned(which)]
    at_mix = [which for which in grids if which.grid == SHARE] or grids
    return min(at_mix, key=lambda which: which.training_step, default=None)


def _on_grid(claim: Claim, curves: Mapping[Which, ByNfe], ours: Which, grid: str) -> Finding:
    what = f"FID on grid {ours.grid} against {grid}, {trained(ours)}"
    return _finding(claim, what, curves, ours, replace(ours, grid=grid))


def _tuned(curves: Mapping[Which, ByNfe], grid: Which) -> Finding:
    """Fine-tuned with CSFlow's density against equal steps with the base one, both on CSFlow's
    grid."""
    tuned = (which for which in curves if _is_tuned(which) and which.grid == grid.grid)
    ours = next(tuned, None)
    if ours is None:
        return Finding(TUNED)
    base = replace(ours, time_density=grid.time_density)
    what = (
        f"FID after training on with t {ours.time_density} against as many steps with "
        f"{base.time_density}, both on grid {ours.grid}"
    )
    return _finding(TUNED, what, curves, ours, base)


def _finding(
    claim: Claim, what: str, curves: Mapping[Which, ByNfe], ours: Which, theirs: Which
) -> Finding:
    sides = (by_condition(curves.get(which, {})) for which in (ours, theirs))
    return compared(claim, what, *sides)


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of CSFlow's claims."""
    yield from repeating(findings(made.over_nfe), made.repeated(made.over_nfe))
