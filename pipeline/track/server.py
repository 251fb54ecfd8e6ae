"""An MLflow server or database: what it refuses for good, and what may be tried again."""

from __future__ import annotations

import getpass
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.track import views
from pipeline.track.database import create_database, forget, identity
from pipeline.track.redaction import redact
from pipeline.track.uri import (
    check_uri,
    drop_stray_folder,
    file_location,
    sqlite_path,
    with_driver,
)

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # MLflow's limits of one log_batch
MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_KEY_CHARS = 6000, 5000, 250
TABLES = "mlflow.loggedArtifacts"
SKIPPED = "MLflow refused a record, which is skipped: {}"
SAME_FAILURES = 6  # of a server that answers other requests: then the record is at fault
_NOT_NOW = re.compile(
    r"is locked|readonly|read-only|disk I/O|is full|unable to open|no such table|server closed|"
    r"connection|terminating"
)
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


@dataclass
class Batch:
    """What one MLflow run is told in one go."""

    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[tuple[str, int], None] = field(default_factory=dict)  # in order of arrival


class Away(Exception):  # noqa: N818
    """The tracking server cannot be used now; try again later."""


class Server:
    """MLflow's client with two ways to call it: `must` for what the rest depends on, `may`.

    Args:
        warn: takes one sentence for each kind of record that is refused for good.
    """

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self._uri, self._warn = uri, warn
        self._warned: set[str] = set()
        self._failures = 0
        self.client: Any = None

    def connect(self) -> None:
        """Import MLflow, create the database if it is a new one, and see that it answers."""
        if self.client is None:
            self.must(self._connect)

    def _connect(self) -> None:
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        path = sqlite_path(self._uri)
        if path is not None:
            if not path.is_file():  # MLflow would try what can never be opened for two minutes
                check_uri(self._uri)
            create_database(path)
            identity(path)
        client = mlflow.MlflowClient(tracking_uri=with_driver(self._uri))
        client.search_experiments(max_results=1)
        drop_stray_folder(self._uri)
        self.client = client

    def forget(self) -> None:
        """The database that was connected to is gone: let go of it, and connect anew."""
        if self.client is not None:
            # MLflow keeps one pool of connections a URI, and they keep the file that is gone.
            self.client._tracking_client.store._dispose_engine()
            forget()
            self.client = None

    def must(self, call: Callable[[], Any]) -> Any:
        """A call that the rest depends on: whatever goes wrong, try again later (Away)."""
        try:
            return call()
        except Exception as error:
            raise Away(_reason(error)) from error

    def may(self, call: Callable[[], Any]) -> Any:
        """A call that is skipped with a warning if it is refused for good; else Away."""
        try:
            return call()
        except Exception as error:
            if not self._is_refusal(error):
                raise Away(_reason(error)) from error
            self._skip(error)
            return None

    def succeeded(self) -> None:
        """All of a chunk went through: past failures no longer count."""
        self._failures = 0

    def _is_refusal(self, error: Exception) -> bool:
        """Whether repeating the call is vain: the server is there and says no."""
        if isinstance(error, FileNotFoundError):
            return True
        if getattr(error, "error_code", None) in REFUSALS:
            return True
        if _is_of_the_database(error):
            return False
        self._failures += 1
        if self._failures < SAME_FAILURES:
            return False
        try:
            self.client.search_experiments(max_results=1)
        except Exception:
            return False
        self._failures = 0
        return True

    def _skip(self, error: Exception) -> None:
        message = SKIPPED.format(_reason(error))
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)

    # Experiments and runs

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is created, or restored, where needed."""
        return self.must(lambda: self._experiment(name))

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            path = sqlite_path(self._uri)
            folder = path and path.parent / "mlartifacts" / re.sub(r"[^\w.-]+", "-", name)
            location = folder and file_location(folder)
            try:
                # The tag opens the experiment at its runs instead of at language-model traces.
                return self.client.create_experiment(
                    name, artifact_location=location, tags=dict([views.KIND_TAG])
                )
            except MlflowException:
                experiment = self.client.get_experiment_by_name(name)  # made by another command
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def is_gone(self, run: str) -> bool:
        """Whether somebody removed a run, or the database is a new one."""
        return self.must(lambda: self._is_gone(run))

    def _is_gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise
        return run.info.lifecycle_stage == "deleted"

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Create a run and return its id."""
        tags = {"mlflow.user": _user(), **tags}
        texts = {key[:MAX_KEY_CHARS]: str(value)[:MAX_TAG_CHARS] for key, value in tags.items()}
        run = self.must(
            lambda: self.client.create_run(
                experiment, start_time=start_ms, tags=texts, run_name=name
            )
        )
        return run.info.run_id

    def lay_out(self, run: str, path: str) -> None:
        """Tell MLflow's pages that a run's artifact is a table, as `mlflow.log_table` does."""
        tags = self.client.get_run(run).data.tags
        tables = json.loads(tags.get(TABLES, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.client.set_tag(run, TABLES, json.dumps([*tables, entry]))

    def log(self, run: str, batch: Batch) -> None:
        """Send a batch, in as few calls as MLflow allows."""
        for metrics in _chunks(batch.metrics, MAX_METRICS):
            self._log(run, metrics, [], [])
        for params in _chunks(list(batch.params.items()), MAX_PARAMS):
            self._log(run, [], params, [])
        for tags in _chunks(list(batch.tags.items()), MAX_TAGS):
            self._log(run, [], [], tags)

    def _log(self, run: str, metrics: list, params: list, tags: list) -> None:
        """Send records; if they are refused, halve them until only those at fault are left out."""
        from mlflow.entities import Metric, Param, RunTag

        try:
            self.client.log_batch(
                run,
                metrics=[Metric(*metric) for metric in metrics],
                params=[Param(k[:MAX_KEY_CHARS], v[:MAX_PARAM_CHARS]) for k, v in params],
                tags=[RunTag(k[:MAX_KEY_CHARS], str(v)[:MAX_TAG_CHARS]) for k, v in tags],
            )
        except Exception as error:
            if not self._is_refusal(error):
                raise Away(_reason(error)) from error
            if len(metrics) + len(params) + len(tags) == 1:
                self._skip(error)
                return
            for half in (0, 1):
                self._log(run, *(_half(items, half) for items in (metrics, params, tags)))


def _is_of_the_database(error: BaseException | None) -> bool:
    """Whether a database could not do it now, whatever the record: locked, full, taken away."""
    while error is not None:
        if type(error).__name__ == "OperationalError" and _NOT_NOW.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _half(items: list, which: int) -> list:
    middle = (len(items) + 1) // 2
    return items[middle:] if which else items[:middle]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _reason(error: BaseException) -> str:
    """What went wrong in a few words: the operating system's where it has some."""
    text, cause = str(error).strip() or type(error).__name__, error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return redact(text.splitlines()[0])[:300]
