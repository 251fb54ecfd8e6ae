"""The stage `sample`: images from a trained network, in EDM coordinates, sharded.

Sample i's noise and label depend on the seed and on i alone. Samples are computed in blocks of
`batch_size` aligned at its multiples, so that the bytes do not depend on how many shards there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifact import Artifact, open_artifact
from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages import densities
from stages.methods import table
from stages.model import TrainedNetwork
from stages.powerspectrum import Spectrum

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.powerspectrum import PowerSpectrum

GRID_SIDE = 10
NOISE_STEP = -1  # no training step has it: sampling noise is never training noise


class SampleOptions(Settings):
    """How samples are made."""

    solver: table.choice("solver", table.SOLVERS) = Field("dpmpp2m", description="the ODE solver")
    nfe: int = Field(20, ge=1, le=10_000, description="network evaluations a sample")
    grid: table.choice("grid", table.GRIDS | table.DENSITY_GRIDS) = Field(
        "uniform_t",
        description="where the solver's levels lie; a time density's lie at its equal quantiles",
    )
    density: densities.DensityOptions = Field(
        densities.DensityOptions(), description="grids of a time density, over a uniform base"
    )
    s_max: float = Field(
        80.0, gt=0, le=1e4, description="grids edm, log_snr: the first level, s = t / (1 - t)"
    )
    s_min: float = Field(0.02, gt=0, description="grids edm, log_snr: the last level above 0")
    guidance: float = Field(
        1.0, ge=0, le=100, description="classifier-free guidance scale; 1 is none"
    )
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="times t, 0 (data) to 1 (noise), between which guidance acts"
    )
    num_samples: int = Field(1500, ge=1, le=10**7, description="samples, classes balanced")
    batch_size: int = Field(250, ge=1, le=65536, description="samples computed together")
    shard_size: int = Field(
        5000,
        ge=1,
        description="samples of one task; rounded up to whole batches",
        json_schema_extra={"keyed": False},
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where sampling runs")

    @model_validator(mode="after")
    def _fits_together(self) -> SampleOptions:
        if self.solver in table.ODD_SOLVERS and self.nfe % 2 == 0:
            raise ValueError(
                f"solver={self.solver} takes an odd number of evaluations, nfe={self.nfe} is "
                f"even; set nfe to {self.nfe - 1} or {self.nfe + 1}"
            )
        self.density.refuse_unread(densities.of_grids(self.grids_in_use), f"grid={self.grid}")
        if self.s_min >= self.s_max:
            raise ValueError(
                f"s_min={self.s_min} is not below s_max={self.s_max}; lower s_min or raise s_max"
            )
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} must be (low, high) with "
                "0 <= low <= high <= 1"
            )
        return self

    @property
    def grids_in_use(self) -> tuple[str, ...]:
        """Every grid that these settings name."""
        return (self.grid,)

    @property
    def grid_name(self) -> str:
        """What tables and figures call the grid."""
        is_density = self.grid in table.DENSITY_GRIDS
        return self.density.label(self.grid) if is_density else self.grid


class SampleSettings(SampleOptions):
    """The stage's settings."""

    step: int | None = Field(None, ge=1, description="the checkpoint's step; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise")


@dataclass(frozen=True)
class SampleSet:
    """images: (n, C, H, W) float32, not clipped to [-1, 1]. labels: (n,) long."""

    images: Tensor
    labels: Tensor


class Samples(Artifact):
    """Generated images and the labels they were asked for."""

    tracked = ("grid.png",)

    @cached_property
    def description(self) -> dict[str, Any]:
        """Plain facts: training_step, solver, nfe, grid, method, time_density, seed, ..."""
        return json.loads((self.path / "samples.json").read_text())

    def load(self) -> SampleSet:
        import numpy as np
        import torch

        return SampleSet(
            torch.from_numpy(np.load(self.path / "samples.npy")),
            torch.from_numpy(np.load(self.path / "labels.npy")),
        )


