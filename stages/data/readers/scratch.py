"""Folders of copies, for formats that are slow to read by index."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

PREFIX = "images"

_place: ContextVar[Path | None] = ContextVar("place", default=None)


@contextmanager
def below(folder: Path) -> Iterator[None]:
    """Copies that are made in the block lie in `folder`: where there is room for a set, and where
    tasks of other machines read. Else they are temporary files."""
    token = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def copies() -> Iterator[Path]:
    """A new folder, `below` one that was named or among temporary files. It is removed where the
    block raises, and else by who reads it; temporary ones that killed processes of this machine
    have left are removed first."""
    machine = platform.node() or "localhost"
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}-{machine}-*-*"):
        process = left.name.split("-")[-2]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}-{machine}-{os.getpid()}-", dir=_place.get())
    try:
        yield Path(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
