"""The stage `diagnose`: where the alignment's gradient falls, and what a mask does to alignment."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.data import Data
from stages.artifacts.diagnosis import FILE, Diagnosis, Measured
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.teacher import Teacher
from stages.methods import drawn_at, table
from stages.settings import densities
from stages.settings.densities import DensitySettings
from stages.settings.methods import options_of

if TYPE_CHECKING:
    from torch import nn

    from stages.artifacts.data import DataSet
    from stages.artifacts.teacher import OnlineTeacher, TeacherFeatures
    from stages.methods.density import TimeDensity
    from stages.methods.diagnostics import Heatmap
    from stages.methods.losses import Batch


class DiagnoseOptions(Settings):
    """What is measured on every checkpoint of a training that aligns with a teacher."""

    num_images: int = Field(
        1500, ge=2, le=10**7, description="training images, the first ones; at most all"
    )
    num_draws: int = Field(1, ge=1, le=1000, description="draws of t, noise and mask an image")
    batch_size: int = Field(
        100, ge=1, le=65536, description="images at once; the gap's error is over these blocks"
    )
    top: float = Field(
        0.1, gt=0, le=1, description="share of an image's patches that count as the largest"
    )
    mask_ratio: float = Field(
        0.25, gt=0, lt=1, description="share of the patches that the masked input leaves out"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the network runs")


class DiagnoseSettings(DiagnoseOptions):
    """The stage's settings."""

    density: DensitySettings = Field(
        DensitySettings(), description="where t is drawn; it must be the training's"
    )
    seed: int = Field(0, ge=0, description="of t, noise and masks; the same for every network")


def run(context: Context) -> Result:
    """Measure every checkpoint on the same images, times, noise and masks."""
    settings: DiagnoseSettings = context.settings
    model, data = context.inputs["model"].load(), context.inputs["data"].load()
    pixels = context.inputs.get("pixels")
    with raised_as(StageError):
        features = context.inputs["teacher"].of(
            context.inputs["data"], pixels, data.train, settings.device
        )
    aligned = [method for method in table.LOSSES if options_of(method).uses_teacher]
    if model.method not in aligned:
        raise StageError(
            f"method {model.method} aligns with no teacher, so there is nothing to diagnose; "
            f"connect a training of {', '.join(sorted(aligned))}"
        )
    of_time = _time_density(context)
    diagnoses = []
    for step in model.steps:
        context.progress(len(diagnoses), len(model.steps), "checkpoints")
        network = model.network(step, settings.device)
        if network.num_patches < 2:
            raise StageError(
                "the network sees an image as one patch, and diagnostics compare patches; lower "
                "train.network.patch"
            )
        diagnoses.append(
            measure(network, step, _batches(data, features, network, settings), settings, of_time)
        )
        context.log(_line(diagnoses[-1]))
    lines = [asdict(measured) for measured in diagnoses]
    (context.path / FILE).write_text(json.dumps(lines, indent=1, sort_keys=True), encoding="utf-8")
    return Result(
        metrics=dict(_metrics(diagnoses[-1])),
        curves=[(name, m.step, value) for m in diagnoses for name, value in _metrics(m)],
        abscissa="training_step",
        timings=_speed(context.inputs["model"]),
    )


def _time_density(context: Context) -> TimeDensity | None:
    """That of the training. Raises StageError where settings name another."""
    settings: DiagnoseSettings = context.settings
    density, spectrum = settings.density, context.inputs.get("spectrum")
    model = context.inputs["model"]
    said = model.settings["density"]
    own = options_of(model.description["method"]).own_density()
    trained = DensitySettings(**said) if said else own
    if trained != density:
        raise StageError(
            f"density is {density.name}, and the network was trained with {trained.name}; "
            "alignment is diagnosed where it was trained: set density to the training's"
        )
    with raised_as(StageError):
        loaded = None if spectrum is None else spectrum.load()
        return densities.time_density(density, density.kind, density.base, loaded)


def measure(
    network: nn.Module,
    step: int,
    batches: Iterator[Batch],
    settings: DiagnoseOptions,
    time_density: TimeDensity | None,
) -> Measured:
    """Heatmaps and gap of a frozen network over batches."""
    from stages.methods.diagnostics import alignment_heatmap, stability_gap

    full = masked = None
    pairs: list[tuple[float, float]] = []
    for batch in batches:
        keep = _keep(batch, settings.mask_ratio)
        one = alignment_heatmap(network, batch, None, settings.top, time_density)
        other = alignment_heatmap(network, batch, keep, settings.top, time_density)
        full, masked = (one, other) if full is None else (full + one, masked + other)
        losses = stability_gap(network, batch, keep, time_density)
        pairs.append(tuple(value.item() for value in losses))
    gaps = [with_mask - without for with_mask, without in pairs]
    return Measured(
        step=step,
        full=_as_map(full, network.grid),
        masked=_as_map(masked, network.grid),
        max_min_ratio=_finite(full.max_min_ratio),
        variation=full.coefficient_of_variation,
        masked_max_min_ratio=_finite(masked.max_min_ratio),
        masked_variation=masked.coefficient_of_variation,
        masked_alignment=statistics.fmean(with_mask for with_mask, _ in pairs),
        full_alignment=statistics.fmean(without for _, without in pairs),
        gap=statistics.fmean(gaps),
        gap_error=statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None,
    )


