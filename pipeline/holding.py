"""Who is running a run: one command at a time, on this machine and on others.

Commands on one disk agree by a lock, which dies with its command. Machines that share only an
object store have no such lock: the command that runs a run leaves a sign of life beside its record
and renews it; a sign that is old is of a command that died. Two machines that begin to continue
the same run at the very same moment may both do so: their artifacts are identical.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

from pipeline.store import Store

BEAT_SECONDS = 20.0
FRESH_SECONDS = 120.0  # a sign of this age is of a command that died, or of a clock that is wrong


@contextlib.contextmanager
def hold(store: Store, run_id: str, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Try to become the command that runs a run; yields whether it is."""
    with store.lock(_lock(run_id), wait_seconds) as held:
        if not held or _elsewhere(store, run_id):
            yield False
        elif not store.remote:
            yield True
        else:
            with _beating(store, run_id):
                yield True


def holder(store: Store, run_id: str) -> str:
    """The machine whose command runs a run at this moment, "" if none does. Writes nothing."""
    if store.is_locked(_lock(run_id)):
        return socket.gethostname()
    return _elsewhere(store, run_id)


def _lock(run_id: str) -> str:
    return f"run-{run_id}"


def _sign(run_id: str) -> str:
    return f"runs/{run_id}/alive.json"


def _here(store: Store) -> str:
    """What has our locks: this machine's side of the store."""
    return f"{socket.gethostname()}:{store.local}"


def _elsewhere(store: Store, run_id: str) -> str:
    """Another machine that runs it, by its sign of life."""
    data = store.location.read(_sign(run_id)) if store.remote else None
    try:
        sign = json.loads(data or b"{}")
        if sign["where"] != _here(store) and abs(time.time() - sign["time"]) < FRESH_SECONDS:
            return sign["host"]
    except (ValueError, KeyError):
        pass
    return ""


@contextlib.contextmanager
def _beating(store: Store, run_id: str) -> Iterator[None]:
    """Renew the sign of life until the block ends."""

    def beat() -> None:
        sign = {"host": socket.gethostname(), "where": _here(store), "time": time.time()}
        store.location.write(_sign(run_id), json.dumps(sign).encode())

    def work() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the store may be away for a while
                beat()

    ended = threading.Event()
    beat()
    thread = threading.Thread(target=work, daemon=True, name="sign-of-life")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(BEAT_SECONDS)
        with contextlib.suppress(Exception):  # it grows old by itself
            store.location.remove(_sign(run_id))
