"""Tells MLflow what a run has spooled.

Reads the spool from where it stopped last, sends batches, and records its progress. Runs, batches
and files are sent so that repeating a send whose answer was lost changes nothing: runs are looked
up by their tags before they are created again, and metric rows keep the time at which they were
spooled, by which MLflow's database knows them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.locations import belongs
from pipeline.track import views
from pipeline.track.database import identity, is_lost
from pipeline.track.models import save
from pipeline.track.server import Batch, Server
from pipeline.track.spool import State, last_begin, read_events
from pipeline.track.system import SystemMetrics
from pipeline.track.uri import sqlite_path, with_driver

PARENT = ""  # the key of the parent run among a run's MLflow runs

Row = tuple[str, int, float]  # metric, step, value
Action = Callable[[], object]


class SentAnewError(Exception):
    """The run was removed from MLflow: start again from the first event."""


class Sender:
    """Reads one run's spool and tells MLflow. Needs the run's lock; `step` sends one chunk.

    Raises:
        Away: from `step`, when the server cannot be used; calling it again resumes.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None] = print) -> None:
        self._run_dir = run_dir
        self._begin = last_begin(run_dir)
        self.uri = self._begin["uri"]
        self._state = State.load(run_dir, self.uri)
        self._server, self._warn = Server(self.uri, warn), warn
        self._batches: dict[str, Batch] = {}
        self._system: SystemMetrics | None = None

    def step(self) -> bool:
        """Send the next events of the spool; return whether there were any."""
        if self._begin_again_if_lost():
            return True
        events, offset = read_events(self._run_dir, self._state.offset)
        if not events and offset == self._state.offset:
            return False
        self._connect()
        later: list[Action] = []
        self._batches = {}
        try:
            for event in events:
                later += getattr(self, f"_on_{event.pop('event')}")(event)
        except SentAnewError:
            self._state = State(self._run_dir, self.uri)
            self._state.save()
            return True
        for key, batch in self._batches.items():
            self._server.log(self._state.runs[key], batch)
        for action in later:
            self._server.may(action)
        for key, batch in self._batches.items():
            for metric, step in batch.steps:
                self._state.steps(key, metric).add(step)
        self._state.offset = offset
        self._state.save()
        self._server.succeeded()
        self._watch_system()
        return True

    def _connect(self) -> None:
        self._server.connect()
        path = sqlite_path(self.uri)
        if path is not None and self._state.database is None:
            self._state.database = identity(path)

    def _begin_again_if_lost(self) -> bool:
        """Where the database is gone, forget what was sent to it; whether that was so."""
        path, state = sqlite_path(self.uri), self._state
        if path is None or not is_lost(path, state.database):
            return False
        self._warn(f"{path} was removed or replaced: all of this run's records are sent again")
        if self._system is not None:
            self._system.stop()
            self._system = None
        self._server.forget()
        self._state = State(self._run_dir, self.uri)
        self._state.save()
        return True

    def _watch_system(self) -> None:
        if not self._begin["system_metrics"] or self._state.ended:
            return
        if self._system is None:
            self._system = SystemMetrics(with_driver(self.uri), self._state.runs[PARENT])
        self._system.keep_alive()

    # Runs

    def _create(self, key: str, name: str, start_ms: int, tags: Mapping[str, str]) -> None:
        """Create the parent or a child once, even if the answer to the first attempt was lost."""
        state = self._state
        if key in state.runs:
            return
        if key in state.creating:
            mlflow_id = self._server.may(lambda: self._find(key))
        else:
            mlflow_id = None
            state.creating.append(key)
            state.save()
        if mlflow_id is None:
            tags = {**tags, "pipeline.run_id": self._begin["run_id"]}
            if key != PARENT:
                tags |= {"node": key, "mlflow.parentRunId": state.runs[PARENT]}
            mlflow_id = self._server.create_run(state.experiment_id, name, start_ms, tags)
        state.runs[key] = mlflow_id
        state.creating.remove(key)
        state.open.append(key)
        state.save()

    def _find(self, key: str) -> str | None:
        run_id = self._begin["run_id"].replace("'", "")
        runs = self._server.client.search_runs(
            [self._state.experiment_id], f"tags.`pipeline.run_id` = '{run_id}'"
        )
        matches = [run for run in runs if run.data.tags.get("node", PARENT) == key]
        return matches[0].info.run_id if matches else None

    def _reopen(self, key: str) -> None:
        if key == PARENT:
            self._state.ended = False
        if key not in self._state.open:
            self._server.client.update_run(self._state.runs[key], status="RUNNING")
            self._state.open.append(key)

    def _terminate(self, key: str, status: str, end_ms: int) -> None:
        self._server.client.set_terminated(self._state.runs[key], status=status, end_time=end_ms)
        if key in self._state.open:
            self._state.open.remove(key)

    # Events: each puts metrics, params and tags into the batches, and returns what is to be
    # done when these have been sent.

    def _batch(self, key: str) -> Batch:
        return self._batches.setdefault(key, Batch())

    def _on_begin(self, event: dict[str, Any]) -> list[Action]:
        state = self._state
        if PARENT in state.runs:
            if self._server.is_gone(state.runs[PARENT]):
                raise SentAnewError
        else:
            state.experiment_id = self._server.experiment(event["experiment"])
            self._create(PARENT, event["run_name"], event["time_ms"], event["tags"])
        batch = self._batch(PARENT)
        batch.params |= event["params"]
        batch.tags |= event["tags"] | {views.SHOWS: views.RUN}
        if revision := event["tags"].get("git.revision"):
            batch.tags["mlflow.source.git.commit"] = revision
        batch.tags |= {"mlflow.source.name": "python -m pipeline", "mlflow.source.type": "LOCAL"}
        return [lambda: self._reopen(PARENT), lambda: self._save_view(views.RUNS_VIEW)]

    def _child(self, event: dict[str, Any]) -> Batch:
        node = event["node"]
        tags = self._state.child_tags.get(node, {})
        own = self._begin.get("names", {}).get(node, node)
        short = self._begin.get("short") or self._begin["run_name"]
        self._create(node, f"{own} · {short}", event["time_ms"], tags)
        return self._batch(node)

    def _on_node(self, event: dict[str, Any]) -> list[Action]:
        node = event["node"]
        self._state.child_tags.setdefault(node, {}).update(event["tags"])
        if node not in self._state.runs:
            return []
        self._batch(node).tags |= event["tags"]
        return [lambda: self._reopen(node)]

    def _on_child(self, event: dict[str, Any]) -> list[Action]:
        node = event["node"]
        self._state.child_tags.setdefault(node, {}).update(event["tags"])
        batch = self._child(event)
        batch.tags |= event["tags"]
        batch.params |= event["params"]
        return [lambda: self._reopen(node)]

    def _on_tag(self, event: dict[str, Any]) -> list[Action]:
        if event["node"] in self._state.runs:
            self._batch(event["node"]).tags |= event["tags"]
        return []

    def _on_points(self, event: dict[str, Any]) -> list[Action]:
        self._child(event)
        return self._add_curves(event)

    def _on_finish(self, event: dict[str, Any]) -> list[Action]:
        node, time_ms = event["node"], event["time_ms"]
        if not event["rows"] and node not in self._state.runs:
            return []  # a node without curves has no run; the report and `show` have its numbers
        batch = self._child(event)
        after = self._add_curves(event)
        curves = {metric for metric, _ in batch.steps} | self._state.metrics(node)
        headline = event["metrics"].items()
        alone = [(name, 0, v) for name, v in headline if metric_name(name) not in curves]
        self._add_rows(node, alone, time_ms)
        batch.tags |= event["tags"]
        batch.params |= event["params"]
        return [*after, lambda: self._terminate(node, event["status"], time_ms)]

    def _on_summary(self, event: dict[str, Any]) -> list[Action]:
        rows = [(name, 0, value) for name, value in event["metrics"].items()]
        self._add_rows(PARENT, rows, event["time_ms"])
        self._batch(PARENT).tags |= event["tags"]
        return []

    def _add_curves(self, event: dict[str, Any]) -> list[Action]:
        """The points of a node's curves, and the axes that charts of them are drawn over."""
        node, rows, time_ms, over = (event[k] for k in ("node", "rows", "time_ms", "abscissa"))
        self._add_rows(node, rows, time_ms)
        if not over:
            return []
        batch, after = self._batch(node), [lambda: self._save_view(over)]
        batch.tags["abscissa"] = over
        charts = self._begin.get("charts", [])
        charted = {chart["metric"] for chart in charts if chart["abscissa"] == over}
        drawn = [(name, step) for name, step, _ in rows if name in charted]
        own_axis = views.over_axis(charts)
        steps = dict.fromkeys(step for name, step in drawn if (name, over) in own_axis)
        places = [(views.axis(over), step, views.place(over, step)) for step in steps]
        self._add_rows(node, [row for row in places if row[2] is not None], time_ms)
        if drawn:
            batch.tags[views.SHOWS] = views.CURVES
            after.append(lambda: self._save_view(views.CHARTS_VIEW))
        return after

    def _save_view(self, view: str) -> None:
        state = self._state
        if view in state.views:
            return
        experiment = self._server.client.get_experiment(state.experiment_id)
        tag, value = views.tag(view, self._begin.get("charts", []))
        if not views.is_current(experiment.tags.get(tag), value):
            self._server.client.set_experiment_tag(state.experiment_id, tag, value)
        state.views.append(view)

    def _add_rows(self, key: str, rows: Sequence[Row], time_ms: int) -> None:
        batch = self._batch(key)
        for metric, step, value in rows:
            metric = metric_name(metric)
            if not math.isfinite(value):  # a database would keep 1.8e308 for infinity
                batch.tags.setdefault(f"not_finite.{metric}"[:250], f"{value} at step {step}")
                continue
            if step in self._state.steps(key, metric) or (metric, step) in batch.steps:
                continue
            batch.steps[metric, step] = None
            batch.metrics.append((metric, value, time_ms, step))

    def _on_dataset(self, event: dict[str, Any]) -> list[Action]:
        return [lambda: self._log_input(PARENT, event)]

    def _log_input(self, key: str, dataset: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=dataset["name"],
            digest=dataset["digest"],
            source_type="local",
            source=json.dumps({"uri": dataset["source"]}),
            schema=json.dumps(dataset["schema"]),
            profile=json.dumps(dataset["profile"]),
        )
        tags = [InputTag("mlflow.data.context", dataset["node"])]
        run = self._state.runs[key]
        self._server.client.log_inputs(run, datasets=[DatasetInput(entity, tags=tags)])

    def _on_model(self, event: dict[str, Any]) -> list[Action]:
        self._child(event)
        return [lambda: self._save_model(event)]

    def _save_model(self, event: dict[str, Any]) -> None:
        state, node, datasets = self._state, event["node"], event["datasets"]
        for dataset in datasets:
            self._log_input(node, dataset)
        own = self._begin.get("names", {}).get(node, node)
        name = re.sub(r"[^\w -]", "-", f"{own} {self._begin.get('short', '')}".strip())
        tags = {"node": node, "pipeline.run_id": self._begin["run_id"]}
        if datasets:
            tags["dataset"] = f"{datasets[0]['name']} {datasets[0]['digest']}"
        config = event["config"] | {"tags": tags}
        save(self._server.client, state.experiment_id, state.runs[node], name, config)

    def _on_artifact(self, event: dict[str, Any]) -> list[Action]:
        path, store = Path(event["path"]), self._run_dir.absolute().parents[1]
        if not all(belongs(file, store) for file in (path, *path.rglob("*"))):
            # Others may have written this spool: nobody's files are sent for them.
            return [lambda: self._warn(f"{path} is not in the store, and is not sent to MLflow")]
        run = self._state.runs.get(event["node"]) or self._state.runs[PARENT]
        send = (
            self._server.client.log_artifacts if path.is_dir() else self._server.client.log_artifact
        )
        actions = [lambda: send(run, str(path), event["artifact_path"] or None)]
        if event.get("table"):
            name = f"{event['artifact_path']}/{path.name}".lstrip("/")
            actions.append(lambda: self._server.lay_out(run, name))
        return actions

    def _on_end(self, event: dict[str, Any]) -> list[Action]:
        return [lambda: self.end(event["status"], event["time_ms"])]

    def end(self, status: str, time_ms: int | None = None) -> None:
        """End the parent and the children that still run."""
        if self._system is not None:
            self._system.stop()
            self._system = None
        time_ms = time_ms or int(time.time() * 1000)
        for key in [key for key in self._state.open if key != PARENT] + [PARENT]:
            if key in self._state.runs:
                self._terminate(key, status, time_ms)
        self._state.ended = True

    def abandon(self) -> None:
        """End as KILLED a run whose driver died before it could say how it ended."""
        if not self._state.ended:
            self._connect()
            self._server.may(lambda: self.end("KILLED"))
            self._state.save()


def metric_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and _-. :/ without empty path elements."""
    clean = re.sub(r"[^\w\-. :/]", "_", name)
    return "/".join(part for part in clean.split("/") if part not in ("", ".", ".."))[:250]
