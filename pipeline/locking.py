"""Locks of files on one disk, which end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def lock_file(path: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Try to hold an exclusive lock on `path`; yields whether it is held within `wait_seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    while True:
        with path.open("a", encoding="utf-8") as stream:
            held = _try_lock(stream, fcntl.LOCK_EX)
            if held and not _is_at(stream, path):  # `drop` has removed it meanwhile
                continue
            if held or time.monotonic() >= deadline:
                yield held
                return
        time.sleep(0.05)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock at this moment. Writes nothing."""
    try:
        with path.open(encoding="utf-8") as stream:
            return not _try_lock(stream, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def drop(path: Path) -> None:
    """Remove the file of a lock that nobody holds."""
    with path.open("a", encoding="utf-8") as stream:
        if _try_lock(stream, fcntl.LOCK_EX):
            path.unlink(missing_ok=True)


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(stream: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
