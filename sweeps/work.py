"""The work of one trial: its runs with all seeds side by side, told in small plain reports."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import progress
from pipeline.record import node_entry
from pipeline.run import Claims, Execution, advance_together
from pipeline.stage import Catalog
from pipeline.store import Store
from sweeps.target import Sweep, targets

FINISHED, FAILED = "finished", "failed"
OLD = "old"  # marks what an earlier session knew already
STEP, RUNG, OBJECTIVE = "step", "rung", "objective"  # what Ray Tune's algorithms read
TELL_SECONDS = 0.5
LONGEST_SECONDS = 10.0


class Ear:
    """The listener of an execution: keeps its news, with the number of the seed, to be told."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.events: list[tuple] = []
        self.view = self.tracker = self
        self.on_change = self._ended

    def update(self, name: str, **changes: Any) -> None:
        if "total" in changes or changes.get("state") == progress.RUNNING:
            how_far = (changes.get("done", 0), changes.get("total", 0), changes.get("unit", ""))
            self._tell("progress", name, *how_far)

    def tick(self) -> None:
        """The sweep's own view says what runs."""

    def message(self, text: str) -> None:
        self._tell("message", "", text)

    def log(self, node: str, text: str) -> None:
        self._tell("log", node, text)

    def node_started(self, node: str, tags: Mapping[str, str]) -> None:
        """The trial's own run in MLflow has the tags already."""

    def points(self, node: str, abscissa: str, rows: Sequence[tuple[str, int, float]]) -> None:
        self._tell("points", node, abscissa, list(rows))

    def close(self) -> None:
        """Nothing stays open."""

    def _ended(self, name: str, item: Any) -> None:
        self._tell("node", name, item.state, item.error)

    def _tell(self, kind: str, node: str, *rest: Any) -> None:
        self.events.append((kind, self._number, node, *rest))

    def drain(self) -> list[tuple]:
        events, self.events = self.events, []
        return events


class Work:
    """A trial's executions, one for each seed. Needs Ray connected.

    Raises:
        UsageError: its values cannot be.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        sweep: Sweep,
        values: Mapping[str, Any],
        board: Any,
        git: Mapping[str, Any],
    ) -> None:
        self._space = sweep.space
        self._targets = targets(catalog, sweep, values)
        self._ears = [Ear(number) for number in range(len(self._targets))]
        claims = Claims()
        self._executions = [
            Execution(target.plan(store), store, ear, catalog.packages, claims, git)
            for target, ear in zip(self._targets, self._ears, strict=True)
        ]
        for execution in self._executions:
            execution.begin(board)
        self._reports: deque[tuple[int, float]] = deque()

    def next(self) -> dict[str, Any]:
        """Go on until there is something to tell: a point of the watched curve, news, the end."""
        begun = time.monotonic()
        events: list[tuple] = []
        while not self._reports:
            going = advance_together(self._executions)
            for ear in self._ears:
                events += ear.drain()
            self._watch(events)
            took = time.monotonic() - begun
            if any(e.failed for e in self._executions):
                self.cancel()  # the other seeds would not save the trial
                return {"events": events, **self._result()}
            if not going and not self._reports:
                return {"events": events, **self._result()}
            if took > LONGEST_SECONDS or (events and took > TELL_SECONDS):
                break
        if not self._reports:
            return {"events": events}
        step, value = self._reports.popleft()
        return {"events": events, STEP: step, RUNG: value}

    def _watch(self, events: Sequence[tuple]) -> None:
        """Keep the points by which lagging trials are stopped: those of the first seed."""
        halving = self._space.halving
        if halving is None:
            return
        for kind, number, node, *rest in events:
            if kind == "points" and number == 0 and node == self._targets[0].watched:
                rows = [row for row in rest[1] if row[0] == halving.metric]
                self._reports += [(step, value) for _, step, value in rows]

    def cancel(self) -> None:
        """Stop the nodes that run; what they saved for a resumed run stays."""
        for execution in self._executions:
            execution.cancel()

    def _result(self) -> dict[str, Any]:
        nodes = [_described(execution) for execution in self._executions]
        end = {"done": True, "nodes": nodes}
        for execution in self._executions:
            for name in execution.failed:
                return end | {"state": FAILED, "error": f"{name}: {execution.nodes[name].error}"}
        measured: dict[str, list[float]] = {}
        errors: dict[str, list[float | None]] = {}
        artifacts: dict[str, list[tuple[str, str]]] = {}
        for label, measure in self._space.metrics.items():
            metric = measure.metric or label
            for execution, target in zip(self._executions, self._targets, strict=True):
                node = target.measured[label].name
                reported = execution.nodes[node].manifest.metrics
                value = reported.get(metric)
                if value is None or not math.isfinite(value):
                    what = "is not a number" if value is not None else "is not there"
                    known = ", ".join(reported) or "nothing"
                    error = f"{metric} of {node} {what} (it reports: {known})"
                    return end | {"state": FAILED, "error": error}
                measured.setdefault(label, []).append(value)
                errors.setdefault(label, []).append(reported.get(f"{metric}_standard_error"))
                item = execution.nodes[node]
                artifacts.setdefault(label, []).append((item.node.stage.name, item.key))
        values = measured[self._space.decides]
        return end | {
            "state": FINISHED,
            OBJECTIVE: sum(values) / len(values),
            "measured": measured,
            "errors": errors,
            "artifacts": artifacts,
        }


def _described(execution: Execution) -> dict[str, dict[str, Any]]:
    """What a run's record says of nodes."""
    return {
        name: node_entry(
            item.node,
            item.key,
            item.state,
            item.manifest.seconds if item.manifest else None,
            item.error,
        )
        for name, item in execution.nodes.items()
    }
