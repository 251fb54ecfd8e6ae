"""The stage `follow`: a few-step solver with levels of its own, fitted to a model's trajectories.

What it finds belongs to one checkpoint, guidance and number of evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts import network
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.schedule import GUIDED, Schedule
from stages.artifacts.trajectories import Trajectories
from stages.methods import table
from stages.sampling import problem as sampling_problem
from stages.settings import solvers
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    from stages.methods.solvers.whole import WholeMultistep


class FollowOptions(Settings):
    """How far it is searched."""

    tries: int = Field(
        120,
        ge=1,
        le=10**6,
        description="solver=whole: evaluations of the states that finding weights and levels may "
        "take, in units of nfe",
    )


class FollowSettings(FollowOptions, SolverOptions):
    """The stage's settings."""

    solver: table.choice("solver", table.FITTED_SOLVERS) = Field(
        "whole", description="the solver fitted"
    )
    memory: int = Field(4, ge=1, le=20, description="outputs that a step reads")
    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")

    @model_validator(mode="after")
    def _solver_has_levels(self) -> FollowSettings:
        if not table.SOLVERS[self.solver].own_levels:
            raise ValueError(f"solver={self.solver} has no levels of its own; set solver=whole")
        return self


def run(context: Context) -> Result:
    """Fit, and write what it belongs to beside what was found."""
    import torch

    from stages.methods.solvers.whole import fit_whole

    settings: FollowSettings = context.settings
    model, trajectories = context.inputs["model"], context.inputs["trajectories"]
    step = settings.step or model.description["steps"][-1]
    with raised_as(StageError, ValueError, FloatingPointError):
        identity = network.model_identity(model, step)
        trajectories.check(settings, identity)
        of = trajectories.load(settings.device)
        problem, _ = sampling_problem.problem(model, settings, settings.step)
        top = of.levels[0].item()
        indices = torch.arange(len(of.states[0]))
        made = fit_whole(
            problem.denoiser(problem.labels(indices)),
            of.states[0] / top,
            settings.nfe,
            top,
            memory=settings.memory,
            tries=settings.tries,
            of=of,
            coordinates=problem.coordinates,
        )
    Schedule.describe(context.path, _facts(settings, made, identity) | _of_model(model, step))
    times = " ".join(f"{s / (1 + s):.3f}" for s in made.levels.tolist())
    context.log(f"{settings.nfe} evaluations: rms {made.rms:.4g} at t {times}")
    return Result(metrics={"rms": made.rms}, timings={"network_seconds": problem.network_seconds})


def _facts(settings: FollowSettings, made: WholeMultistep, identity: str) -> dict[str, object]:
    given = ("solver", "nfe", *GUIDED)
    return settings.model_dump(mode="json", include=set(given)) | {
        "grid": settings.grid_name,
        "levels": made.levels.tolist(),
        "told": made.told.tolist(),
        "values": made.coefficients.tolist(),
        "rms": made.rms,
        "model": identity,
        "target": "trajectory",
        "source": "data",
    }


def _of_model(model: TrainedNetwork, step: int) -> dict[str, object]:
    return {"training_step": step, "method": model.description["method"]}


STAGE = Stage(
    name="follow",
    settings=FollowSettings,
    output=Schedule,
    run="stages.papers.stein.follow:run",
    inputs={"model": Input(TrainedNetwork), "trajectories": Input(Trajectories)},
    sources=solvers.sources,
    metrics=lambda node: ("rms",),
    estimate="stages.papers.stein.expected:follow",
)
