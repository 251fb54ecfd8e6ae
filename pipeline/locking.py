"""Locks of files on one disk, which end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UsageError

# What opening a folder, a pipe, or something below a file says.
_NO_FILE = {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO}


@contextmanager
def lock_file(path: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Try to hold an exclusive lock on `path`; yields whether it is held within `wait_seconds`.

    Raises:
        UsageError: something else is at that place.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        with _opened(path, os.O_WRONLY | os.O_CREAT) as stream:
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
        with _opened(path, os.O_RDONLY) as stream:
            return not _try_lock(stream, fcntl.LOCK_SH)
    except (FileNotFoundError, UsageError):
        return False


def drop(path: Path) -> None:
    """Remove the file of a lock that nobody holds."""
    with _opened(path, os.O_WRONLY | os.O_CREAT) as stream:
        if _try_lock(stream, fcntl.LOCK_EX):
            path.unlink(missing_ok=True)


def _opened(path: Path, flags: int) -> IO[bytes]:
    """The file of a lock. Others may have put a folder or a pipe there: nobody waits for it."""
    try:
        if flags & os.O_CREAT:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise _in_the_way(error.filename) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path)
    return open(descriptor, "rb" if flags == os.O_RDONLY else "ab")


def _in_the_way(path: str | Path) -> UsageError:
    return UsageError(f"{path} is in the way of a lock; move it elsewhere")


def _is_at(stream: IO[bytes], path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(stream: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
