"""MLflow's comparison view of this project's runs, on this machine only.

The server is MLflow's own, bound to 127.0.0.1. The addresses printed open it at saved views of
`track.views`: the few charts that the stages declare, with the curves of all runs, and the runs
side by side. MLflow's own menu has the other views.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import DONE, UsageError
from pipeline.track import views
from pipeline.track.redaction import redact
from pipeline.track.uri import drop_stray_folder, file_location, sqlite_path, with_driver

HOST = "127.0.0.1"
START_SECONDS = 120.0
CHARTS = "runs?workflowType=machine_learning&compareRunsMode=CHART"


@dataclass(frozen=True)
class Experiment:
    """An experiment with runs, and its saved views."""

    id: str
    name: str
    views: tuple[str, ...] = ()


def serve(uri: str, port: int = 5000) -> int:
    """Serve MLflow's UI over a tracking URI until Ctrl-C; return the exit code.

    A tracking server (http, https) serves its own UI: then its address is printed and that is all.

    Raises:
        UsageError: the store has no runs yet, the port is taken, or the server does not start.
    """
    if uri.startswith(("http:", "https:")):
        print(f"this tracking server has its own UI: {redact(uri)}")
        return DONE
    experiments = _experiments(uri)
    _check_port(port)
    server = subprocess.Popen(
        _command(uri, port),
        env={
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": with_driver(uri),  # others can read our command lines
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C is ours: we stop the server and its workers together
    )
    log: list[str] = []
    threading.Thread(target=_drain, args=(server, log), daemon=True).start()
    try:
        with _terminated_as_interrupt():
            print("starting MLflow ...", flush=True)
            _wait_until_up(server, port, log)
            _announce(port, experiments)
            while server.poll() is None:
                # A signal just before a wait without end would be seen at its end only.
                time.sleep(0.2)
            raise UsageError(f"MLflow's server stopped: {_last_line(log)}")
    except KeyboardInterrupt:
        print("\nstopped")
        return DONE
    finally:
        _stop(server)
        drop_stray_folder(uri)


def addresses(port: int, experiments: list[Experiment]) -> list[tuple[str, str]]:
    """The pages worth opening: what each shows, and its URL."""
    base = f"http://{HOST}:{port}/#/experiments"
    pages = []
    width = max((len(experiment.name) for experiment in experiments), default=0)
    for experiment in experiments:
        page = f"{base}/{experiment.id}/{CHARTS}"
        found = [view for view in views.NAMES if view in experiment.views]
        for view in found:
            link = f"{page}&viewStateShareKey={views.key(view)}"
            pages.append((f"{experiment.name:<{width}}  {views.name(view).lower()}", link))
        if not found:
            pages.append((experiment.name, page))
    return pages


def _command(uri: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1", "--no-serve-artifacts"]
    path = sqlite_path(uri)
    if path is not None:
        command += ["--default-artifact-root", file_location(path.parent / "mlartifacts")]
    return command


def _experiments(uri: str) -> list[Experiment]:
    """Experiments with runs, latest first; read without MLflow, whose import takes seconds."""
    path = sqlite_path(uri)
    if path is None:
        return []
    none = UsageError(f"{path} holds no runs yet; begin with: python -m pipeline run full")
    if not path.is_file():
        raise none
    query = """
        SELECT e.experiment_id, e.name FROM experiments e JOIN runs r USING (experiment_id)
        WHERE e.lifecycle_stage = 'active' AND r.lifecycle_stage = 'active'
        GROUP BY e.experiment_id, e.name ORDER BY MAX(r.start_time) DESC
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            rows = [
                Experiment(str(key), name, _views(database, key))
                for key, name in database.execute(query)
            ]
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be read as MLflow's database ({error})") from error
    if not rows:
        raise none
    return rows


def _views(database: sqlite3.Connection, experiment_id: int) -> tuple[str, ...]:
    query = "SELECT key, value FROM experiment_tags WHERE experiment_id = ? ORDER BY key"
    found = (views.view_of(*row) for row in database.execute(query, (experiment_id,)))
    return tuple(view for view in found if view is not None)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be used ({getattr(error, 'strerror', error)}); "
                "choose another with --port"
            ) from error


def _wait_until_up(server: subprocess.Popen, port: int, log: list[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UsageError(f"MLflow's server did not start: {_last_line(log)}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2).close()
            return
        time.sleep(0.2)
    raise UsageError(f"MLflow's server did not start in {START_SECONDS:.0f} s: {_last_line(log)}")


def _announce(port: int, experiments: list[Experiment]) -> None:
    print(f"MLflow: http://{HOST}:{port}   (Ctrl-C stops it)")
    pages = addresses(port, experiments)
    width = max((len(name) for name, _ in pages), default=0)
    for name, url in pages:
        print(f"  {name:<{width}}  {url}")
    sys.stdout.flush()


def _drain(server: subprocess.Popen, log: list[str]) -> None:
    for line in server.stderr:
        log.append(line.rstrip())
        del log[:-50]


def _last_line(log: list[str]) -> str:
    return redact(next((line for line in reversed(log) if line.strip()), "it gave no reason"))


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let `kill PID` end the command as Ctrl-C does, so that the server never stays behind.

    What a script starts in the background ignores the signal of Ctrl-C unless it asks for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(server: subprocess.Popen) -> None:
    """End the server and the workers it started: they are a process group of their own."""
    for how, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            if not _group_lives(server.pid):
                return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
