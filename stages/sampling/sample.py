"""The stage `sample`: images from a trained network, in EDM coordinates, sharded.

Sample i's noise and label depend on the seed and on i alone, and the network is called on fixed
blocks of samples, so that the bytes depend neither on how many shards there are nor on how many
samples are held at once.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, resolve, unkeyed
from stages.artifacts import network
from stages.artifacts import samples as artifacts_samples
from stages.artifacts.data import Data
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.samples import Samples
from stages.artifacts.schedule import Schedule
from stages.artifacts.spectrum import Spectrum
from stages.methods import table
from stages.sampling import corrections
from stages.sampling import problem as sampling_problem
from stages.settings import solvers
from stages.settings.solvers import ChurnOptions, SolverOptions
from stages.shards import blocks, shards

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.methods.draws import Draws
    from stages.methods.path import Denoiser
    from stages.methods.solvers.trajectories import Correction, Solver
    from stages.sampling.problem import Problem

# Added to the seed of the SDE's noise, whose steps would else be those of training.
SDE_SEED = 1 << 40
CLASS_SEED = 1 << 41  # and to that of classes drawn at random


def brings_grid(solver: str) -> bool:
    """Whether a solver has a grid of its own."""
    return solver in table.STOCHASTIC_SOLVERS and solver not in table.NOISY_SOLVERS


class SampleOptions(SolverOptions):
    """How samples are made."""

    solver: table.choice("solver", table.SOLVERS) = Field(
        "dpmpp2m",
        description="the ODE solver; or sde, the papers' stochastic sampler, ancestral or churn",
    )
    correction: table.choice("correction", table.CORRECTIONS) = Field(
        "none",
        description="of large steps: calibrated reads a stored schedule and costs nothing; online "
        "and literal take a divergence an evaluation, on the running batch; lookahead redoes each "
        "step with the next evaluation",
    )
    gamma_min: float = Field(0.0, ge=0, le=1, description="correction=literal: least gamma")
    num_probes: int = Field(
        1, ge=1, le=1000, description="online and literal: random probes a divergence"
    )
    churn: ChurnOptions = Field(ChurnOptions(), description="solver=churn: the noise that it adds")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the network's products in every set of samples, those that others are "
        "compared with too; weights and the solver keep theirs. tf32 is of a GPU: on a CPU it is "
        "float32. What is fitted to the network (calibrations, trajectories) is always float32",
    )
    compile: bool = Field(
        False, description="compile the network by its blocks (worth it on a GPU)"
    )
    num_samples: int = Field(1500, ge=1, le=10**7, description="samples")
    classes: Literal["balanced", "random"] = Field(
        "balanced",
        description="balanced: classes in turn, in the shares that labels says; random: drawn for "
        "each sample, each as often, as in most papers",
    )
    batch_size: int = unkeyed(
        1000, ge=1, le=10**6, description="samples held at once; rounded up to whole blocks"
    )
    shard_size: int = unkeyed(
        5000, ge=1, description="samples of one task; rounded up to whole blocks"
    )

    @model_validator(mode="after")
    def _sde_fits(self) -> SampleOptions:
        if not brings_grid(self.solver):
            return self
        if self.nfe < 2:
            raise ValueError(f"nfe={self.nfe} is below 2, the least that solver=sde takes")
        for name, only in (("correction", "none"), ("grid", solvers.UNIFORM)):
            if (value := getattr(self, name)) != only:
                raise ValueError(
                    f"{name}={value} and solver=sde contradict each other: it takes no correction "
                    f"and brings its own grid; leave {name} unset"
                )
        return self

    @model_validator(mode="after")
    def _correction_fits(self) -> SampleOptions:
        if why := corrections.refusal(self.correction, self.solver):
            raise ValueError(
                f"correction={self.correction} and solver={self.solver} contradict each other: "
                f"{why}"
            )
        if self.gamma_min and "gamma_min" not in table.CORRECTIONS[self.correction].reads:
            raise ValueError(
                f"gamma_min={self.gamma_min} and correction={self.correction} contradict each "
                "other: only literal reads it; leave gamma_min unset, or choose literal"
            )
        return self


class SampleSettings(SampleOptions):
    """The stage's settings."""

    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise")
    kept: Literal["float32", "nearest", "down"] = Field(
        "float32",
        description="how images are kept: as float32, or as 8 bits, rounded to the nearest or "
        "down; recipes choose 8 bits for pictures that a published protocol alone reads",
    )


@dataclass(frozen=True)
class Plan:
    """All that a task needs beside the samples it makes; the same for every task of a node.

    solver: the object that `trajectory` takes; None for a stochastic one. correction: None for the
    plain solver.
    """

    levels: Tensor
    solver: Solver | None
    correction: Correction | None


def _over_batch(settings: SampleSettings) -> bool:
    return table.CORRECTIONS[settings.correction].over_batch


