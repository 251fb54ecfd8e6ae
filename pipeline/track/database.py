"""The sqlite database in which MLflow keeps its runs: making it, and knowing it again."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

from pipeline.locking import lock_file
from pipeline.track.uri import sqlite_uri


def create_database(path: Path) -> None:
    """Make a sqlite database with MLflow's tables, whole or not at all, by one process.

    Several processes that open a new file together ruin it, and so may a kill while the tables
    are made; hence the lock, and the rename of a finished file. Write-ahead logging lets the
    user interface read while a run writes.
    """
    import mlflow
    import sqlalchemy

    if path.exists() and path.stat().st_size:
        return
    with lock_file(path.with_name(f"{path.name}.lock"), wait_seconds=120) as held:
        if not held:
            raise TimeoutError(f"another process has been creating {path} for two minutes")
        if path.exists() and path.stat().st_size:
            return
        temporary = path.with_name(f".{path.name}.new")
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()
        # Some seventy migrations, each synced to disk, would take longer than a short run: the
        # new file is synced once, when it is whole.
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", _without_sync)
        try:
            mlflow.MlflowClient(tracking_uri=sqlite_uri(temporary)).search_experiments()
        finally:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", _without_sync)
        with contextlib.closing(sqlite3.connect(temporary)) as database:
            database.execute(f"PRAGMA user_version={1 + secrets.randbelow(2**31 - 1)}")
            database.execute("PRAGMA journal_mode=WAL")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)


_seen: dict[tuple[int, int], int] = {}  # identities by the files' device and inode


def identity(path: Path) -> int | None:
    """The number that a database got when it was made, by which a new one in its place differs.

    It stands in the file's header: reading it takes no lock. None if there is no database. A file
    is read once in a process, to be called before anything connects to it: closing it again drops
    the locks that this process's own connections have on it, and whoever closes the database next
    takes the log of writes away from under them (sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        found = path.stat()
        place = found.st_dev, found.st_ino
        if place not in _seen:
            with path.open("rb") as stream:
                header = stream.read(64)
            if not header.startswith(b"SQLite format 3\0"):
                return None
            _seen[place] = int.from_bytes(header[60:64])
    except OSError:
        return None
    return _seen[place]


def forget() -> None:
    """No connection is left: another file may come to have the place of one that was seen."""
    _seen.clear()


def is_lost(path: Path, known: int | None) -> bool:
    """Whether a database that was `known` is gone, or another one in its place.

    Where its folder is gone too, the store was moved: nobody can tell.
    """
    return known is not None and path.parent.is_dir() and identity(path) != known


def _without_sync(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")
