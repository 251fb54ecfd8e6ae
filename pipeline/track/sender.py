"""The process that speaks to MLflow: `python -m pipeline.track.sender RUN_DIR...`.

The only module that imports MLflow. It reads each run's spool from where it stopped last, sends
batches, and records its progress. Runs, batches and files are sent so that repeating a send whose
answer was lost changes nothing: runs are looked up by their tags before they are created again,
and metric rows keep the time at which they were spooled, by which MLflow's database knows them.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.track import views
from pipeline.track.spool import LOCK, State, last_begin, lock_file, read_events
from pipeline.tracking_uri import redact, sqlite_path

PARENT = ""  # the key of the parent run among a run's MLflow runs
POLL_SECONDS = 0.3
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # MLflow's limits of one log_batch
MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_KEY_CHARS = 6000, 5000, 250
MAX_BACKOFF_SECONDS = 10.0
LAST_WORDS_SECONDS = 60.0  # how long a sender outlives a driver that was killed
SYSTEM_METRICS_SECONDS = 5.0
AWAY = "MLflow at {} is away; the run goes on and its records are sent when it is back ({})"
SKIPPED = "MLflow refused a record, which is skipped: {}"
BACK = "MLflow at {} is back; the kept records have been sent"
SAME_FAILURES = 6  # of a server that answers other requests: then the record is at fault
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

Row = tuple[str, int, float]  # metric, step, value
Action = Callable[[], object]


@dataclass
class Batch:
    """What one MLflow run is told in one go."""

    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[tuple[str, int], None] = field(default_factory=dict)  # in order of arrival


class SentAnewError(Exception):
    """The run was removed from MLflow: start again from the first event."""


class Away(Exception):  # noqa: N818
    """The tracking server cannot be used now; try again later."""


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
        self._warn = warn
        self._warned: set[str] = set()
        self._client: Any = None
        self._failures = 0
        self._batches: dict[str, Batch] = {}
        self._monitor: Any = None

    def step(self) -> bool:
        """Send the next events of the spool; return whether there were any."""
        events, offset = read_events(self._run_dir, self._state.offset)
        if not events and offset == self._state.offset:
            return False
        self._away_only(self._connect)
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
            self._send(self._state.runs[key], batch)
        for action in later:
            self._guard(action)
        for key, batch in self._batches.items():
            for metric, step in batch.steps:
                self._state.steps(key, metric).add(step)
        self._state.offset = offset
        self._state.save()
        self._failures = 0
        return True

    # Connection and errors

    def _connect(self) -> None:
        if self._client is None:
            import mlflow

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            path = sqlite_path(self.uri)
            if path is not None:
                create_database(path)
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
            self._client = client

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Call MLflow; what it refuses for good is skipped with a warning, the rest is Away."""
        try:
            return call()
        except Exception as error:
            if not self._is_refusal(error):
                raise Away(_first_line(error)) from error
            self._warn_once(SKIPPED.format(_first_line(error)))
            return None

    def _is_refusal(self, error: Exception) -> bool:
        """Whether repeating the call is vain: the server is there and says no."""
        if isinstance(error, FileNotFoundError):
            return True
        if getattr(error, "error_code", None) in REFUSALS:
            return True
        if self._client is None:
            return False
        self._failures += 1
        if self._failures < SAME_FAILURES:
            return False
        try:
            self._client.search_experiments(max_results=1)
        except Exception:
            return False
        self._failures = 0
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)

    # Runs

    def _create(self, key: str, name: str, start_ms: int, tags: Mapping[str, str]) -> None:
        """Create the parent or a child once, even if the answer to the first attempt was lost."""
        state = self._state
        if key in state.runs:
            return
        if key in state.creating:
            found = self._guard(lambda: self._find(key))
        else:
            found = None
            state.creating.append(key)
            state.save()
        if found is None:
            tags = {**tags, "pipeline.run_id": self._begin["run_id"], "mlflow.user": _user()}
            if key != PARENT:
                tags |= {"node": key, "mlflow.parentRunId": state.runs[PARENT]}
            run = self._away_only(
                lambda: self._client.create_run(
                    state.experiment_id, start_time=start_ms, tags=_texts(tags), run_name=name
                )
            )
            found = run.info.run_id
        state.runs[key] = found
        state.creating.remove(key)
        state.open.append(key)
        state.save()

    def _find(self, key: str) -> str | None:
        run_id = self._begin["run_id"].replace("'", "")
        runs = self._client.search_runs(
            [self._state.experiment_id], f"tags.`pipeline.run_id` = '{run_id}'"
        )
        matches = [run for run in runs if run.data.tags.get("node", PARENT) == key]
        return matches[0].info.run_id if matches else None

    def _away_only(self, call: Callable[[], Any]) -> Any:
        """A call that the rest depends on: whatever goes wrong, try again later."""
        try:
            return call()
        except Exception as error:
            raise Away(_first_line(error)) from error

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            path = sqlite_path(self.uri)
            location = path and str(path.parent / "mlartifacts" / re.sub(r"[^\w.-]+", "-", name))
            try:
                # The tag opens the experiment at its runs instead of at language-model traces.
                return self._client.create_experiment(
                    name, artifact_location=location, tags=dict([views.KIND_TAG])
                )
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # made by another command
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _is_gone(self) -> bool:
        """Whether somebody removed the parent run, or the database is a new one."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self._state.runs[PARENT])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise
        return run.info.lifecycle_stage == "deleted"

    def _reopen(self, key: str) -> None:
        if key == PARENT:
            self._state.ended = False
        if key not in self._state.open:
            self._client.update_run(self._state.runs[key], status="RUNNING")
            self._state.open.append(key)

    def _terminate(self, key: str, status: str, end_ms: int) -> None:
        self._client.set_terminated(self._state.runs[key], status=status, end_time=end_ms)
        if key in self._state.open:
            self._state.open.remove(key)

    # Events: each puts metrics, params and tags into the batches, and returns what is to be
    # done when these have been sent.

    def _batch(self, key: str) -> Batch:
        return self._batches.setdefault(key, Batch())

    def _on_begin(self, event: dict[str, Any]) -> list[Action]:
        state = self._state
        if PARENT in state.runs:
            if self._away_only(self._is_gone):
                raise SentAnewError
        else:
            state.experiment_id = self._away_only(lambda: self._experiment(event["experiment"]))
            self._create(PARENT, event["run_name"], event["time_ms"], event["tags"])
        batch = self._batch(PARENT)
        batch.params |= event["params"]
        batch.tags |= event["tags"]
        if revision := event["tags"].get("git.revision"):
            batch.tags["mlflow.source.git.commit"] = revision
        batch.tags |= {"mlflow.source.name": "python -m pipeline", "mlflow.source.type": "LOCAL"}
        return [lambda: self._reopen(PARENT)]

    def _child(self, event: dict[str, Any]) -> Batch:
        node = event["node"]
        tags = self._state.child_tags.get(node, {})
        self._create(node, f"{node} · {self._begin['run_name']}", event["time_ms"], tags)
        return self._batch(node)

    def _on_node(self, event: dict[str, Any]) -> list[Action]:
        node = event["node"]
        self._state.child_tags.setdefault(node, {}).update(event["tags"])
        if node not in self._state.runs:
            return []
        self._batch(node).tags |= event["tags"]
        return [lambda: self._reopen(node)]

    def _on_points(self, event: dict[str, Any]) -> list[Action]:
        batch = self._child(event)
        self._add_curves(event["node"], event["rows"], event["time_ms"])
        return self._measured_along(batch, event["abscissa"])

    def _on_finish(self, event: dict[str, Any]) -> list[Action]:
        node, time_ms, headline = event["node"], event["time_ms"], event["metrics"]
        if not event["rows"] and node not in self._state.runs:
            rows = [(f"{node}/{name}", 0, value) for name, value in headline.items()]
            self._add_rows(PARENT, rows, time_ms)
            return []
        batch = self._child(event)
        self._add_curves(node, event["rows"], time_ms)
        curves = {metric for metric, _ in batch.steps} | self._state.metrics(node)
        alone = [(name, 0, v) for name, v in headline.items() if metric_name(name) not in curves]
        self._add_curves(node, alone, time_ms)
        batch.tags |= event["tags"]
        batch.params |= event["params"]
        after = self._measured_along(batch, event["abscissa"])
        return [*after, lambda: self._terminate(node, event["status"], time_ms)]

    def _measured_along(self, batch: Batch, abscissa: str | None) -> list[Action]:
        if not abscissa:
            return []
        batch.tags["abscissa"] = abscissa
        return [lambda: self._save_view(abscissa)]

    def _save_view(self, abscissa: str) -> None:
        state = self._state
        if abscissa in state.views:
            return
        experiment = self._client.get_experiment(state.experiment_id)
        tag, value = views.tag(abscissa)
        if tag not in experiment.tags:
            self._client.set_experiment_tag(state.experiment_id, tag, value)
        state.views.append(abscissa)

    def _add_curves(self, node: str, rows: Sequence[Row], time_ms: int) -> None:
        """Points of a node: under shared names in its child, under the node's in the parent.

        The parent has them too because MLflow's page opens with children folded away: so two
        runs compare, curve by curve, before anything is clicked.
        """
        self._add_rows(node, rows, time_ms)
        self._add_rows(PARENT, [(f"{node}/{name}", step, v) for name, step, v in rows], time_ms)

    def _add_rows(self, key: str, rows: Sequence[Row], time_ms: int) -> None:
        batch = self._batch(key)
        for metric, step, value in rows:
            metric = metric_name(metric)
            if step in self._state.steps(key, metric) or (metric, step) in batch.steps:
                continue
            batch.steps[metric, step] = None
            # MLflow would draw an infinity as 1.8e308, and the curve as a flat line.
            finite = value if math.isfinite(value) else math.nan
            batch.metrics.append((metric, finite, time_ms, step))

    def _on_dataset(self, event: dict[str, Any]) -> list[Action]:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=event["name"],
            digest=event["digest"],
            source_type="local",
            source=json.dumps({"uri": event["source"]}),
            schema=json.dumps(event["schema"]),
            profile=json.dumps(event["profile"]),
        )
        inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", event["node"])])]
        run = self._state.runs[PARENT]
        return [lambda: self._client.log_inputs(run, datasets=inputs)]

    def _on_artifact(self, event: dict[str, Any]) -> list[Action]:
        path = Path(event["path"])
        run = self._state.runs.get(event["node"]) or self._state.runs[PARENT]
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        return [lambda: send(run, str(path), event["artifact_path"] or None)]

    def _on_end(self, event: dict[str, Any]) -> list[Action]:
        return [lambda: self.end(event["status"], event["time_ms"])]

    def end(self, status: str, time_ms: int | None = None) -> None:
        """End the parent and the children that still run."""
        self.stop_monitor()
        time_ms = time_ms or int(time.time() * 1000)
        for key in [key for key in self._state.open if key != PARENT] + [PARENT]:
            if key in self._state.runs:
                self._terminate(key, status, time_ms)
        self._state.ended = True

    def abandon(self) -> None:
        """End as KILLED a run whose driver died before it could say how it ended."""
        if not self._state.ended:
            self._guard(self._connect)
            self._guard(lambda: self.end("KILLED"))
            self._state.save()

    # Sending

    def _send(self, run: str, batch: Batch) -> None:
        for metrics in _chunks(batch.metrics, MAX_METRICS):
            self._log_batch(run, metrics, [], [])
        for params in _chunks(list(batch.params.items()), MAX_PARAMS):
            self._log_batch(run, [], params, [])
        for tags in _chunks(list(batch.tags.items()), MAX_TAGS):
            self._log_batch(run, [], [], tags)

    def _log_batch(self, run: str, metrics: list, params: list, tags: list) -> None:
        """Send a batch; if it is refused, halve it until only what is at fault is left out."""
        from mlflow.entities import Metric, Param, RunTag

        try:
            self._client.log_batch(
                run,
                metrics=[Metric(*metric) for metric in metrics],
                params=[Param(k[:MAX_KEY_CHARS], v[:MAX_PARAM_CHARS]) for k, v in params],
                tags=[RunTag(k[:MAX_KEY_CHARS], str(v)[:MAX_TAG_CHARS]) for k, v in tags],
            )
        except Exception as error:
            if not self._is_refusal(error):
                raise Away(_first_line(error)) from error
            if len(metrics) + len(params) + len(tags) == 1:
                self._warn_once(SKIPPED.format(_first_line(error)))
                return
            for half in (0, 1):
                self._log_batch(run, *(_half(items, half) for items in (metrics, params, tags)))

    # System metrics

    def watch(self) -> None:
        """Keep the system's metrics flowing to the parent run; never fails, never waits."""
        if not self._begin["system_metrics"] or self._client is None or self._state.ended:
            return
        if PARENT not in self._state.runs:
            return
        if self._monitor is not None and self._monitor._process.is_alive():
            return
        with contextlib.suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(
                self._state.runs[PARENT],
                sampling_interval=SYSTEM_METRICS_SECONDS,
                resume_logging=True,
                tracking_uri=self.uri,
            )
            monitor.start()
            self._monitor = monitor

    def stop_monitor(self) -> None:
        if self._monitor is not None:
            finish = threading.Thread(target=self._monitor.finish, daemon=True)
            finish.start()
            finish.join(1.0)
            self._monitor = None


