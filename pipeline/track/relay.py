"""Tells MLflow what finished nodes hold, from their artifacts, beside the running work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import progress
from pipeline.shown import Shown
from pipeline.stage import resolve
from pipeline.store import Store

PATIENCE_SECONDS = 30.0
NOTHING = Shown()


class Relay:
    """A thread that reads artifacts' curves and files and hands them to the tracker."""

    def __init__(
        self,
        tracker: Any,
        store: Store,
        shown: Shown = NOTHING,
        nodes: Sequence[Any] = (),
    ) -> None:
        self._tracker, self._store, self._shown = tracker, store, shown
        self._nodes, self._datasets = nodes, {}
        self._queue: queue.Queue = queue.Queue()
        self._untold: list[str] = []
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="relay")
        self.problems: list[str] = []
        self._thread.start()

    def ended(self, name: str, item: Any) -> None:
        """A node ended; `item` is the scheduler's `Progress` of it."""
        self._untold.append(name)
        self._queue.put((name, item.node, item.manifest, item.state))

    def close(self, say: Callable[[str], None]) -> None:
        """Wait until every node that ended is told: what MLflow is not told now, it never is.

        say: hears of a wait that takes long, which Ctrl-C ends.
        """
        self._queue.put(None)
        try:
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive():
                say(
                    f"still reading what {len(self._untold)} nodes hold, for MLflow; "
                    "Ctrl-C goes on without them"
                )
                self._thread.join()
        except KeyboardInterrupt:
            self._give_up("nobody waited until they were read")

    def stop(self, timeout_seconds: float = 0.5) -> None:
        """End soon, in an interrupted run: it tells everything again when it goes on."""
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._give_up("they are told when the run goes on")

    def _give_up(self, why: str) -> None:
        self._given_up.set()
        if self._untold:
            self.problems.append(f"MLflow lacks {', '.join(self._untold)}: {why}")

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None and not self._given_up.is_set():
            try:
                self._track(*entry)
            except Exception as error:
                self.problems.append(f"MLflow lacks {entry[0]}: {type(error).__name__}: {error}")
            self._untold.remove(entry[0])

    def _track(self, name: str, node: Any, manifest: Any, state: str) -> None:
        if manifest is None:
            if state == progress.FAILED:
                self._tracker.node_finished(name, status="FAILED", metrics={}, curves=[])
            return
        artifact = self._store.open(manifest.stage, manifest.key)
        if self._given_up.is_set():
            return
        curves = artifact.curves() + timing_curves(manifest.timings)
        metrics, constants = {}, {}
        for metric, value in manifest.metrics.items():
            (constants if self._shown.is_constant(metric) else metrics)[metric] = value
        settings = {f"{node.stage.name}.{k}": v for k, v in manifest.settings.items()}
        self._tracker.node_finished(
            name,
            status="FINISHED",
            metrics=metrics,
            curves=curves,
            tags={"artifact_key": manifest.key} | dict(node.tags) | manifest.tags,
            params=settings | constants,
            abscissa=manifest.abscissa,
            cached=state == progress.REUSED,
        )
        self._datasets[name] = artifact.datasets()
        for dataset in self._datasets[name]:
            self._tracker.dataset(name, **dataset)
        if node.stage.name in self._shown.models:
            self._track_model(name, node, artifact)
        for path in artifact.tracked_files():
            self._tracker.artifact(path, name)
        for path in artifact.table_files():
            self._tracker.artifact(path, name, table=True)

    def _track_model(self, name: str, node: Any, artifact: Any) -> None:
        readers = [other for other in self._nodes if name in other.upstream]
        described = resolve(self._shown.models[node.stage.name])(artifact, readers)
        place = {"store": self._store.uri, "stage": node.stage.name, "key": artifact.manifest.key}
        read = [(of, one) for of in node.upstream for one in self._datasets.get(of, ())]
        self._tracker.model(name, asdict(described) | place, read)


def timing_curves(timings: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Measured speeds kept as `[[step, value], ...]` in a manifest, as curve rows."""
    return [
        (metric, int(step), float(value))
        for metric, rows in timings.items()
        if isinstance(rows, list)
        for step, value in rows
    ]
