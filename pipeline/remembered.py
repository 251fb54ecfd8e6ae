"""What earlier commands found out about files, kept between commands in the user's cache folder.

A finding is of a subject, such as a file, and holds while that is in the same state, such as of
the same size and times of change. A subject has one finding, the newest. They lie in a database
that commands may share at the same time. Where there can be none, everything is found again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.locations import cache_folder

FILE = "remembered.sqlite"
NEWEST = 4_000_000  # findings that are kept, of about 150 bytes each
BATCH = 500  # subjects of one query
SECONDS = 10.0  # to wait for another command that writes

Subject = str | bytes
Finding = tuple[str | bytes, str | bytes]
"""A state, and what was found of the subject in it."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS findings "
    "(id INTEGER PRIMARY KEY, subject NOT NULL UNIQUE, state NOT NULL, found NOT NULL)"
)
_INSERT = "INSERT OR REPLACE INTO findings (subject, state, found) VALUES (?, ?, ?)"
_PRUNE = "DELETE FROM findings WHERE id <= (SELECT max(id) FROM findings) - ?"

_unsaved: dict[Subject, Finding] = {}
_unusable: set[tuple[str, int]] = set()
_one_thread = threading.RLock()


def under(subject: str, state: str, find: Callable[[], Any]) -> Any:
    """What `find()` gives, which must be JSON data; called only where that is not known."""
    known = recall([subject]).get(subject)
    if known is not None and known[0] == state:
        return json.loads(known[1])
    found = find()
    keep({subject: (state, json.dumps(found))})
    return found


def recall(subjects: Iterable[Subject]) -> dict[Subject, Finding]:
    """The finding of every subject that has one, whatever its state."""
    asked, known = list(subjects), {}
    with _one_thread, _sparing():
        database = _database()
        for start in range(0, len(asked) if database else 0, BATCH):
            some = asked[start : start + BATCH]
            which = f"subject IN ({','.join('?' * len(some))})"
            rows = database.execute(
                f"SELECT subject, state, found FROM findings WHERE {which}", some
            )
            known |= {subject: (state, found) for subject, state, found in rows}
    return known | {subject: _unsaved[subject] for subject in asked if subject in _unsaved}


def keep(findings: Mapping[Subject, Finding]) -> None:
    """Remember findings; other commands learn of them when they are saved, which is at the end of
    this one at the latest."""
    _save_at_exit()
    with _one_thread:
        _unsaved.update(findings)


def save() -> None:
    """Write what is not saved yet."""
    with _one_thread, _sparing():
        rows = [(subject, *finding) for subject, finding in _unsaved.items()]
        database = _database()
        if database and rows:
            with database:
                database.executemany(_INSERT, rows)
                database.execute(_PRUNE, (NEWEST,))
            _unsaved.clear()


@cache
def _save_at_exit() -> None:
    atexit.register(save)


@contextlib.contextmanager
def _sparing() -> Iterator[None]:
    """Once the database cannot be used, this process does without, which costs time alone. One
    that is damaged is removed, so that the next command begins another."""
    try:
        yield
    except sqlite3.Error as error:
        place = _place()
        _unusable.add(place)
        _connected.cache_clear()
        if not isinstance(error, sqlite3.OperationalError):
            with contextlib.suppress(OSError):
                Path(place[0], FILE).unlink()


def _place() -> tuple[str, int]:
    """The folder, and this process: a connection must not be used on both sides of a fork."""
    try:
        return str(cache_folder()), os.getpid()
    except RuntimeError:  # there is no home
        return "", os.getpid()


def _database() -> sqlite3.Connection | None:
    place = _place()
    return _connected(*place) if place[0] and place not in _unusable else None


@cache
def _connected(folder: str, process: int) -> sqlite3.Connection:
    with contextlib.suppress(OSError):
        Path(folder).mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(Path(folder, FILE), timeout=SECONDS, check_same_thread=False)
    database.execute(_TABLE)
    return database