def create_database(path: Path) -> None:
    """Make a sqlite database with MLflow's tables, whole or not at all, by one process.

    Several processes that open a new file together ruin it, and so may a kill while the tables
    are made; hence the lock, and the rename of a finished file. Write-ahead logging lets the
    user interface read while a run writes.
    """
    import sqlite3

    import mlflow
    import sqlalchemy

    if path.exists() and path.stat().st_size:
        return
    with lock_file(path.with_name(f"{path.name}.lock"), wait_seconds=120) as held:
        if not held:
            raise TimeoutError(f"another process has been creating {path} for two minutes")
        if path.exists() and path.stat().st_size:
            return
        temporary = path.with_name(f".{path.name}.new")
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()
        # Some seventy migrations, each synced to disk, would take longer than a short run: the
        # new file is synced once, when it is whole.
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", _without_sync)
        try:
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments()
        finally:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", _without_sync)
        with contextlib.closing(sqlite3.connect(temporary)) as database:
            database.execute("PRAGMA journal_mode=WAL")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)


def _without_sync(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")


def metric_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and _-. :/ without empty path elements."""
    clean = re.sub(r"[^\w\-. :/]", "_", name)
    return "/".join(part for part in clean.split("/") if part not in ("", ".", ".."))[:250]


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _half(items: list, which: int) -> list:
    middle = (len(items) + 1) // 2
    return items[middle:] if which else items[:middle]


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key[:MAX_KEY_CHARS]: str(value)[:MAX_TAG_CHARS] for key, value in tags.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _first_line(error: BaseException) -> str:
    """What went wrong in a few words: the operating system's where it has some."""
    text, cause = str(error).strip() or type(error).__name__, error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return redact(text.splitlines()[0])[:300]


def serve(run_dir: Path, closing: threading.Event, tell: Callable[[str, str], None]) -> None:
    """Send a run's events as they come, until `closing` is set and all is sent or given up."""
    sender = Sender(run_dir, lambda message: tell("warning", message))
    backoff, away, deadline = POLL_SECONDS, False, None
    while True:
        closed = closing.is_set()
        if closed:
            deadline = deadline or time.monotonic() + LAST_WORDS_SECONDS
        try:
            busy = sender.step()
            sender.watch()
            if away and not busy:
                tell("back", BACK.format(redact(sender.uri)))
                backoff, away = POLL_SECONDS, False
        except Away as error:
            if closed:
                return
            if not away:
                tell("away", AWAY.format(redact(sender.uri), error))
            away = True
            closing.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            continue
        if closed and (not busy or time.monotonic() > deadline):
            break
        if not busy:
            closing.wait(POLL_SECONDS)
    with contextlib.suppress(Away):
        sender.abandon()


def _watch_driver(closing: threading.Event) -> None:
    """Set `closing` when the driver closes our input, or is gone."""
    sys.stdin.read()
    closing.set()


def main(run_dirs: Sequence[str]) -> int:
    """Serve one run for the driver at the other end of our input, or flush several runs."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log

    def tell(kind: str, message: str) -> None:
        with contextlib.suppress(OSError):  # the driver is gone
            print(kind, message, file=answers)

    closing = threading.Event()
    live = not os.path.samestat(os.fstat(0), os.stat(os.devnull))
    if live:
        threading.Thread(target=_watch_driver, args=(closing,), daemon=True).start()
    else:
        closing.set()
    for run_dir in map(Path, run_dirs):
        # A live run may have to wait for the sender of its killed predecessor.
        with lock_file(run_dir / LOCK, wait_seconds=LAST_WORDS_SECONDS if live else 0) as held:
            if held:
                serve(run_dir, closing, tell)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the system monitor's threads must not hold us back