def noise_and_labels(
    seed: int, indices: Tensor, shape: Sequence[int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """z ~ N(0, I) (B, *shape) float32 and labels (B,) of the samples `indices` (B,)."""
    from stages.methods.draws import Draws

    return Draws(seed, indices, NOISE_STEP).noise(tuple(shape)), indices % num_classes


def sample_shard(
    shard: tuple[int, int],
    folder: Path,
    settings: SampleSettings,
    spectrum: PowerSpectrum | None = None,
) -> tuple[np.ndarray, int]:
    """Samples first..last-1 of the model in the artifact at `folder`, and its checkpoint's step.

    spectrum: the data's, for grids that need it.
    Every block is computed at its full size, so that a sample does not depend on how many follow.
    """
    import numpy as np
    import torch

    first, last = shard
    model = open_artifact(folder).load()
    step = model.steps[-1] if settings.step is None else settings.step
    network = model.network(step, settings.device)
    levels = levels_of(settings, spectrum)
    blocks = []
    for start in range(first, last, settings.batch_size):
        indices = torch.arange(start, start + settings.batch_size, device=settings.device)
        block = sample_block(network, model, indices, settings, levels)
        blocks.append(block[: last - start].cpu().numpy())
    return np.concatenate(blocks), step


def levels_of(settings: SampleSettings, spectrum: PowerSpectrum | None = None) -> Tensor:
    """The noise levels (n + 1,) float64, descending to 0, that take `nfe` evaluations.

    Raises ValueError for a grid that needs the data's spectrum and has none.
    """
    from stages.methods.grids import from_times
    from stages.methods.solvers import levels_for_evaluations

    num_levels = levels_for_evaluations(settings.solver, settings.nfe)
    if settings.grid in table.DENSITY_GRIDS:
        density = densities.time_density(settings.density, settings.grid, spectrum=spectrum)
        return from_times(density.grid(num_levels))
    bounds = {"s_max": settings.s_max, "s_min": settings.s_min}
    bounded = settings.grid in table.BOUNDED_GRIDS
    return resolve(table.GRIDS[settings.grid])(num_levels, **(bounds if bounded else {}))


def sample_block(
    network: Any,
    model: Any,
    indices: Tensor,
    settings: SampleSettings,
    levels: Tensor | None = None,
) -> Tensor:
    """Samples `indices` (B,) -> (B, C, H, W) float32. The state is float64, the network float32.

    levels: those of the settings by default.
    """
    import torch

    from stages.methods.path import Guidance, VelocityDenoiser
    from stages.methods.solvers import solve

    z, labels = noise_and_labels(settings.seed, indices, model.shape, model.num_classes)
    levels = levels_of(settings) if levels is None else levels
    denoiser = VelocityDenoiser(network, {"labels": labels}, dtype=torch.float32)
    if settings.guidance != 1:
        unconditional = VelocityDenoiser(network, dtype=torch.float32)
        denoiser = Guidance(denoiser, unconditional, settings.guidance, settings.guidance_interval)
    return solve(denoiser, levels[0].item() * z.double(), levels, settings.solver).float()


def shards(num_samples: int, batch_size: int, shard_size: int) -> list[tuple[int, int]]:
    """`(first, last)` of shards of whole batches; the last one may be shorter."""
    length = math.ceil(shard_size / batch_size) * batch_size
    return [(i, min(i + length, num_samples)) for i in range(0, num_samples, length)]


def run(context: Context) -> Result:
    """Sample all shards; write images, labels, a picture and how they were made."""
    import numpy as np

    settings: SampleSettings = context.settings
    model, spectrum = context.inputs["model"], context.inputs.get("spectrum")
    items = shards(settings.num_samples, settings.batch_size, settings.shard_size)
    context.progress(0, settings.num_samples, "samples")
    try:
        found = None if spectrum is None else spectrum.load()
        parts = context.map(sample_shard, items, model.path, settings, found)
    except (ValueError, FloatingPointError) as error:
        raise StageError(str(error)) from error
    images = np.concatenate([part for part, _ in parts])
    context.progress(len(images), settings.num_samples, "samples")
    labels = np.arange(len(images), dtype=np.int64) % model.load().num_classes
    np.save(context.path / "samples.npy", images)
    np.save(context.path / "labels.npy", labels)
    write_grid(context.path / "grid.png", images[: GRID_SIDE**2])
    facts = {
        "training_step": model.description.get("steps_before", 0) + parts[0][1],
        "method": model.settings["method"],
        "solver": settings.solver,
        "nfe": settings.nfe,
        "grid": settings.grid_name,
        "time_density": model.description.get("time_density", ""),
        "guidance": settings.guidance,
        "seed": settings.seed,
        "num_samples": len(images),
    }
    (context.path / "samples.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    return Result()


def write_grid(path: Path, images: np.ndarray, columns: int = GRID_SIDE) -> None:
    """A PNG of images (n, C, H, W), clipped to [-1, 1], each enlarged to about 48 pixels."""
    import numpy as np
    from PIL import Image

    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    scale, gap = max(1, 48 // max(height, width)), 1
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        pixels = np.rint((np.clip(image, -1, 1) + 1) * 127.5)
        sheet[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    sheet = sheet.repeat(scale, 0).repeat(scale, 1).astype(np.uint8)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet[..., :3]).save(path)


def _grid_sources(settings: SampleSettings) -> list[str]:
    if settings.grid in table.DENSITY_GRIDS:
        return densities.sources(settings.density, settings.grid)
    return [table.GRIDS[settings.grid]]


STAGE = Stage(
    name="sample",
    settings=SampleSettings,
    output=Samples,
    run="stages.sample:run",
    inputs={"model": Input(TrainedNetwork), "spectrum": Input(Spectrum, optional=True)},
    sources=lambda settings: [*_grid_sources(settings), table.SOLVERS[settings.solver]],
    needs=lambda settings: ["spectrum"] if densities.needs_spectrum(settings.grid) else [],
)
