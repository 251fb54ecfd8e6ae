"""The stage `calibrate`: gamma of every step of a solver, or the weights of a fitted solver.

What it finds belongs to one checkpoint, solver and grid, and is refused for others. Every sampling
seed and every run reads the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage, unkeyed
from stages import shards
from stages.artifacts import network
from stages.artifacts.data import Data
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.samples import Samples
from stages.artifacts.schedule import GUIDED, Schedule
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.teacher import Teacher
from stages.methods import drawn_at, table
from stages.sampling import problem as sampling_problem
from stages.settings import solvers
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.graph import Node
    from stages.methods.solvers.trajectories import Solver

ABSCISSA = "solver_step"
# Groups of images whose contributions to a gain are kept; of so many images each is one.
MOST_GROUPS = 2000
TARGETS, COLUMNS = ("matched", "literal"), ("plain", "predicted", "measured")


class CalibrationOptions(Settings):
    """What calibrations and fits are made from."""

    target: Literal["matched", "trajectory"] = Field(
        "matched",
        description="what a step aims at: matched, the same path's next point (exact, from clean "
        "images); trajectory, the model's own fine solution (from noise alone)",
    )
    source: Literal["data", "samples"] | None = Field(
        None,
        description="target=matched: clean images from the training data, or the model's own "
        "samples with many evaluations; unset is data, or samples where there is guidance, which "
        "gammas from data undo in part",
    )
    num_images: int = Field(
        500, ge=2, le=10**7, description="target=matched: clean images averaged over"
    )
    num_states: int = Field(
        256, ge=2, le=10**6, description="fitted solvers, target=trajectory: noise states"
    )
    substeps: int = Field(
        16, ge=1, le=1000, description="fitted solvers, target=trajectory: Heun's fine substeps"
    )
    memory: int = Field(
        4, ge=1, le=20, description="solver=fitted: outputs that a step reads, the current one too"
    )
    clip: tuple[float, float] | None = Field(
        None,
        description="target=matched: bounds of gamma, around 1; unset is the solver's own, "
        "(0.2, 3) for Heun and (0.5, 1.5) else",
    )

    shard_size: int = unkeyed(
        5000, ge=1, description="target=matched: images of one task; rounded up to whole blocks"
    )

    def on_trajectories(self) -> dict[str, object]:
        """The options with target=trajectory, those that it does not read left out."""
        read = {name: getattr(self, name) for name in ("num_states", "substeps", "memory")}
        return read | {"target": "trajectory"}

    @model_validator(mode="after")
    def _clip_is_around_one(self) -> CalibrationOptions:
        if self.clip is not None and not 0 < self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(f"clip={self.clip} leaves out 1, no correction; give (low, high)")
        return self

    @model_validator(mode="after")
    def _target_reads(self) -> CalibrationOptions:
        if self.target == "matched":
            return self
        if self.source == "samples":
            raise ValueError(
                "target=trajectory and source=samples contradict each other: it needs noise only; "
                "leave source unset"
            )
        if self.clip is not None:
            raise ValueError(
                f"target=trajectory and clip={self.clip} contradict each other: what is fitted to "
                "trajectories is not clipped; leave clip unset"
            )
        return self


class CalibrationSettings(CalibrationOptions, SolverOptions):
    """The stage's settings."""

    source: Literal["data", "samples"] = Field("data", description="where clean images come from")
    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise, and of which images are taken")

    @model_validator(mode="after")
    def _target_fits(self) -> CalibrationSettings:
        own_levels = table.SOLVERS[self.solver].own_levels
        if own_levels and self.target == "trajectory":
            raise ValueError(
                f"target=trajectory and solver={self.solver} contradict each other: its weights "
                "come from the stage follow; set target=matched, for gammas around it"
            )
        if self.solver in table.FITTED_SOLVERS and not own_levels and self.target == "matched":
            raise ValueError(
                f"target=matched and solver={self.solver} contradict each other: its weights are "
                "fitted to trajectories; set target=trajectory"
            )
        return self


