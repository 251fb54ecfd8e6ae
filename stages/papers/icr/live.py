"""The ICR of a network while it is trained, and the alarm it gives: what `scan.live` turns on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stages.methods.alarm import Alarm, alarm
from stages.papers.icr import measure
from stages.settings.scans import ScannedOptions, ViewOptions

if TYPE_CHECKING:
    from torch import nn

    from stages.artifacts.data import DataSet
    from stages.artifacts.network import TrainedModel
    from stages.settings.scans import LiveOptions

Rows = Sequence[tuple[str, int, float]]


class Watch:
    """Measures the ICR at chosen steps of a training, and says when it rises.

    All it knows is `record()`, which a resumed training gives back: it then goes on, and says and
    does, as if it had not been interrupted.
    """

    def __init__(
        self,
        options: LiveOptions,
        model: TrainedModel,
        network: nn.Module,
        data: DataSet,
        kept: Sequence[int],
    ) -> None:
        """network: the averaged weights, which training goes on changing. kept: the checkpoints.
        data: its training images are those that are trained on.

        Raises ValueError for what no ICR can be measured of: see `scanning.check`.
        """
        views = ScannedOptions(**options.shared_with(ViewOptions))
        measure.check([views], model, network, data)
        self.options, self.alarm = options, None
        self._subject = measure.subject_of(model, network, options)
        device = next(network.parameters()).device
        shown = measure.images_of(data, options), measure.labels_of(data, options)
        self._viewer = measure.Viewer(shown[0].to(device), options, shown[1])
        self._sigma = options.sigma * data.std
        self._kept = frozenset(kept)
        self._steps: list[int] = []
        self._values: list[list[float]] = []
        self._confirmations = 0
        self._raised = False

    def due(self, step: int) -> bool:
        """Whether the ICR is measured after this step."""
        every = self.options.every
        return step in self._kept if every is None else step % every == 0

    @property
    def stops(self) -> bool:
        """Whether training is to end here."""
        return self.options.stop and self._confirmations >= self.options.stop_confirmations

    def look(self, step: int) -> tuple[Rows, str]:
        """Measure the network; returns the points of its curve, and what is to be said, if any."""
        values = measure.icr_of_seeds(self._subject, self._viewer, self._sigma)
        before = self.alarm
        self._take(step, values)
        return [("icr", step, sum(values) / len(values))], _said(before, self.alarm)

    def _take(self, step: int, values: list[float]) -> None:
        before = self.alarm
        self._steps.append(step)
        self._values.append(values)
        values_so_far = torch.tensor(self._values, dtype=torch.float64)
        self.alarm = alarm(self._steps, values_so_far, self.options.alarm_errors)
        self._raised |= self.alarm.confirmed
        same = before is not None and before.step == self.alarm.step
        if not self.alarm.confirmed:
            self._confirmations = 0
        else:
            self._confirmations = self._confirmations + 1 if same else 1

    def record(self) -> list[list[Any]]:
        """What was measured, as JSON data: steps and the ICR of every view seed."""
        return [list(row) for row in zip(self._steps, self._values, strict=True)]

    def restore(self, record: Sequence[Sequence[Any]]) -> None:
        """Continue from what `record` returned."""
        for step, values in record:
            self._take(step, values)

    def tags(self) -> Mapping[str, str]:
        """What MLflow says of the training: `alarm` only of one that was confirmed, or is taken
        back since; else `alarm_state`."""
        if self.alarm is None:
            return {}
        if self._raised and not self.alarm.confirmed:
            return {"alarm": f"taken back: {self.alarm.words}"}
        return {"alarm" if self.alarm.confirmed else "alarm_state": self.alarm.words}


def _said(before: Alarm | None, now: Alarm) -> str:
    """News of the alarm: that it is confirmed, or taken back; empty for none."""
    was = before is not None and before.confirmed
    if now.confirmed and not (was and before.step == now.step):
        return now.words
    if was and not now.confirmed:
        return f"the alarm of step {before.step} is taken back: {now.words}"
    return ""
