"""The curves of a training: means over windows of steps, whole again after an interruption."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StageError
from stages.training.loop import Step, largest_over_processes, mean_over_processes

Row = tuple[str, int, float]


class LossLog:
    """Curve points so far, and the values of the window that is not yet full.

    every: steps of a window. Values are averaged over the processes; nothing waits for the device
    but at the end of a window or when `check` is called.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.curves: list[Row] = []
        self.step_seconds: list[tuple[int, float]] = []
        self.waiting_share: list[tuple[int, float]] = []  # of the time, for data
        self._names: list[str] = []
        self._window: list[Tensor] = []
        self._clock, self._timed, self._waited = time.perf_counter(), 0, 0.0
        self._begun, self._seconds, self._seconds_waited = False, 0.0, 0.0

    def add(self, step: Step, waited: float = 0.0) -> Sequence[Row]:
        """Take a step in; returns the new curve points when it fills the window.

        waited: seconds that this process has waited for data since the log was made; of several
        processes all wait for the one that waits longest. Raises StageError as `check` does.
        """
        self._names = [*(f"loss/{name}" for name in step.losses), "gradient_norm"]
        self._window.append(torch.stack([*step.losses.values(), step.gradient_norm]).double())
        self._timed += 1
        if step.step % self.every:
            return ()
        self.check(step.step)
        means = torch.stack(self._window).mean(0).tolist()
        rows = [(name, step.step, mean) for name, mean in zip(self._names, means, strict=True)]
        self.curves += rows
        self._time(step.step, waited)
        self._window = []
        return rows

    def _time(self, step: int, waited: float) -> None:
        """Note what the window's steps took, and begin the next one's clock."""
        seconds = time.perf_counter() - self._clock
        device = self._window[0].device
        lost = min(seconds, largest_over_processes(waited - self._waited, device))
        self.step_seconds.append((step, seconds / self._timed))
        self.waiting_share.append((step, lost / seconds))
        if self._begun:  # the first window holds the wait for the first batch of all
            self._seconds += seconds
            self._seconds_waited += lost
        self._begun = True
        self._clock, self._timed, self._waited = time.perf_counter(), 0, waited

    def waits(self, least_seconds: float = 0.0) -> float:
        """The share of the time that was spent waiting for data since this log was made or went on,
        its first window left out; 0 before so many seconds were seen."""
        seen = self._seconds and self._seconds >= least_seconds
        return self._seconds_waited / self._seconds if seen else 0.0

    def check(self, last_step: int) -> None:
        """Raise StageError, naming the step, when a value of the window is NaN or infinite.

        The window then holds the means over all processes.
        """
        if not self._window:
            return
        values = mean_over_processes(torch.stack(self._window))
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise StageError(
                f"{self._names[column]} is {values[row, column].item()} at step "
                f"{last_step - len(values) + row + 1}; training stopped, its last good state is "
                "kept: lower train.lr or raise train.warmup_steps"
            )
        self._window = list(values)

    def tensors(self) -> dict[str, Tensor]:
        """The window, to be saved."""
        return {"window": torch.stack(self._window)} if self._window else {}

    def record(self) -> dict[str, Any]:
        """The rest, as JSON data."""
        return {
            "curves": self.curves,
            "step_seconds": self.step_seconds,
            "waiting_share": self.waiting_share,
        }

    def restore(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], device: torch.device | str
    ) -> None:
        """Continue from what `tensors` and `record` returned."""
        self.curves = [tuple(row) for row in record["curves"]]
        self.step_seconds = [tuple(row) for row in record["step_seconds"]]
        self.waiting_share = [tuple(row) for row in record["waiting_share"]]
        self._window = list(tensors["window"].to(device)) if "window" in tensors else []
