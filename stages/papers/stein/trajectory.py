"""The stage `trajectory`: a model's own fine trajectories from noise, sharded like sampling.

They belong to one checkpoint and its guidance, and serve every few-step solver fitted to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage, unkeyed
from stages import shards
from stages.artifacts import network
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.trajectories import FILE, GUIDED, Trajectories
from stages.methods import drawn_at
from stages.sampling import problem as sampling_problem
from stages.settings import solvers
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class TrajectoryOptions(Settings):
    """How fine, and how many."""

    teacher_steps: int = Field(
        100, ge=2, le=10_000, description="solver=whole: Heun's steps of the model's trajectory"
    )
    teacher_states: int = Field(
        128, ge=2, le=10**6, description="solver=whole: noise states that it is fitted on"
    )
    teacher_shard: int = unkeyed(
        5000, ge=1, description="solver=whole: states of one task; rounded up to whole blocks"
    )


class TrajectorySettings(TrajectoryOptions, SolverOptions):
    """The stage's settings; of the solver's, the grid says where it starts."""

    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise")


def run(context: Context) -> Result:
    """Solve all shards finely; write the states at every level."""
    import numpy as np

    settings: TrajectorySettings = context.settings
    model, count = context.inputs["model"], settings.teacher_states
    step = settings.step or model.description["steps"][-1]
    items = shards.shards(count, settings.block_size, settings.teacher_shard)
    with raised_as(StageError, ValueError, FloatingPointError):
        identity = network.model_identity(model, step)
        parts = context.map(followed, items, model, settings)
    levels = parts[0][0]
    np.save(context.path / FILE, np.concatenate([states for _, states, _ in parts], axis=1))
    facts = settings.model_dump(mode="json", include={*GUIDED, "seed"}) | {
        "levels": levels.tolist(),
        "num_states": count,
        "model": identity,
        "training_step": step,
        "method": model.description["method"],
    }
    Trajectories.describe(context.path, facts)
    context.log(f"{count} trajectories of {len(levels) - 1} steps from s={levels[0]:.6g}")
    return Result(timings={"network_seconds": sum(seconds for *_, seconds in parts)})


def followed(
    shard: tuple[int, int], model: TrainedNetwork, settings: TrajectorySettings
) -> tuple[Tensor, np.ndarray, float]:
    """Levels, states (levels, n, ...) of a shard, and what the network took."""
    import numpy as np
    import torch

    from stages.methods.grids import S_START
    from stages.methods.solvers.whole import teacher

    problem, _ = sampling_problem.problem(model, settings, settings.step)
    # Heun's steps cannot start at noise itself, as t_start=1 asks of others.
    top = min(solvers.levels_of(settings)[0].item(), S_START)
    first, last = shard
    parts, made = [], None
    for begin, end in shards.blocks(last - first, settings.block_size):
        indices = torch.arange(first + begin, first + end)
        noise = problem.noise(settings.seed, indices, drawn_at.FITTING_NOISE)
        denoiser = problem.denoiser(problem.labels(indices))
        made = teacher(denoiser, noise, top, settings.teacher_steps)
        parts.append(Trajectories.stored(made))
    return made.levels, np.concatenate(parts, axis=1), problem.network_seconds


STAGE = Stage(
    name="trajectory",
    settings=TrajectorySettings,
    output=Trajectories,
    run="stages.papers.stein.trajectory:run",
    inputs={"model": Input(TrainedNetwork)},
    sources=solvers.sources,
    metrics=lambda node: (),
    estimate="stages.papers.stein.expected:trajectory",
)
