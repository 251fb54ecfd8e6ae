"""The stage `lipschitz`: how far every step of a solver drives neighbouring states apart.

Curves lipschitz_mean and lipschitz_max over the solver's steps, 1 at the noise; a node has one
solver and one NFE, so that the nodes of several NFE are curves beside each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages import shards
from stages.artifacts import network
from stages.artifacts.lipschitz import FILE, Lipschitz
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.spectrum import Spectrum
from stages.methods import table
from stages.sampling import problem as sampling_problem
from stages.settings import solvers
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    from torch import Tensor

ABSCISSA = "solver_step"


class PowerIteration(Settings):
    """How the largest singular values are found."""

    num_trajectories: int = Field(64, ge=1, le=10**6, description="trajectories measured")
    iterations: int = Field(
        40,
        ge=1,
        le=10_000,
        description="of the power method; 20 serve the mean over states, 40 the maximum",
    )
    states_together: int = Field(
        16, ge=1, le=65536, description="trajectories of one task, held with their second graph"
    )


class LipschitzSettings(PowerIteration, SolverOptions):
    """The stage's settings."""

    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise and the first vectors")

    @model_validator(mode="after")
    def _solver_is_plain(self) -> LipschitzSettings:
        if self.solver in table.FITTED_SOLVERS:
            raise ValueError(
                f"solver={self.solver} is fitted, and the norms are those of a plain solver's "
                f"steps; choose one of {', '.join(table.PLAIN_SOLVERS)}"
            )
        return self


def run(context: Context) -> Result:
    """Measure blocks of trajectories; write a table of the steps."""
    import pyarrow
    import pyarrow.parquet
    import torch

    from stages.methods.path import time_from_level

    settings: LipschitzSettings = context.settings
    model, spectrum = context.inputs["model"], context.inputs.get("spectrum")
    step = settings.step or model.description["steps"][-1]
    items = list(shards.blocks(settings.num_trajectories, settings.states_together))
    with raised_as(StageError, ValueError, FloatingPointError):
        network.model_identity(model, step)
        levels = solvers.levels_of(settings, None if spectrum is None else spectrum.load())
        parts = context.map(norms, items, model, settings, levels)
    sizes = torch.tensor([last - first for first, last in items], dtype=torch.float64)
    mean = (sizes[:, None] * torch.stack([part[0] for part in parts])).sum(0) / sizes.sum()
    maximum = torch.stack([part[1] for part in parts]).amax(0)
    columns = {
        "step": list(range(1, len(levels))),
        "level": levels[:-1].tolist(),
        "next_level": levels[1:].tolist(),
        "t": time_from_level(levels[:-1]).tolist(),
        "mean": mean.tolist(),
        "maximum": maximum.tolist(),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), context.path / FILE)
    names = ("solver", "nfe", "guidance", "seed", "num_trajectories", "iterations")
    facts = {name: getattr(settings, name) for name in names} | {
        "grid": settings.grid_name,
        "method": model.description["method"],
        "training_step": step,
    }
    Lipschitz.describe(context.path, facts)
    curves = zip(columns["step"], columns["mean"], columns["maximum"], strict=True)
    return Result(
        metrics={"lipschitz_mean": mean.mean().item(), "lipschitz_max": maximum.max().item()},
        curves=[
            row
            for k, m, largest in curves
            for row in (("lipschitz_mean", k, m), ("lipschitz_max", k, largest))
        ],
        abscissa=ABSCISSA,
    )


def norms(
    block: tuple[int, int], model: TrainedNetwork, settings: LipschitzSettings, levels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and maximum over a block of states, (num_steps,) float64 each."""
    import torch

    from stages.methods.lipschitz import step_norms

    problem, _ = sampling_problem.problem(model, settings, settings.step)
    indices = torch.arange(*block)
    by_step = step_norms(
        problem.denoiser(problem.labels(indices)),
        levels[0].item() * problem.noise(settings.seed, indices),
        levels,
        settings.solver,
        settings.iterations,
        sampling_problem.stream(settings.seed, "lipschitz", block[0]),
    )
    return by_step.mean.double().cpu(), by_step.maximum.double().cpu()


STAGE = Stage(
    name="lipschitz",
    settings=LipschitzSettings,
    output=Lipschitz,
    run="stages.papers.stein.lipschitz:run",
    inputs={"model": Input(TrainedNetwork), "spectrum": Input(Spectrum, optional=True)},
    sources=solvers.sources,
    needs=solvers.needs,
    metrics=lambda node: ("lipschitz_mean", "lipschitz_max"),
    estimate="stages.papers.stein.expected:lipschitz",
)
