"""The stage `grids`: CSFlow's grids, as a family of mixture and display size, beside the model's
best one (ours).

The best grid is searched on one half of the trajectories, from the uniform grid and from CSFlow's;
all grids are compared on the other half, each with the weights that are best on it, so that the
grids alone differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts import network
from stages.artifacts.compared_grids import ComparedGrids
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.trajectories import Trajectories
from stages.methods import table
from stages.sampling import problem as sampling_problem
from stages.settings import densities, solvers
from stages.settings.densities import DensityOptions, Display, Screen
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.spectrum import PowerSpectrum
    from stages.methods.path import Denoiser
    from stages.methods.solvers.whole import Teacher

UNIFORM, CSFLOW, BEST = "uniform", "csflow", "best"


class GridOptions(Settings):
    """Which grids."""

    grid_mixes: tuple[float, ...] = Field(
        (0.2, 0.4, 0.7, 1.0), min_length=1, description="CSFlow's share a of the density"
    )
    grid_displays: tuple[int, ...] = Field(
        (32, 64, 256, 1024), min_length=1, description="display pixels that an image fills"
    )
    grid_rounds: int = Field(12, ge=1, le=1000, description="rounds of the search, from each start")


class GridSettings(GridOptions, SolverOptions):
    """The stage's settings."""

    solver: table.choice("solver", table.PLAIN_SOLVERS) = Field(
        "dpmpp2m", description="the plain solver on the same grids, one evaluation a step"
    )
    screen: Screen = Field(Screen(), description="the screen that displays are of")
    memory: int = Field(4, ge=1, le=20, description="outputs that a step reads")
    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")

    @model_validator(mode="after")
    def _counts_alike(self) -> GridSettings:
        if table.SOLVERS[self.solver].per_step > 1:
            raise ValueError(
                f"solver={self.solver} takes two evaluations a step, and grids are compared at "
                "equal evaluations with a solver of one; set solver=dpmpp2m"
            )
        return self


@dataclass(frozen=True)
class Grid:
    """A grid with what it was made from. levels: (N+1), descending to 0."""

    name: str
    kind: str
    levels: tuple[float, ...]
    mix: float | None = None
    display_pixels: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A grid that cannot be compared, and why."""

    name: str
    reason: str


def perceptual(
    settings: GridSettings, spectrum: PowerSpectrum, top: float
) -> Iterator[Grid | LeftOut]:
    """CSFlow's grids that start at the level `top`, the first of the model's trajectories.

    Left out are displays on which the eye sees nothing of the images, and grids with a second level
    at or above `top`.
    """
    from stages.methods.csflow import NothingSeenError
    from stages.methods.grids import from_times

    screen = settings.screen.model_dump()
    for pixels in settings.grid_displays:
        for mix in settings.grid_mixes:
            name = f"csflow a={mix:g}, {pixels} pixels"
            options = DensityOptions(mix=mix, display=Display(display_pixels=pixels, **screen))
            try:
                density = densities.time_density(options, CSFLOW, spectrum=spectrum)
            except NothingSeenError as error:
                yield LeftOut(name, str(error))
                continue
            inner = from_times(density.grid(settings.nfe), 1.0).tolist()[1:-1]
            if inner and inner[0] >= top:
                yield LeftOut(name, f"its second level is {inner[0]:.4g}, and the first {top:.4g}")
                continue
            yield Grid(name, CSFLOW, (top, *inner, 0.0), mix, pixels)


def run(context: Context) -> Result:
    """Search and compare; write every grid with what it leaves."""
    from stages.methods import grids
    from stages.methods.path import time_from_level
    from stages.methods.solvers.best_grid import best_levels

    settings: GridSettings = context.settings
    model, trajectories = context.inputs["model"], context.inputs["trajectories"]
    step = settings.step or model.description["steps"][-1]
    with raised_as(StageError, ValueError, FloatingPointError):
        trajectories.check(settings, network.model_identity(model, step))
        of = trajectories.load(settings.device)
        problem, _ = sampling_problem.problem(model, settings, settings.step)
        half = len(of.states[0]) // 2
        found, shown = _part(of, problem, 0, half), _part(of, problem, half, 2 * half)
        top = of.levels[0].item()
        uniform = grids.uniform_t(settings.nfe, float(time_from_level(top)))[1:-1].tolist()
        spectrum = context.inputs["spectrum"].load()
        tried = [Grid(UNIFORM, UNIFORM, (top, *uniform, 0.0))]
        seen = list(perceptual(settings, spectrum, top))
        tried += [one for one in seen if isinstance(one, Grid)]
        left_out = [asdict(one) for one in seen if isinstance(one, LeftOut)]
        more = (settings.memory, settings.grid_rounds, problem.coordinates)
        for start in _starts(tried, found, settings, problem.coordinates):
            levels = best_levels(*found, start.levels, *more)
            tried.append(Grid(f"best, from {start.name}", BEST, levels))
        rows = _compared(tried, found, shown, settings, problem.coordinates)
    facts = {"nfe": settings.nfe, "method": model.description["method"], "training_step": step}
    facts |= {"num_states": half, "guidance": settings.guidance, "grids": rows}
    facts["left_out"] = left_out
    for one in left_out:
        context.log(f"left out {one['name']}: {one['reason']}")
    ComparedGrids.describe(context.path, facts)
    return Result(
        metrics={
            f"rms_{kind}": min(row["rms"] for row in rows if row["kind"] == kind)
            for kind in dict.fromkeys(row["kind"] for row in rows)
        },
        timings={"network_seconds": problem.network_seconds},
    )


def _part(of: Teacher, problem: Any, first: int, last: int) -> tuple[Denoiser, Teacher]:
    """Some of the states, with the denoiser of their labels."""
    import torch

    from stages.methods.solvers.whole import Teacher

    states = tuple(states[first:last] for states in of.states)
    return problem.denoiser(problem.labels(torch.arange(first, last))), Teacher(of.levels, states)


def _starts(
    tried: Sequence[Grid],
    found: tuple[Denoiser, Teacher],
    settings: GridSettings,
    coordinates: int | None,
) -> list[Grid]:
    """The uniform grid, and the best of CSFlow's."""
    from stages.methods.solvers.best_grid import left_by

    def left(grid: Grid) -> float:
        more = (settings.memory, None, coordinates)
        return left_by(*found, grid.levels, *more).norm().item()

    perceptual = [grid for grid in tried if grid.kind == CSFLOW]
    return [tried[0], *([min(perceptual, key=left)] if perceptual else [])]


