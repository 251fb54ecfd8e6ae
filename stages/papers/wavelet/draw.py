"""The stage `draw`: images from a fitted score through a solver, sharded.

Sample i starts from the noise that sample i of a trained network starts from, so that grids of
pictures compare place by place. A fitted score knows no classes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, unkeyed
from stages import shards
from stages.artifacts.fitted_score import FittedScore
from stages.artifacts.samples import Samples
from stages.artifacts.spectrum import Spectrum
from stages.methods import drawn_at, table
from stages.settings import solvers
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.methods.solvers.trajectories import Solver
    from stages.methods.solvers.whole import WholeMultistep

FOLLOWED = 128  # trajectories that a solver with levels of its own is fitted to
FOLLOWED_TRIES = 40


class DrawSettings(SolverOptions):
    """The solver, and how many samples."""

    num_samples: int = Field(100, ge=1, le=10**7, description="samples")
    shard_size: int = unkeyed(
        5000, ge=1, description="samples of one task; rounded up to whole blocks"
    )
    seed: int = Field(0, ge=0, description="of the noise")

    @model_validator(mode="after")
    def _score_fits(self) -> DrawSettings:
        if self.guidance != 1:
            raise ValueError(
                f"guidance={self.guidance:g}: a fitted score knows no classes to be guided by; "
                "set guidance=1"
            )
        if self.solver in table.FITTED_SOLVERS and not table.SOLVERS[self.solver].own_levels:
            raise ValueError(
                f"solver={self.solver} is fitted to a trained network; choose one of "
                f"{', '.join(table.PLAIN_SOLVERS)}"
            )
        if self.device != "cpu":
            raise ValueError(f"device={self.device}: fitted scores are drawn from on the CPU")
        return self


def draw_shard(
    shard: tuple[int, int],
    score: FittedScore,
    settings: DrawSettings,
    levels: Tensor,
    solver: str | Solver,
) -> np.ndarray:
    """Samples first..last-1, (n, C, H, W) float32, in whole blocks of block_size."""
    import numpy as np
    import torch

    from stages.methods.draws import Draws
    from stages.methods.solvers import solve

    denoiser, shape = score.denoiser(), tuple(score.description["shape"])
    first, last = shard
    parts = []
    for start in range(first, last, settings.block_size):
        indices = torch.arange(start, start + settings.block_size)
        z = Draws(settings.seed, indices, drawn_at.INITIAL_NOISE).noise(shape).double()
        images = solve(denoiser, levels[0].item() * z, levels, solver)
        parts.append(images[: last - start].float().numpy())
    return np.concatenate(parts)


def followed(score: FittedScore, settings: DrawSettings) -> WholeMultistep:
    """The solver fitted to the score's own trajectories, from noise that no sample starts from."""
    import torch

    from stages.methods.draws import Draws
    from stages.methods.grids import S_START
    from stages.methods.solvers import fit_whole

    draws = Draws(settings.seed, torch.arange(FOLLOWED), drawn_at.FITTING_NOISE)
    noise = draws.noise(tuple(score.description["shape"])).double()
    return fit_whole(score.denoiser(), noise, settings.nfe, S_START, tries=FOLLOWED_TRIES)


def run(context: Context) -> Result:
    """Draw all shards; write images, a picture and how they were made."""
    import numpy as np

    settings: DrawSettings = context.settings
    score: FittedScore = context.inputs["score"]
    spectrum = context.inputs.get("spectrum")
    items = shards.shards(settings.num_samples, settings.block_size, settings.shard_size)
    context.progress(0, settings.num_samples, "samples")
    with raised_as(StageError, ValueError, FloatingPointError):
        if table.SOLVERS[settings.solver].own_levels:
            solver = followed(score, settings)
            levels = solver.levels
        else:
            levels = solvers.levels_of(settings, None if spectrum is None else spectrum.load())
            solver = settings.solver
        images = np.concatenate(context.map(draw_shard, items, score, settings, levels, solver))
    context.progress(len(images), settings.num_samples, "samples")
    facts = {
        "training_step": 0,
        "method": score.description["method"],
        "dataset": score.description["dataset"],
        "solver": settings.solver,
        "correction": "none",
        "nfe": settings.nfe,
        "grid": settings.grid_name,
        "time_density": "",
        "guidance": 1.0,
        "seed": settings.seed,
        "num_samples": len(images),
    }
    Samples.write(context.path, images, np.zeros(len(images), np.int64), facts)
    steps = {"level": levels[:-1].tolist(), "gamma": [1.0] * (len(levels) - 1)}
    (context.path / "steps.json").write_text(json.dumps(steps, indent=1), encoding="utf-8")
    return Result()


STAGE = Stage(
    name="draw",
    settings=DrawSettings,
    output=Samples,
    run="stages.papers.wavelet.draw:run",
    inputs={"score": Input(FittedScore), "spectrum": Input(Spectrum, optional=True)},
    sources=solvers.sources,
    needs=solvers.needs,
    metrics=lambda node: (),
    estimate="stages.papers.wavelet.expected:draw",
)
