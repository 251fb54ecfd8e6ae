"""Tells MLflow what finished nodes hold, from their artifacts, beside the running work."""

from __future__ import annotations

import queue
import threading
from typing import Any

from pipeline import progress
from pipeline.store import Store


class Relay:
    """A thread that reads artifacts' curves and files and hands them to the tracker."""

    def __init__(self, tracker: Any, store: Store) -> None:
        self._tracker, self._store = tracker, store
        self._queue: queue.Queue = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="relay")
        self._thread.start()
        self.problems: list[str] = []

    def ended(self, name: str, item: Any) -> None:
        """A node ended; `item` is the scheduler's `Progress` of it."""
        self._queue.put((name, item.node, item.manifest, item.state))

    def close(self, timeout_seconds: float = 30) -> None:
        self._queue.put(None)
        self._thread.join(timeout_seconds)

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._track(*entry)
            except Exception as error:
                self.problems.append(f"MLflow lacks {entry[0]}: {type(error).__name__}: {error}")

    def _track(self, name: str, node: Any, manifest: Any, state: str) -> None:
        if manifest is None:
            if state == progress.FAILED:
                self._tracker.node_finished(name, status="FAILED", metrics={}, curves=[])
            return
        artifact = self._store.open(manifest.stage, manifest.key)
        curves = artifact.curves() + timing_curves(manifest.timings)
        self._tracker.node_finished(
            name,
            status="FINISHED",
            metrics=manifest.metrics,
            curves=curves,
            tags={"artifact_key": manifest.key} | dict(node.tags) | manifest.tags,
            params={f"{node.stage.name}.{k}": v for k, v in manifest.settings.items()},
            abscissa=manifest.abscissa,
            cached=state == progress.REUSED,
        )
        for dataset in artifact.datasets():
            self._tracker.dataset(name, **dataset)
        for path in artifact.tracked_files():
            self._tracker.artifact(path, name)
        for path in artifact.table_files():
            self._tracker.artifact(path, name, table=True)


def timing_curves(timings: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Measured speeds kept as `[[step, value], ...]` in a manifest, as curve rows."""
    return [
        (metric, int(step), float(value))
        for metric, rows in timings.items()
        if isinstance(rows, list)
        for step, value in rows
    ]