def _batches(
    data: DataSet,
    features: TeacherFeatures | OnlineTeacher,
    network: nn.Module,
    settings: DiagnoseSettings,
) -> Iterator[Batch]:
    """Blocks of the first images with their teacher features, for every draw; all full. Labels for
    a network that was trained with them."""
    import torch

    from stages.methods.draws import Draws
    from stages.methods.losses import Batch

    count = min(settings.num_images, len(data.train))
    size = min(settings.batch_size, count)
    for draw in range(settings.num_draws):
        for first in range(0, count - size + 1, size):
            indices = torch.arange(first, first + size)
            targets, tokens = features.batch(indices)
            labels = data.train.labels[first : first + size] if network.num_classes else None
            parts = (data.train[first : first + size], labels, targets, tokens)
            images, labels, targets, tokens = (
                part if part is None else part.to(settings.device) for part in parts
            )
            draws = Draws(settings.seed, indices.to(settings.device), drawn_at.DIAGNOSIS + draw)
            yield Batch(images, labels, draws, targets, tokens)


def _keep(batch: Batch, mask_ratio: float):
    """The patches (B, K) that the masked input keeps; fewer than all, at least one."""
    from stages.methods.patches import num_kept

    num_patches = batch.patch_targets.shape[1]
    return batch.draws.keep(num_patches, min(num_kept(num_patches, mask_ratio), num_patches - 1))


def _as_map(heatmap: Heatmap, grid: tuple[int, int]) -> list[list[float | None]]:
    """(rows, columns) of the probability; None for a patch that no mask left in."""
    rows = heatmap.probability.view(*grid).tolist()
    return [[None if math.isnan(value) else value for value in row] for row in rows]


def _finite(ratio: float) -> float | None:
    return ratio if math.isfinite(ratio) else None


def _metrics(measured: Measured) -> Iterator[tuple[str, float]]:
    values = {
        "alignment_gap": measured.gap,
        "alignment_gap_error": measured.gap_error,
        "alignment_full": measured.full_alignment,
        "alignment_masked": measured.masked_alignment,
        "gradient_max_min_ratio": measured.max_min_ratio,
        "gradient_variation": measured.variation,
        "masked_gradient_max_min_ratio": measured.masked_max_min_ratio,
        "masked_gradient_variation": measured.masked_variation,
    }
    return ((name, value) for name, value in values.items() if value is not None)


def _speed(model: TrainedNetwork) -> dict[str, float]:
    """Median seconds a step, and tokens a second, of the training, as it measured them."""
    medians = {}
    for name in ("step_seconds", "tokens_per_second"):
        rows: Sequence = model.manifest.timings.get(name, ())
        if rows:
            medians[name] = statistics.median(value for _, value in rows)
    return medians


def _line(measured: Measured) -> str:
    ratio = "infinite" if measured.max_min_ratio is None else f"{measured.max_min_ratio:.2f}"
    error = "" if measured.gap_error is None else f" +- {measured.gap_error:.2g}"
    return (
        f"step {measured.step}: alignment gradient max/min {ratio}, variation "
        f"{measured.variation:.3f}; stability gap {measured.gap:.3g}{error}"
    )


GRADIENT = ("gradient_max_min_ratio", "gradient_variation")
METRICS = (
    *("alignment_gap", "alignment_full", "alignment_masked", *GRADIENT),
    *(f"masked_{name}" for name in GRADIENT),
)

STAGE = Stage(
    name="diagnose",
    settings=DiagnoseSettings,
    output=Diagnosis,
    run="stages.papers.maskalign.diagnose:run",
    inputs={
        "model": Input(TrainedNetwork),
        "data": Input(Data),
        "teacher": Input(Teacher),
        "pixels": Input(Data, optional=True),
        "spectrum": Input(Spectrum, optional=True),
    },
    sources=lambda settings: [
        "stages.nets.sit:SiT",
        *densities.sources(settings.density, settings.density.kind, settings.density.base),
    ],
    needs=lambda settings: ["spectrum"] if densities.needs_spectrum(settings.density.kind) else [],
    metrics=lambda node: METRICS,
    estimate="stages.papers.maskalign.expected:diagnose",
)
