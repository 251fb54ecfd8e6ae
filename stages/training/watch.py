"""The scans that watch a training, and those that will follow it: checked before any step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, raised_as
from pipeline.stage import resolve
from stages.artifacts.network import TrainedModel
from stages.methods import table

if TYPE_CHECKING:
    from torch import nn

    from stages.artifacts.data import DataSet
    from stages.training.train import TrainSettings


def _described(settings: TrainSettings, config: dict[str, Any], data: DataSet) -> TrainedModel:
    """The network that is being trained, without a checkpoint yet."""
    built = (settings.network.kind, config, settings.method)
    return TrainedModel(Path(), *built, (), tuple(data.shape), data.num_classes)


def check_scans(
    settings: TrainSettings, network: nn.Module, config: dict[str, Any], data: DataSet
) -> None:
    """Raise StageError for a scan to come that cannot be made: before it costs a training."""
    if not settings.scanned:
        return
    model = _described(settings, config, data)
    with raised_as(StageError):
        resolve(table.SCAN_CHECK)(settings.scanned, model, network, data)


def watch_of(
    settings: TrainSettings, network: nn.Module, config: dict[str, Any], data: DataSet
) -> Any:
    """What watches the training (`papers.icr.live.Watch`); None where settings do not ask."""
    if settings.live is None or settings.loss_options.uses_class_token:
        return None  # held-out images come without a class token
    model = _described(settings, config, data)
    with raised_as(StageError):
        return resolve(table.WATCH)(settings.live, model, network, data, settings.kept_steps)