def run(context: Context) -> Result:
    """Calibrate or fit, and write what it belongs to beside what was found."""
    settings: CalibrationSettings = context.settings
    model, spectrum = context.inputs["model"], context.inputs.get("spectrum")
    step = settings.step or model.description["steps"][-1]
    with raised_as(StageError, ValueError, FloatingPointError):
        identity = network.model_identity(model, step)
        around = context.inputs.get("weights")
        if around is None:
            levels = solvers.levels_of(settings, None if spectrum is None else spectrum.load())
        else:
            around.check(settings, around.levels, identity)
            levels = around.levels
        find = _matched if settings.target == "matched" else _on_trajectories
        values, network_seconds, gains = find(context, levels)
    facts = {
        name: getattr(settings, name)
        for name in ("solver", "nfe", "target", "source", "seed", *GUIDED)
    } | {
        **({} if around is None else around.fitted),
        "grid": settings.grid_name,
        "levels": levels.tolist(),
        "values": values.tolist(),
        "model": identity,
        "training_step": step,
        "method": model.description["method"],
        "clip": _clip(settings),
        **gains,
    }
    Schedule.describe(context.path, facts)
    context.log(f"{settings.solver}, {settings.nfe} evaluations: {_words(values)}")
    timings = {"network_seconds": network_seconds}
    if values.ndim > 1:
        return Result(metrics={"num_steps": len(values)}, timings=timings)
    return Result(
        timings=timings,
        metrics={"gamma_min": values.min().item(), "gamma_max": values.max().item()},
        curves=[("gamma", k, gamma) for k, gamma in enumerate(values.tolist(), start=1)],
        abscissa=ABSCISSA,
    )


def _clip(settings: CalibrationSettings) -> tuple[float, float] | None:
    """The bounds that gammas were kept within; None for what is fitted to trajectories."""
    from stages.methods.stein import CLIPS, bounds

    if settings.target == "trajectory":
        return None
    if table.SOLVERS[settings.solver].own_levels:
        return settings.clip or CLIPS["multistep"]
    return bounds(settings.solver, settings.target, settings.clip)


def _words(values: Tensor) -> str:
    if values.ndim > 1:
        return f"weights of {len(values)} steps"
    return "gamma " + " ".join(f"{gamma:.3f}" for gamma in values.tolist())


def _matched(context: Context, levels: Tensor) -> tuple[Tensor, float, dict[str, object]]:
    """gammas (num_steps,) from clean images, the work parted into shards of whole blocks of them,
    what the network took, and what gammas gain for either target."""
    import numpy as np
    import torch

    from stages.methods.rectified import rectified
    from stages.methods.stein import gammas_from_products

    settings: CalibrationSettings = context.settings
    model, clean = context.inputs["model"], context.inputs[settings.source]
    teacher = _teacher(context, model.description["config"].get("class_token_dim", 0))
    available = _size(clean)
    if settings.num_images > available:
        raise ValueError(
            f"num_images={settings.num_images} is above the {available} images of the "
            f"{settings.source}; lower num_images"
        )
    items = shards.shards(settings.num_images, settings.block_size, settings.shard_size)
    around = context.inputs.get("weights")
    solver = settings.solver if around is None else around.solver()
    taught = (teacher, context.inputs.get("pixels"))
    parts = context.map(products, items, model, settings, levels, clean, solver, *taught)
    blocks = [block for blocks, _ in parts for block in blocks]
    total = torch.stack([block.sum(0) for block in blocks]).sum(0)
    gammas = gammas_from_products(total, levels, solver, clip=settings.clip)
    sizes = shards.blocks(settings.num_images, settings.block_size)
    counts = torch.cat([_group_sizes(last - first, settings) for first, last in sizes])
    found = [rectified(torch.cat(blocks), counts, levels, target) for target in TARGETS]
    psi = torch.stack([one.influence for one in found])
    np.save(context.path / Schedule.contributed, psi.numpy().astype(np.float32))
    images = f"{clean.manifest.payload}/{settings.seed}/{settings.num_images}/{settings.block_size}"
    facts = {
        "gains": {name: one.rows() for name, one in zip(TARGETS, found, strict=True)},
        "contributions": {
            "targets": TARGETS,
            "columns": COLUMNS[: psi.shape[1]],
            "images": images,
        },
    }
    return gammas, sum(seconds for _, seconds in parts), facts