def _compared(
    tried: Sequence[Grid],
    found: tuple[Denoiser, Teacher],
    shown: tuple[Denoiser, Teacher],
    settings: GridSettings,
    coordinates: int | None,
) -> list[dict[str, Any]]:
    """What every grid leaves of the states that were not searched on; `rms_searched` is what it
    leaves of those that were, by which the best of a kind is chosen."""
    from stages.methods.solvers import named
    from stages.methods.solvers.best_grid import change_of_rms, left_by

    def left(grid: Grid, solver: Any = None) -> Tensor:
        return left_by(*shown, grid.levels, settings.memory, solver, coordinates)

    own = [left(grid) for grid in tried]
    plain = [left(grid, named(settings.solver)) for grid in tried]
    searched = [
        left_by(*found, grid.levels, settings.memory, None, coordinates)
        .square()
        .mean()
        .sqrt()
        .item()
        for grid in tried
    ]
    best = own[
        min((i for i, grid in enumerate(tried) if grid.kind == BEST), key=searched.__getitem__)
    ]
    rows = []
    for grid, ours, others, before in zip(tried, own, plain, searched, strict=True):
        log, error = change_of_rms(ours, best)
        to_uniform, to_uniform_error = change_of_rms(ours, own[0])
        rms, rms_plain = (of.square().mean().sqrt().item() for of in (ours, others))
        facts = {"name": grid.name, "kind": grid.kind, "mix": grid.mix, "levels": grid.levels}
        facts |= {"display_pixels": grid.display_pixels, "rms": rms, "rms_plain": rms_plain}
        facts |= {"rms_searched": before}
        facts |= {"log": log, "log_error": error}
        facts |= {"log_to_uniform": to_uniform, "log_to_uniform_error": to_uniform_error}
        rows.append(facts)
    return rows


STAGE = Stage(
    name="grids",
    settings=GridSettings,
    output=ComparedGrids,
    run="stages.papers.beyond.compared:run",
    inputs={
        "model": Input(TrainedNetwork),
        "trajectories": Input(Trajectories),
        "spectrum": Input(Spectrum),
    },
    sources=lambda settings: [
        *densities.sources(DensityOptions(), CSFLOW),
        *solvers.sources(settings),
        "stages.methods.solvers.best_grid:best_levels",
    ],
    metrics=lambda node: ("rms_*",),
    estimate="stages.papers.beyond.expected:grids",
)
