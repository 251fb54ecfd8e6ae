"""Sends a run's metrics, settings and files to MLflow, without ever delaying the run.

The engine's calls append to a durable spool and return. A process of its own (`sender`), started
by `Tracker.start`, reads the spool and speaks to MLflow: the driver neither imports MLflow nor
shares its interpreter with it, and a driver that is killed still has its last words sent.
What is resent after a failure carries the time at which it was spooled, so that a tracking server
recognises it: nothing is lost and nothing stands there twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.locking import lock_file
from pipeline.track.redaction import redact
from pipeline.track.spool import LOCK, SPOOL, Spool, is_pending, last_begin
from pipeline.track.uri import check_chosen_uri, check_uri, chosen_uri, default_uri

__all__ = [
    "Tracker",
    "check_chosen_uri",
    "check_uri",
    "chosen_uri",
    "default_uri",
    "flush_pending",
    "send_pending",
]

_logger = logging.getLogger(__name__)

Row = tuple[str, int, float]  # metric, step, value
DESCRIPTION = "mlflow.note.content"  # the tag whose Markdown MLflow shows on a run's page


class Tracker:
    """The engine's side: every method returns at once, whatever the tracking server does.

    Args:
        uri: where MLflow keeps its runs; `check_uri` it first.
        run_dir: the run's own local directory. A second Tracker on it continues the same MLflow
            run.
        experiment: MLflow's experiment, "recipe/preset".
        run_name: what the tables call the run.
        run_id: the pipeline run's id, a tag of the parent and of each child.
        params: resolved settings, flat or nested (flattened to dotted keys).
        tags: tags of the parent: git.revision, recipe, preset.
        warn: takes one sentence for the person at the terminal.
        system_metrics: sample processor, memory, disk, network and GPU on the parent run.
        names: what tables and legends call the nodes' runs, before " · " and `short`, where it is
            not the node's own name.
        short: what tells this run's children from those of others; the run's name by default.
        charts: those that MLflow's page opens on, as plain data of `pipeline.shown.Chart`.
    """

    def __init__(
        self,
        uri: str,
        run_dir: Path,
        *,
        experiment: str,
        run_name: str,
        run_id: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        warn: Callable[[str], None] = _logger.warning,
        system_metrics: bool = True,
        names: Mapping[str, str] | None = None,
        short: str | None = None,
        charts: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._run_dir = Path(run_dir)
        self._warn = warn
        self._begin = {
            "uri": uri,
            "experiment": experiment,
            "run_name": run_name,
            "run_id": run_id,
            "params": flatten(params),
            "tags": {**tags, "pipeline.run_id": run_id},
            "system_metrics": system_metrics,
            "names": dict(names or {}),
            "short": short or run_name,
            "charts": list(charts),
        }
        self._spool: Spool | None = None
        self._sender: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._away = self._full = False
        self._not_finite: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Open the spool and start the sender."""
        self._spool = Spool(self._run_dir)
        self._spool.append("begin", **self._begin)
        self._sender = _spawn([str(self._run_dir)], log=self._run_dir / "mlflow.log", live=True)
        self._reader = threading.Thread(target=self._relay, name="mlflow-warnings", daemon=True)
        self._reader.start()

    def _relay(self) -> None:
        for line in self._sender.stdout:
            kind, _, message = line.rstrip().partition(" ")
            self._away = kind == "away"
            self._warn(message)

    def _append(self, event: str, **fields: Any) -> None:
        if self._spool is None:
            return
        try:
            self._spool.append(event, **fields)
        except OSError as error:
            if not self._full:
                self._warn(f"records for MLflow are lost: {self._run_dir}: {error.strerror}")
            self._full = True

    def node_started(self, node: str, tags: Mapping[str, str]) -> None:
        """Remember a node's tags; its child run appears with its first curve point."""
        self._append("node", node=node, tags=dict(tags))

    def child(self, node: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Make a child run at once, whether or not it will have curves (a trial of a sweep)."""
        self._append("child", node=node, tags=dict(tags), params=flatten(params))

    def tag(self, node: str, tags: Mapping[str, str]) -> None:
        """Tags of a child that was made before."""
        self._append("tag", node=node, tags=dict(tags))

    def points(self, node: str, abscissa: str, rows: Sequence[Row]) -> None:
        """Curve points of a running node, shown as they come."""
        self._say_not_finite(node, rows)
        self._append("points", node=node, abscissa=abscissa, rows=_plain_rows(rows))

    def node_finished(
        self,
        node: str,
        *,
        status: str = "FINISHED",
        metrics: Mapping[str, float] | None = None,
        curves: Sequence[Row] = (),
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        abscissa: str | None = None,
        cached: bool = False,
    ) -> None:
        """A node's headline metrics and whole curves; points sent before are not sent again.

        Values that are not finite are said and left out: the run has the tag `not_finite.METRIC`.
        """
        headline = [(name, 0, float(value)) for name, value in (metrics or {}).items()]
        self._say_not_finite(node, [*curves, *headline])
        self._append(
            "finish",
            node=node,
            status=status,
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            rows=_plain_rows(curves),
            tags=dict(tags or {}) | ({"cached": "true"} if cached else {}),
            params=flatten(params or {}),
            abscissa=abscissa,
        )

    def summary(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], note: str = ""
    ) -> None:
        """What the run found as a whole: numbers and words of the parent, and its description."""
        plain = {name: float(value) for name, value in metrics.items()}
        described = {DESCRIPTION: note} if note else {}
        self._append("summary", metrics=plain, tags=dict(tags) | described)

    def _say_not_finite(self, node: str, rows: Iterable[Row]) -> None:
        """Say once of each metric of a node that it has a value that MLflow is not told."""
        for name, step, value in rows:
            if not math.isfinite(value) and (node, name) not in self._not_finite:
                self._not_finite.add((node, name))
                at = f" at step {step}" if step else ""
                self._warn(f"{node}: {name} is {value}{at}, which MLflow is not told")

    def dataset(
        self,
        node: str,
        name: str,
        digest: str,
        source: str,
        schema: Mapping[str, tuple[str, Sequence[int]]] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """A data set that the run reads.

        Args:
            schema: arrays by name, each its dtype and shape (-1 for any length).
            profile: counts and the like.
        """
        self._append("dataset", **_dataset(node, name, digest, source, schema, profile))

    def model(
        self,
        node: str,
        config: Mapping[str, Any],
        trained_on: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> None:
        """A model that a node has made; its run is there already.

        Args:
            config: see `pipeline.track.models.save`.
            trained_on: nodes and the data sets that they hold, as for `dataset`.
        """
        known = [_dataset(of, **dataset) for of, dataset in trained_on]
        self._append("model", node=node, config=dict(config), datasets=known)

    def artifact(
        self, path: Path, artifact_path: str = "", node: str | None = None, table: bool = False
    ) -> None:
        """A file, or a folder's files, below `artifact_path` of the run (or of a node's child).

        The file is read when it is sent: it must stay where it is. table: it is a JSON file of
        `columns` and `data`, which MLflow's pages are to lay out.
        """
        self._append(
            "artifact",
            path=str(Path(path).absolute()),
            artifact_path=artifact_path,
            node=node or "",
            table=table,
        )

    def close(self, status: str = "FINISHED", timeout: float = 10.0) -> None:
        """End the MLflow run (FINISHED, FAILED or KILLED).

        Waits until all is sent, `timeout` seconds at most, and hardly at all for a server that
        is known to be away. A sender that is still busy then finishes in the background; what it
        cannot send stays in the spool for `flush_pending`.
        """
        if self._spool is None:
            return
        self._append("end", status=status)
        self._spool.close()
        self._spool = None
        self._sender.stdin.close()
        uri = redact(self._begin["uri"])
        try:
            self._sender.wait(min(timeout, 1.0) if self._away else timeout)
        except subprocess.TimeoutExpired:
            if not self._away:
                self._warn(f"records are still being sent to MLflow at {uri}, in the background")
                return
        self._reader.join(1.0)
        if is_pending(self._run_dir):
            self._warn(
                f"some records did not reach MLflow at {uri}; the next run sends them, or "
                "python -m pipeline send"
            )


# What MLflow's client shows a server to prove who asks, or finds that out from.
CREDENTIALS = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
# In place of those that are set, or lie in a file of the user's: names and no secrets.
NOBODY = {"MLFLOW_TRACKING_USERNAME": "nobody", "MLFLOW_TRACKING_PASSWORD": "none"}


def flush_pending(store_dir: Path, exclude: Path | None = None, uri: str | None = None) -> int:
    """Send, in the background, what earlier runs of a store could not; return how many runs.

    Runs that another command is sending at this moment are left to it. Runs that never told
    their end, because they were killed, end as KILLED; resuming one opens it again.

    uri: the server that this command has chosen. A store from somebody else may name another one,
        which is shown no credentials of ours.
    """
    idle = _idle(store_dir, exclude)
    _send(store_dir, idle, uri)
    return len(idle)


def _send(store_dir: Path, idle: Sequence[str], uri: str | None) -> list[subprocess.Popen[str]]:
    chosen = uri or chosen_uri(None)
    own = [run for run in idle if (last_begin(Path(run)) or {}).get("uri") == chosen]
    others = [run_dir for run_dir in idle if run_dir not in own]
    log = Path(store_dir) / "runs" / "mlflow-pending.log"
    return [
        _spawn(run_dirs, log=log, live=False, trusted=run_dirs is own)
        for run_dirs in (own, others)
        if run_dirs
    ]


def send_pending(store_dir: Path) -> tuple[int, list[str]]:
    """Send what earlier runs of a store could not, and wait for it.

    Returns how many runs were sent, and the names of those of which MLflow still lacks something.
    """
    idle = _idle(store_dir, None)
    for sender in _send(store_dir, idle, None):
        sender.wait()
    left = [run_dir.name for run_dir in _pending(store_dir)]
    return sum(Path(run_dir).name not in left for run_dir in idle), left


def _pending(store_dir: Path) -> list[Path]:
    spools = sorted(Path(store_dir).glob(f"runs/*/{SPOOL}"))
    return [spool.parent for spool in spools if is_pending(spool.parent)]


def _idle(store_dir: Path, exclude: Path | None) -> list[str]:
    """Folders of runs of which MLflow lacks something that nobody is sending."""
    idle = []
    for run_dir in _pending(store_dir):
        if exclude is not None and run_dir.resolve() == Path(exclude).resolve():
            continue
        with (
            contextlib.suppress(PermissionError),  # another user's: theirs to send
            lock_file(run_dir / LOCK, wait_seconds=0) as held,
        ):
            if held:
                idle.append(str(run_dir))
    return idle


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and texts, the way MLflow's tables show them."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[f"{prefix}{key}"] = text
    return flat


def _dataset(
    node: str,
    name: str,
    digest: str,
    source: str,
    schema: Mapping[str, tuple[str, Sequence[int]]] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A data set as plain data, as `Tracker.dataset` takes it."""
    spec = [
        {"name": key, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
        for key, (dtype, shape) in (schema or {}).items()
    ]
    return {
        "node": node,
        "name": name,
        "digest": digest[:36],
        "source": source,
        "schema": {"mlflow_tensorspec": {"features": json.dumps(spec), "targets": None}},
        "profile": dict(profile or {}),
    }


def _plain_rows(rows: Iterable[Row]) -> list[Row]:
    return [(name, int(step), float(value)) for name, step, value in rows]


def _spawn(
    run_dirs: list[str], log: Path, live: bool, trusted: bool = True
) -> subprocess.Popen[str]:
    """Start a sender in a session of its own, so that Ctrl-C reaches only the engine.

    trusted: whether the server may be shown our credentials.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we retry ourselves, without blocking
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may hold a password
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    if not trusted:
        environment = {k: v for k, v in environment.items() if k not in CREDENTIALS} | NOBODY
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "ab") as stderr:
        os.fchmod(descriptor, 0o600)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.track", *run_dirs],
            stdin=subprocess.PIPE if live else subprocess.DEVNULL,
            stdout=subprocess.PIPE if live else subprocess.DEVNULL,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