def _group_sizes(count: int, settings: CalibrationSettings) -> Tensor:
    """Images (groups,) float64 of the groups of a block."""
    import torch

    size = -(-settings.num_images // MOST_GROUPS)
    sizes = [min(size, count - first) for first in range(0, count, size)]
    return torch.tensor(sizes, dtype=torch.float64)


def _teacher(context: Context, token_width: int) -> Teacher | None:
    """Where the clean class tokens of the images stand; None for a network that carries none.

    Raises ValueError where there are none, or those of other images or of another width.
    """
    if not token_width:
        return None
    if context.settings.source == "samples":
        raise ValueError(
            "source=samples has no clean class tokens, which this model carries beside the image; "
            "set source=data, or target=trajectory, which needs noise only"
        )
    teacher = context.inputs.get("teacher")
    if teacher is None:
        raise ValueError(
            "target=matched needs the clean class tokens of the images, since this model carries "
            "one beside the image; connect the input 'teacher' to the teacher it was trained with, "
            "or set target=trajectory, which needs noise only"
        )
    teacher.check(context.inputs["data"], context.inputs.get("pixels"))
    facts = teacher.description
    if facts["width"] != token_width:
        raise ValueError(
            f"the teacher's class tokens have width {facts['width']}, the model's {token_width}; "
            "connect the teacher that the model was trained with"
        )
    return teacher


def _size(clean: Data | Samples) -> int:
    facts = clean.description
    return facts["num_samples"] if isinstance(clean, Samples) else facts["num_train"]


def products(
    shard: tuple[int, int],
    model: TrainedNetwork,
    settings: CalibrationSettings,
    levels: Tensor,
    clean: Data | Samples,
    solver: str | Solver,
    teacher: Teacher | None = None,
    pixels: Data | None = None,
) -> tuple[list[Tensor], float]:
    """Sums over groups of each block of a shard's images of what gamma is made of, (groups,
    num_steps, 3) float64, and what the network took. Shards of any size so give the same sum, to
    the last bit.

    teacher: has the clean class tokens, where the model carries one beside the image. pixels: as
    it looks at the images, where these are latents.
    """
    import torch

    from stages.methods.stein import products_of_each

    problem, _ = sampling_problem.problem(model, settings, settings.step)
    device = settings.device
    taught = None if teacher is None else teacher.of(clean, pixels, device=device)
    first, last = shard
    sums = []
    for begin, end in shards.blocks(last - first, settings.block_size):
        block = (first + begin, first + end)
        which = _chosen(clean, block, settings)
        images, labels = _images(clean, which)
        if taught is not None:
            images = problem.packing.pack(images, taught.batch(which)[1])
        denoiser = problem.denoiser(labels.to(device))
        # A stream of its own: where the images are the model's own samples, noise that repeats
        # what they were made from would make the model look perfect.
        generator = sampling_problem.stream(settings.seed, "calibration", block[0])
        state = images.double().to(device)
        coordinates = problem.coordinates
        each = products_of_each(denoiser, state, levels, solver, generator, coordinates)
        sizes = _group_sizes(end - begin, settings).int().tolist()
        sums.append(torch.stack([group.sum(0) for group in each.split(sizes)]))
    return sums, problem.network_seconds


def _chosen(clean: Data | Samples, block: tuple[int, int], settings: CalibrationSettings) -> Tensor:
    """Indices (B,) of a block of the images taken."""
    import torch

    generator = sampling_problem.stream(settings.seed, "choice", 0)
    order = torch.randperm(_size(clean), generator=generator)
    return order[: settings.num_images].sort().values[slice(*block)]


def _images(clean: Data | Samples, which: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B,) of these indices."""
    if isinstance(clean, Samples):
        return clean.chosen(which)
    images = clean.load().train
    return images[which], images.labels[which]


def _on_trajectories(context: Context, levels: Tensor) -> tuple[Tensor, float, dict[str, object]]:
    """gammas, or weights (num_steps, outputs), nearest to the model's own fine solution, and what
    the network took."""
    import torch

    from stages.methods.solvers.fitted import fit, fit_heun
    from stages.methods.stein import fit_gammas

    settings: CalibrationSettings = context.settings
    problem, _ = sampling_problem.problem(context.inputs["model"], settings, settings.step)
    indices = torch.arange(settings.num_states)
    noise = problem.noise(settings.seed, indices, drawn_at.FITTING_NOISE)
    denoiser, state = problem.denoiser(problem.labels(indices)), levels[0].item() * noise
    if settings.solver == "fitted":
        coefficients = fit(denoiser, state, levels, settings.memory, settings.substeps).coefficients
    elif settings.solver == "fitted-heun":
        coefficients = fit_heun(denoiser, state, levels, settings.substeps).coefficients
    else:
        more = {"substeps": settings.substeps, "coordinates": problem.coordinates}
        coefficients = fit_gammas(denoiser, state, levels, settings.solver, **more)
    return coefficients, problem.network_seconds, {}


def _needs(settings: CalibrationSettings) -> list[str]:
    weights = ["weights"] if table.SOLVERS[settings.solver].own_levels else []
    clean = [settings.source] if settings.target == "matched" else []
    return [*solvers.needs(settings), *clean, *weights]


def _metrics(node: Node) -> tuple[str, ...]:
    fitted = node.settings.solver in table.FITTED_SOLVERS and node.settings.target == "trajectory"
    return ("num_steps",) if fitted else ("gamma_min", "gamma_max")


STAGE = Stage(
    name="calibrate",
    settings=CalibrationSettings,
    output=Schedule,
    run="stages.papers.stein.calibrate:run",
    inputs={
        "model": Input(TrainedNetwork),
        "data": Input(Data, optional=True),
        "samples": Input(Samples, optional=True),
        "teacher": Input(Teacher, optional=True),
        "pixels": Input(Data, optional=True),
        "weights": Input(Schedule, optional=True),
        "spectrum": Input(Spectrum, optional=True),
    },
    sources=solvers.sources,
    needs=_needs,
    metrics=_metrics,
    estimate="stages.papers.stein.expected:calibrate",
)
