"""The cache of what lies in object stores: its place, its bound, and who uses what of it.

Every store has a folder here, and in it every artifact and work area one: an entry. Who uses an
entry holds a lock that its process shares with others; of the entries that nobody holds, those that
were taken up longest ago go when room is needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import UsageError
from pipeline.locations import CACHE, cache_folder

BOUND = "PIPELINE_CACHE_GIB"
SLACK_BYTES = 2**26  # fetched between two looks at what all others have fetched
# What is in the store whole goes before what may not be.
ARTIFACTS, WORK = "artifacts", "work"

_given: dict[str, str] = {}
_room: dict[Path, int] = {}


def choose(folder: str | None, gib: str | None) -> None:
    """What the command line says: it holds for this process, those it starts, and a cluster's.

    Raises:
        UsageError: the bound is no number above 0.
    """
    if folder:
        _given[CACHE] = str(Path(folder).expanduser().absolute())
    if gib:
        _given[BOUND] = gib
    os.environ.update(_given)
    if os.environ.get(BOUND):
        bound()


def given() -> dict[str, str]:
    """The variables that the command line has set, for processes on other machines."""
    return dict(_given)


def bound() -> int:
    """How many bytes the cache may hold: half of its disk, unless `PIPELINE_CACHE_GIB` says.

    Raises:
        UsageError: that is no number above 0.
    """
    said = os.environ.get(BOUND)
    if not said:
        return shutil.disk_usage(_existing(cache_folder())).total // 2
    try:
        gib = float(said)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise UsageError(
            f"the cache's bound {said!r} (--cache-gib, {BOUND}) is no number of GiB above 0"
        )
    return int(gib * 2**30)


class Hold:
    """The use of an entry: until it is closed, or its process ends, nobody removes the entry."""

    def __init__(self, side: Path, name: str) -> None:
        stream = _locked(_hold_file(side, name))
        os.utime(stream.name)
        self._close = weakref.finalize(self, stream.close)

    def close(self) -> None:
        self._close()


def _locked(path: Path) -> IO[str]:
    """A file under a shared lock, and at its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_SH)
        except OSError:
            return stream  # a disk without such locks: there nothing is removed either
        try:
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        stream.close()


def make_room(size: int, anyway: bool = False) -> bool:
    """Remove what nobody holds until `size` bytes more are within the bound; whether they are.

    Where they cannot be, nothing is removed.

    anyway: they come even so; then what nobody holds makes room for them as far as the disk goes.
    """
    folder = cache_folder()
    most = bound()
    slack = min(SLACK_BYTES, most // 16)
    known = _room.get(folder, 0)
    if known < size:
        known = _looked(folder, most, size, anyway)
    fits = known >= size
    # Others fetch too: what is known now soon is not.
    _room[folder] = min(known - size, slack) if fits else 0
    return fits


def free_bytes() -> int:
    """What the cache's disk has left."""
    return shutil.disk_usage(_existing(cache_folder())).free


def _looked(folder: Path, most: int, size: int, anyway: bool) -> int:
    """The room that there is, after removing as much as `size` needs, if that gives it room."""
    entries = {entry: _size(entry) for entry in _entries(folder)}
    free = free_bytes()
    room = min(most - sum(entries.values()), free)
    if room >= size:
        return room
    loose = [entry for entry in entries if not _is_held(entry)]
    if (free if anyway else room) + sum(entries[entry] for entry in loose) < size:
        return room
    for entry in sorted(loose, key=lambda entry: (entry.parents[1].name == WORK, _used(entry))):
        if room >= size:
            break
        if _removed(entry):
            room += entries[entry]
    return room


def _entries(folder: Path) -> Iterator[Path]:
    for kind in (ARTIFACTS, WORK):
        yield from folder.glob(f"*/{kind}/*/*")


def _is_held(entry: Path) -> bool:
    """Whether somebody uses an entry at this moment."""
    try:
        with _hold_file(*_place(entry)).open("r+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _removed(entry: Path) -> bool:
    """Whether an entry that nobody held is gone."""
    path = _hold_file(*_place(entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(entry, ignore_errors=True)
        path.unlink(missing_ok=True)
    return True


def _used(entry: Path) -> float:
    try:
        return _hold_file(*_place(entry)).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _place(entry: Path) -> tuple[Path, str]:
    """The store's folder in which an entry is, and its name there."""
    side = entry.parents[2]
    return side, entry.relative_to(side).as_posix()


def _hold_file(side: Path, name: str) -> Path:
    return side / "held" / name.replace("/", "-")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # it goes at this moment
            continue
    return total


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
