"""The curves of a training: means over windows of steps, whole again after an interruption."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StageError
from stages.training.loop import Step, mean_over_processes

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
        self._names: list[str] = []
        self._window: list[Tensor] = []
        self._clock, self._timed = time.perf_counter(), 0

    def add(self, step: Step) -> Sequence[Row]:
        """Take a step in; returns the new curve points when it fills the window.

        Raises StageError as `check` does.
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
        self.step_seconds.append((step.step, (time.perf_counter() - self._clock) / self._timed))
        self._window, self._timed, self._clock = [], 0, time.perf_counter()
        return rows

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
        return {"curves": self.curves, "step_seconds": self.step_seconds}

    def restore(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], device: torch.device | str
    ) -> None:
        """Continue from what `tensors` and `record` returned."""
        self.curves = [tuple(row) for row in record["curves"]]
        self.step_seconds = [tuple(row) for row in record["step_seconds"]]
        self._window = list(tensors["window"].to(device)) if "window" in tensors else []