def sample_shard(
    shard: tuple[int, int],
    model: TrainedNetwork,
    settings: SampleSettings,
    plan: Plan,
    folder: Path,
) -> dict[str, str]:
    """The files, by name, in the work area `folder`, with what was made of samples first..last-1.

    images: (n, C, H, W), as they are kept. gammas: (blocks, steps) float64. took: (3,) float64, the
    step of the checkpoint, and the seconds of all and of the network.
    """
    from stages.artifacts import written

    def make() -> dict[str, np.ndarray]:
        return _made(shard, model, settings, plan)

    files = written.write_arrays(Path(folder), f"samples-{shard[0]}-{shard[1]}", make)
    return {name: str(file) for name, file in files.items()}


def _made(
    shard: tuple[int, int], model: TrainedNetwork, settings: SampleSettings, plan: Plan
) -> dict[str, np.ndarray]:
    """What `sample_shard` keeps.

    Every block is computed at its full size, so that a sample does not depend on how many follow.
    """
    import numpy as np
    import torch

    begun = time.perf_counter()
    # A correction on the running batch goes back once for every probe.
    calls = sampling_problem.Calls(settings.precision, settings.compile, _over_batch(settings))
    problem, step = sampling_problem.problem(model, settings, settings.step, calls)
    first, last = shard
    size = settings.block_size
    held = 1 if _over_batch(settings) else math.ceil(settings.batch_size / size)
    kept, every = None, []
    for start, stop in blocks(last - first, held * size):
        whole = math.ceil((stop - start) / size) * size
        indices = torch.arange(first + start, first + start + whole)
        images, gammas = sample_block(problem, indices, settings, plan)
        part = as_kept(images[: stop - start], settings.kept).cpu().numpy()
        kept = np.empty((last - first, *part.shape[1:]), part.dtype) if kept is None else kept
        kept[start:stop] = part
        every.append(gammas)
    took = step, time.perf_counter() - begun, problem.network_seconds
    return {
        "images": kept,
        "gammas": np.array(every, np.float64),
        "took": np.array(took, np.float64),
    }


def as_kept(images: Tensor, kept: str) -> Tensor:
    """Images in [-1, 1] as they are, or their pixels in 8 bits; ValueError for images that are not
    finite, of which those would not tell."""
    from stages.methods.suite import rounded

    if kept == "float32":
        return images
    if not images.isfinite().all():
        raise ValueError("samples hold NaN or infinity; set sample.precision=float32, or more nfe")
    return rounded(images, kept)


def sample_block(
    problem: Problem, indices: Tensor, settings: SampleSettings, plan: Plan
) -> tuple[Tensor, list[float]]:
    """Samples `indices` (B,) -> (B, C, H, W) float32, and gamma of every step."""
    from stages.methods.draws import Draws
    from stages.methods.solvers.trajectories import trajectory

    labels = labels_of(settings, problem, indices)
    z, denoiser = problem.noise(settings.seed, indices), problem.denoiser(labels)
    entry = table.SOLVERS[settings.solver]
    if entry.stochastic:
        draws = Draws(settings.seed + SDE_SEED, indices.to(settings.device))
        x = _with_noise(denoiser, z, draws, settings, plan.levels)
        return problem.images(x).float(), [1.0] * (len(plan.levels) - 1)
    y = plan.levels[0].item() * z
    generator = None
    if _over_batch(settings):
        generator = sampling_problem.stream(
            settings.seed, "probes", int(indices[0]), settings.device
        )
    gammas = []
    for advance in trajectory(denoiser, y, plan.levels, plan.solver, plan.correction, generator):
        y = advance.state
        gammas.append(advance.gamma)
    return problem.images(y).float(), gammas


def labels_of(settings: SampleSettings, problem: Problem, indices: Tensor) -> Tensor:
    """The classes (B,) long of samples: in turn, in the shares that settings choose, or each a
    uniform draw of its seed and index."""
    from stages.methods.draws import Draws

    if settings.classes == "balanced":
        return problem.labels(indices)
    count = max(1, problem.num_classes)
    u = Draws(settings.seed + CLASS_SEED, indices).time()
    return ((u.double() * count).ceil().long().clamp(1, count) - 1).to(settings.device)


def _with_noise(
    denoiser: Denoiser, z: Tensor, draws: Draws, settings: SampleSettings, levels: Tensor
) -> Tensor:
    """The end points of a stochastic sampler from noise z, in the model's states."""
    sampler = resolve(table.SOLVERS[settings.solver].place)
    if brings_grid(settings.solver):
        return sampler(denoiser, z, draws, settings.nfe, t_start=settings.t_start)
    more = {"churn": settings.churn.parameters()} if settings.solver == "churn" else {}
    return sampler(denoiser, levels[0].item() * z, levels, draws, **more)


