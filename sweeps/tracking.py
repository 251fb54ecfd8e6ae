"""What MLflow is told of trials: a child run each, with its parameters, scores and curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import track
from pipeline.errors import DamagedArtifactError
from pipeline.store import Store
from pipeline.track.relay import timing_curves
from sweeps.outcome import Value
from sweeps.record import LAGGED, TrialRecord
from sweeps.space import Space
from sweeps.work import FAILED, FINISHED

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", LAGGED: "KILLED"}


class Curves:
    """Passes trials on to the tracker, curves read back from their artifacts."""

    def __init__(self, tracker: track.Tracker, store: Store, space: Space) -> None:
        self._tracker, self._store, self._space = tracker, store, space

    def begin(self, trial: TrialRecord) -> None:
        self._tracker.child(trial.name, {"trial": trial.name, "state": "running"}, trial.values)

    def end(self, trial: TrialRecord, nodes: Sequence[Mapping[str, Any]]) -> None:
        """The trial ended; `nodes` for each seed as its record has them."""
        abscissa, rows = None, []
        if trial.state == FINISHED:
            abscissa, rows = self._mean_curves(nodes)
        metrics: dict[str, float] = {}
        for name, values in trial.measured.items():
            value = Value.of(values, trial.errors.get(name, ()))
            metrics[name] = value.mean
            if value.error is not None:
                metrics[f"{name}_standard_error"] = value.error
        self._tracker.node_finished(
            trial.name,
            status=STATUS[trial.state],
            metrics=metrics,
            curves=rows,
            tags={"state": trial.state, "error": trial.error[:500]},
            abscissa=abscissa,
        )

    def _mean_curves(
        self, nodes: Sequence[Mapping[str, Any]]
    ) -> tuple[str | None, list[tuple[str, int, float]]]:
        """The curves of a trial's nodes, means over its seeds; of equal names the last node's."""
        by_point: dict[tuple[str, int], dict[int, float]] = {}
        abscissa = None
        for number, seed in enumerate(nodes):
            for along, rows in self._curves(seed):
                abscissa = along or abscissa
                for metric, step, value in rows:
                    by_point.setdefault((metric, step), {})[number] = value
        rows = [
            (metric, step, statistics.fmean(v.values())) for (metric, step), v in by_point.items()
        ]
        return abscissa, rows

    def _curves(
        self, nodes: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[str | None, list[tuple[str, int, float]]]]:
        for node in nodes.values():
            try:
                manifest = self._store.manifest(node["stage"], node["key"])
                if manifest is not None and manifest.abscissa:
                    rows = self._store.open(node["stage"], node["key"]).curves()
                    yield manifest.abscissa, rows + timing_curves(manifest.timings)
            except DamagedArtifactError:
                continue  # the next run that reads it mends it
