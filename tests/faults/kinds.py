"""The faults: each is done to a running command, at a moment that the draws choose."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.running import Command


@dataclass
class Scene:
    """What a fault may touch.

    Args:
        folder: the store on this machine, or its local side.
        server: the S3 server, for faults of one.
    """

    command: Command
    folder: Path
    draws: random.Random
    server: object = None


def _kill(*words: str) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        found = scene.command.named(*words)
        for process in found[:1] if words[0].startswith("ray::") else found:
            with contextlib.suppress(psutil.Error):
                process.kill()

    return fault


def _kill_parent(scene: Scene) -> None:
    scene.command.process.kill()


def _kill_child(scene: Scene) -> None:
    if (child := scene.command.child()) is not None:
        child.kill()


def _kill_all(scene: Scene) -> None:
    for process in scene.command.family():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _send(*signals: signal.Signals) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                scene.command.process.send_signal(number)
            time.sleep(0.3)

    return fault


def _stop(word: str, seconds: float) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        found = scene.command.named(word)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        time.sleep(seconds)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.resume()

    return fault


def _damage(pattern: str) -> Callable[[Scene], None]:
    """Flip a bit of a file, and kill the command, so that the next one meets it."""

    def fault(scene: Scene) -> None:
        files = sorted(path for path in scene.folder.glob(pattern) if path.is_file())
        if files:
            file = scene.draws.choice(files)
            data = bytearray(file.read_bytes())
            if data:
                data[scene.draws.randrange(len(data))] ^= 1 << scene.draws.randrange(8)
                file.write_bytes(data)
        _kill_all(scene)

    return fault


def _remove_database(scene: Scene) -> None:
    for path in scene.folder.glob("mlflow.db*"):
        path.unlink(missing_ok=True)


def _lock_database(scene: Scene) -> None:
    path = scene.folder / "mlflow.db"
    if path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(8)
            other.rollback()


def _leftovers(scene: Scene) -> None:
    """What commands leave that are killed in the middle of a write."""
    _kill_all(scene)
    for place in scene.folder.glob("artifacts/*"):
        left = place / ".0123.999999"
        left.mkdir(exist_ok=True)
        (left / "number.json").write_text("{half")
    (scene.folder / "tmp" / "x-999999-1").mkdir(parents=True, exist_ok=True)


def _no_cache(scene: Scene) -> None:
    """The machine's side of an object store is lost with the command."""
    _kill_all(scene)
    shutil.rmtree(scene.folder, ignore_errors=True)


def _outage(scene: Scene) -> None:
    scene.server.way.cut()
    time.sleep(20)
    scene.server.way.mend()


LOCAL: Mapping[str, Callable[[Scene], None]] = {
    "kill -9 of the parent": _kill_parent,
    "kill -9 of the child": _kill_child,
    "kill -9 of a worker": _kill("ray::"),
    "kill -9 of the raylet": _kill("raylet/raylet", "raylet --"),
    "kill -9 of the control store": _kill("gcs_server"),
    "kill -9 of MLflow's sender": _kill("pipeline.track"),
    "kill -9 of everything": _kill_all,
    "SIGTERM": _send(signal.SIGTERM),
    "Ctrl-C": _send(signal.SIGINT),
    "Ctrl-C twice": _send(signal.SIGINT, signal.SIGINT),
    "SIGSTOP of the control store, 5 s": _stop("gcs_server", 5),
    "SIGSTOP of the raylet, 5 s": _stop("raylet", 5),
    "a bit of a manifest flips": _damage("artifacts/*/*/manifest.json"),
    "a bit of a payload flips": _damage("artifacts/*/*/number.json"),
    "a bit of the run's record flips": _damage("runs/*/nodes.jsonl"),
    "MLflow's database is removed": _remove_database,
    "MLflow's database is locked, 8 s": _lock_database,
    "leftovers of killed commands": _leftovers,
}
REMOTE: Mapping[str, Callable[[Scene], None]] = {
    "S3: kill -9 of the parent": _kill_parent,
    "S3: kill -9 of the child": _kill_child,
    "S3: kill -9 of everything": _kill_all,
    "S3: the server is away, 20 s": _outage,
    "S3: the machine's cache is lost": _no_cache,
}
