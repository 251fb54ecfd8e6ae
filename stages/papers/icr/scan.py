"""The stage `scan`: ICR of a model over its checkpoints, or over noise levels at one of them.

Every row depends on one checkpoint's weights, the data and the settings alone, and is remembered
under their hash: a longer training, or another list of checkpoints, scans only what is new.
**Units**: sigma in standard deviations of the training pixels, squared errors in their variance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage
from stages.artifacts.data import Data
from stages.artifacts.network import TrainedNetwork, checkpoint_name
from stages.artifacts.scan import FILE, Scan, ScanRow
from stages.artifacts.scores import Scores
from stages.papers.icr import summary
from stages.settings.scans import ScanSettings, ViewOptions

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.papers.icr.measure import Viewer

WAVE = 8  # rows scanned side by side, and then remembered
# Of work left that other processes are asked to share; one row stays in this one.
WORTH_SECONDS = 10


@dataclass(frozen=True)
class Item:
    """One row to scan: a checkpoint, and sigma in standard deviations."""

    step: int
    sigma: float


def run(context: Context) -> Result:
    """Scan what is not remembered; write the rows, the alarm and the curves."""
    settings: ScanSettings = context.settings
    model, data = context.inputs["model"], context.inputs["data"]
    items = items_of(settings, model)
    before = model.description.get("steps_before", 0)
    rows = [replace(row, step=before + row.step) for row in _rows(context, items)]
    rows = summary.with_scores(rows, context.inputs.get("scores"))
    facts = summary.facts_of(settings, rows, model, data)
    (context.path / FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for line in summary.lines_of(facts, rows):
        context.log(line)
    return Result(
        metrics=summary.metrics_of(facts, rows),
        curves=summary.curves_of(settings.abscissa, rows, facts["icr_error"]),
        abscissa=settings.abscissa,
        tags=summary.tags_of(facts),
    )


def items_of(settings: ScanSettings, model: TrainedNetwork) -> list[Item]:
    """The rows that the settings ask for. Raises StageError for a checkpoint that is not there."""
    kept = model.description["steps"]
    absent = sorted(set(settings.steps) - set(kept))
    if absent:
        known = ", ".join(map(str, kept))
        raise StageError(f"no checkpoint of step {absent[0]} was kept (there are {known})")
    if settings.sigmas:
        step = settings.steps[0] if settings.steps else kept[-1]
        return [Item(step, sigma) for sigma in settings.sigmas]
    return [Item(step, settings.sigma) for step in sorted(settings.steps or kept)]


def _rows(context: Context, items: Sequence[Item]) -> list[ScanRow]:
    settings, model, data = context.settings, context.inputs["model"], context.inputs["data"]
    names = {item: depends_on(item, model, data, settings) for item in items}
    by_item = {item: context.recall(names[item]) for item in items}
    new = [item for item in items if by_item[item] is None]
    if len(new) < len(items):
        context.log(f"{len(items) - len(new)} of {len(items)} rows are remembered")
    context.progress(len(items) - len(new), len(items), "rows")
    size, begun = 1, time.perf_counter()
    while new:
        wave, new = new[:size], new[size:]
        with raised_as(StageError):
            rows = context.map(scan_item, wave, model, data, settings)
        for item, row in zip(wave, rows, strict=True):
            context.remember(names[item], row)
            by_item[item] = row
        context.progress(len(items) - len(new), len(items), "rows")
        if size == 1 and len(new) * (time.perf_counter() - begun) > WORTH_SECONDS:
            size = WAVE
        begun = time.perf_counter()
    return [ScanRow(**by_item[item]) for item in items]


def depends_on(
    item: Item, model: TrainedNetwork, data: Data, settings: ScanSettings
) -> dict[str, Any]:
    """All that a row depends on but the code of the scan."""
    weights = model.manifest.files[checkpoint_name(item.step)]["sha256"]
    network = {k: v for k, v in model.manifest.sources.items() if k.startswith("stages.nets.")}
    unread = {"steps", "sigmas", "sigma", "alarm_errors", "memorized"}
    return {
        "weights": weights,
        "network": [model.description["network"], model.description["config"], network],
        "num_images": model.description.get("num_images"),
        # Of networks from elsewhere: code of a person's own is in no weights.
        "elsewhere": [model.description.get(name) for name in ("digest", "null_class")],
        "data": data.manifest.payload,
        "step": item.step,
        "sigma": item.sigma,
        "settings": {k: v for k, v in settings.keyed().items() if k not in unread},
    }


def scan_item(
    item: Item, model: TrainedNetwork, data: Data, settings: ScanSettings
) -> dict[str, Any]:
    """The row of one checkpoint at one level, as JSON data, without what samples tell."""
    from stages.papers.icr import measure

    loaded, images = model.load(), data.load()
    std, device = images.std, settings.device
    if not std > 0:
        raise ValueError("the training images do not vary; a noise level needs images that do")
    sigma, variance = item.sigma * std, std**2
    network = loaded.network(item.step, device)
    subject = measure.subject_of(loaded, network, settings)
    seen = model.description.get("num_images") or len(images.train)
    viewer = _viewer(data, ViewOptions(**settings.shared_with(ViewOptions)), seen, device)
    row = measure.measure(subject, viewer, sigma, settings.components)
    how = (sigma, settings.loss_draws, settings.batch_size)
    held_out_images = images.test[: settings.num_images].to(device)
    denoiser, told = subject.denoiser, subject.told
    held_out, error = measure.denoising_error(
        denoiser, held_out_images, *how, told(images.test.labels)
    )
    trained_on = images.train[: min(seen, settings.num_images)].to(device)
    on_train, _ = measure.denoising_error(denoiser, trained_on, *how, told(images.train.labels))
    row |= {
        "step": item.step,
        "sigma": item.sigma,
        "denoising_mse": held_out / variance,
        "denoising_mse_error": error / variance,
        "denoising_mse_train": on_train / variance,
    }
    # What is told the class tells nothing by how well it knows it.
    if settings.probe and images.num_classes > 1 and not subject.asks_classes:
        first = slice(settings.probe_images)
        train, test = (
            (part[first].to(device), part.labels[first]) for part in (images.train, images.test)
        )
        right = measure.probe_right(subject, train, test, sigma, settings.batch_size)
        row["probe_accuracy"] = right.double().mean().item()
        row["probe_right"] = "".join(map(str, right.int().tolist()))
    return row


_LATEST: dict[Any, Viewer] = {}


def _viewer(data: Data, options: ViewOptions, seen: int, device: str) -> Viewer:
    """The views, kept in this process for the next checkpoint."""
    from stages.papers.icr.measure import Viewer, images_of, labels_of

    key = (data.manifest.payload, options, seen, device)
    if key not in _LATEST:
        _LATEST.clear()
        loaded = data.load()
        shown = images_of(loaded, options, seen), labels_of(loaded, options, seen)
        _LATEST[key] = Viewer(shown[0].to(device), options, shown[1])
    return _LATEST[key]


METRICS = ("icr", "icr_minimum", "denoising_mse", "denoising_ratio", "probe_accuracy")


def _metrics(node: Node) -> tuple[str, ...]:
    if node.settings.sigmas:
        return (*METRICS, "icr_minimum_sigma", "probe_accuracy_sigma")
    changes = ("icr_minimum_step", "icr_rise", "icr_fall", "alarm_step")
    return (*METRICS, *changes, "memorization_step", "memorization_ratio", "fid")


STAGE = Stage(
    name="scan",
    settings=ScanSettings,
    output=Scan,
    run="stages.papers.icr.scan:run",
    inputs={
        "model": Input(TrainedNetwork),
        "data": Input(Data),
        "scores": Input(Scores, optional=True),
    },
    metrics=_metrics,
    estimate="stages.papers.icr.expected:scan",
)
