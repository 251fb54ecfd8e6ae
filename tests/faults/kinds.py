"""The faults: each is done to a running command, at a moment that the draws choose."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.running import Command

CLOCK = "DIFFUSION_BENCH_CLOCK"


@dataclass
class Scene:
    """What a fault may touch.

    Attributes:
        others: further commands that the fault began: they are waited for too.
        folder: the store on this machine, or its local side.
        clock: a file that says by how many seconds the commands' clocks are wrong.
        server: the S3 server, for faults of one.
        location: the object store, for faults of one.
    """

    command: Command
    folder: Path
    clock: Path
    draws: random.Random
    server: object = None
    location: object = None
    others: list[Command] = field(default_factory=list)


class NotHereError(Exception):
    """This machine, or this user, cannot do such a thing."""


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


def _stop_child(seconds: float) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        child = scene.command.child()
        with contextlib.suppress(psutil.Error, AttributeError):
            child.suspend()
            time.sleep(seconds)
            child.resume()

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


def _stale_locks(scene: Scene) -> None:
    """Files of locks that nobody holds, as processes leave them that die."""
    _kill_all(scene)
    for artifact in scene.folder.glob("artifacts/*/*"):
        (scene.folder / "locks" / f"{artifact.parent.name}-{artifact.name}").touch()
    for run in scene.folder.glob("runs/*"):
        (scene.folder / "locks" / f"run-{run.name}").touch()


def _begin_more(count: int) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        scene.others += [scene.command.again() for _ in range(count)]

    return fault


def _clock_back(seconds: float) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        scene.clock.write_text(str(-seconds), encoding="utf-8")
        if scene.draws.random() < 0.5:  # what is there was written in the future
            _kill_all(scene)

    return fault


def _read_only(seconds: float) -> Callable[[Scene], None]:
    """Nothing can be made in the store's folders. Not even root may write to immutable ones."""

    def fault(scene: Scene) -> None:
        folders = [str(scene.folder), *(str(p) for p in scene.folder.rglob("*") if p.is_dir())]
        _mark_immutable("+i", folders)
        try:
            time.sleep(seconds)
        finally:
            _mark_immutable("-i", folders)

    return fault


def _mark_immutable(flag: str, folders: list[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["chattr", flag, *folders], capture_output=True)
        # Folders that went meanwhile are no reason.
        if flag == "-i" or done.returncode == 0 or b"No such file" in done.stderr:
            return
    raise NotHereError("folders cannot be made immutable here (chattr +i, as root)")


def _fill(seconds: float) -> Callable[[Scene], None]:
    """A file takes all room of the store's disk for a while."""

    def fault(scene: Scene) -> None:
        ballast = scene.folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        time.sleep(seconds)
        ballast.unlink()

    return fault


def small_disk(folder: Path) -> None:
    """Make `folder` a disk of its own, of 48 MiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHereError("no disk can be mounted here (as root)") from error


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def wrong_clock(folder: Path, clock: Path) -> dict[str, str]:
    """What processes need in their environment for a clock that the file `clock` can set back."""
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHereError("there is no compiler (cc) to make a wrong clock with") from error
    return {"LD_PRELOAD": str(library), CLOCK: str(clock)}


def _dead_machine(scene: Scene) -> None:
    """Another machine died while it made every node."""
    _kill_all(scene)
    sign = {"host": "dead", "where": "dead:/store", "token": "dead", "time": time.time() - 150}
    for name in scene.location.children("locks"):
        scene.location.write(f"locks/{name}", json.dumps(sign).encode())


def _no_cache(scene: Scene) -> None:
    """The machine's side of an object store is lost with the command."""
    _kill_all(scene)
    shutil.rmtree(scene.folder, ignore_errors=True)


def _outage(scene: Scene) -> None:
    scene.server.way.cut()
    time.sleep(20)
    scene.server.way.mend()


DISK, SMALL_DISK, S3 = "disk", "small disk", "S3"


@dataclass(frozen=True)
class Fault:
    """What is done to a command.

    Attributes:
        place: where its store lies.
        repeats: finished nodes that may have to be made again: those that are damaged.
        clock: whether it needs a clock that can be set back.
    """

    do: Callable[[Scene], None]
    place: str = DISK
    repeats: int = 0
    clock: bool = False


FAULTS: Mapping[str, Fault] = {
    "kill -9 of the parent": Fault(_kill_parent),
    "kill -9 of the child": Fault(_kill_child),
    "kill -9 of a worker": Fault(_kill("ray::")),
    "kill -9 of the raylet": Fault(_kill("raylet/raylet", "raylet --")),
    "kill -9 of the control store": Fault(_kill("gcs_server")),
    "kill -9 of MLflow's sender": Fault(_kill("pipeline.track")),
    "kill -9 of everything": Fault(_kill_all),
    "SIGTERM": Fault(_send(signal.SIGTERM)),
    "Ctrl-C": Fault(_send(signal.SIGINT)),
    "Ctrl-C twice": Fault(_send(signal.SIGINT, signal.SIGINT)),
    "SIGSTOP of the control store, 5 s": Fault(_stop("gcs_server", 5)),
    "SIGSTOP of the raylet, 5 s": Fault(_stop("raylet", 5)),
    "SIGSTOP of the child, 5 s": Fault(_stop_child(5)),
    "two commands at once": Fault(_begin_more(1)),
    "four commands at once": Fault(_begin_more(3)),
    "the clock is set back by a day": Fault(_clock_back(86_400), clock=True),
    "the store is read-only, 4 s": Fault(_read_only(4)),
    "the disk is full, 4 s": Fault(_fill(4), SMALL_DISK),
    "a bit of a manifest flips": Fault(_damage("artifacts/*/*/manifest.json"), repeats=1),
    "a bit of a payload flips": Fault(_damage("artifacts/*/*/number.json"), repeats=1),
    "a bit of the run's record flips": Fault(_damage("runs/*/nodes.jsonl")),
    "MLflow's database is removed": Fault(_remove_database),
    "MLflow's database is locked, 8 s": Fault(_lock_database),
    "leftovers of killed commands": Fault(_leftovers),
    "locks of killed commands": Fault(_stale_locks),
    "S3: kill -9 of the parent": Fault(_kill_parent, S3),
    "S3: kill -9 of the child": Fault(_kill_child, S3),
    "S3: kill -9 of everything": Fault(_kill_all, S3),
    "S3: the server is away, 20 s": Fault(_outage, S3),
    "S3: the machine's cache is lost": Fault(_no_cache, S3),
    "S3: locks of a machine that died": Fault(_dead_machine, S3),
    "S3: two commands at once": Fault(_begin_more(1), S3),
}