def plan_of(
    settings: SampleSettings,
    model: TrainedNetwork,
    spectrum: Spectrum | None = None,
    data: Data | None = None,
    schedule: Schedule | None = None,
) -> Plan:
    """Levels, solver and correction, stored ones checked against what they are used for.

    Raises ValueError for a schedule of another grid, solver, model or guidance.
    """
    entry = table.SOLVERS[settings.solver]
    if brings_grid(settings.solver):
        return Plan(_sde_levels(settings), None, None)
    if entry.own_levels:
        levels = schedule.levels
    else:
        levels = solvers.levels_of(settings, None if spectrum is None else spectrum.load())
    if entry.stochastic:
        return Plan(levels, None, None)
    if "schedule" in corrections.inputs(settings.correction, settings.solver):
        step = settings.step or model.description["steps"][-1]
        schedule.check(settings, levels, network.model_identity(model, step))
    solver = schedule.solver() if entry.counted_as else resolve(entry.place)
    problem = sampling_problem.Problem(None, model.load(), settings)
    given = corrections.Given(settings, solver, problem, data, schedule)
    return Plan(levels, *resolve(table.CORRECTIONS[settings.correction].place)(given))


def _sde_levels(settings: SampleSettings) -> Tensor:
    """Where the SDE's steps begin, and 0."""
    from stages.methods.path import start
    from stages.methods.solvers.sde import time_grid

    t = time_grid(settings.nfe).clamp(max=start(settings.t_start))
    return t / (1 - t)


def run(context: Context) -> Result:
    """Sample all shards; write images, labels, gammas, a picture and how they were made."""
    import numpy as np
    import torch

    from stages.artifacts import written

    settings: SampleSettings = context.settings
    model = context.inputs["model"]
    others = {name: context.inputs.get(name) for name in ("spectrum", "data", "schedule")}
    items = shards(settings.num_samples, settings.block_size, settings.shard_size)
    context.progress(0, settings.num_samples, "samples")
    with raised_as(StageError, ValueError, FloatingPointError):
        plan = plan_of(settings, model, **others)
        parts = context.map(sample_shard, items, model, settings, plan, context.work)
    context.work.pull()

    def of_all(name: str) -> list[Path]:
        return [context.work.path / Path(part[name]).name for part in parts]

    took = np.stack([np.load(file) for file in of_all("took")])
    written.join_arrays(of_all("images"), context.path / artifacts_samples.FILE)
    context.progress(settings.num_samples, settings.num_samples, "samples")
    problem = sampling_problem.Problem(None, model.load(), settings)
    labels = labels_of(settings, problem, torch.arange(settings.num_samples)).cpu().numpy()
    facts = {
        "training_step": model.description.get("steps_before", 0) + int(took[0, 0]),
        "method": model.description["method"],
        "solver": settings.solver,
        "correction": correction_name(settings, others["schedule"]),
        "nfe": settings.nfe,
        "grid": settings.solver if brings_grid(settings.solver) else settings.grid_name,
        "time_density": model.description.get("time_density", ""),
        "guidance": settings.guidance,
        "seed": settings.seed,
        "labels": settings.labels,
        "network": network.model_identity(model, int(took[0, 0])),
        "num_samples": settings.num_samples,
        "classes": settings.classes,
        # Copies are sought among the images that the model has seen.
        "num_training_images": model.description.get("num_images"),
    }
    if settings.kept != "float32":
        facts["rounding"] = settings.kept
    Samples.complete(context.path, labels, facts)
    gammas = np.concatenate([np.load(file) for file in of_all("gammas")])
    mean = gammas.mean(0) if _over_batch(settings) else gammas[0]
    steps = {"level": plan.levels[:-1].tolist(), "gamma": mean.tolist()}
    (context.path / "steps.json").write_text(json.dumps(steps, indent=1), encoding="utf-8")
    seconds = float(took[:, 1].sum())
    return Result(
        timings={
            "sampling_seconds": seconds,
            "network_seconds": float(took[:, 2].sum()),
            # Of one task; several may have run beside each other.
            "images_per_second": [(settings.nfe, settings.num_samples / seconds)],
        }
    )


def correction_name(settings: SampleOptions, schedule: Schedule | None) -> str:
    """What tables and figures call the correction."""
    stored = "schedule" in table.CORRECTIONS[settings.correction].inputs
    return schedule.name if stored else settings.correction


STAGE = Stage(
    name="sample",
    settings=SampleSettings,
    output=Samples,
    run="stages.sampling.sample:run",
    fans_out=True,
    inputs={
        "model": Input(TrainedNetwork),
        "spectrum": Input(Spectrum, optional=True),
        "schedule": Input(Schedule, optional=True),
        "data": Input(Data, optional=True),
    },
    sources=lambda settings: [
        *solvers.sources(settings),
        table.CORRECTIONS[settings.correction].place,
    ],
    needs=lambda settings: [
        *solvers.needs(settings),
        *corrections.inputs(settings.correction, settings.solver),
    ],
    estimate="stages.settings.costs:sample",
    metrics=lambda node: (),
)
