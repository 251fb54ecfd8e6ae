"""Who is running a run: one command at a time, on this machine and on others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.store import Store


@contextlib.contextmanager
def hold(store: Store, run_id: str, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Try to become the command that runs a run; yields whether it is."""
    with store.lock(_lock(run_id), wait_seconds) as held:
        yield held


def holder(store: Store, run_id: str) -> str:
    """The machine whose command runs a run at this moment, "" if none does. Writes nothing."""
    return store.holder(_lock(run_id))


def _lock(run_id: str) -> str:
    return f"run-{run_id}"
