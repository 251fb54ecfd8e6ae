"""Digests of the files and folders outside the store that settings name: their contents alone.

A file's bytes are read once. They are read again only where its place on the disk, its size or a
time of change is another, so that names, copies and new dates change nothing, and other bytes of
the same size and date always do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline import remembered
from pipeline.errors import UsageError

# What systems and programs leave beside data, other than hidden files; locks of LMDB change when
# it is read.
FOREIGN = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lock.mdb"),
        *("lost+found", "$recycle.bin", "#recycle", "system volume information", "__pycache__"),
    }
)

# A file that was written less than this before it was read may be written again without another
# time of change: it is read again next time.
SETTLED_NS = 2 * 10**9
SAID_SECONDS = 1.5  # of reading until it is said
SAVED_SECONDS = 5.0  # between findings are saved, so that a reading that is stopped goes on
BLOCK = 2**20
NOTHING = bytes(32)
LISTED = 20_000  # files of a folder whose names are remembered, to say what changed
TASK_BYTES, TASK_FILES = 2**24, 256  # that one thread reads in a row

KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@cache
def fingerprint(path: Path) -> str:
    """Digest of a file's bytes and suffix, which may decide its reader, or of the names and bytes
    of all files below a folder. The name of the file or folder itself does not matter.

    Files below a folder that are hidden or foreign do not count, nor do folders without files.
    Links are followed.

    Raises:
        UsageError: there is nothing at `path`, it cannot be read, or it is or holds a pipe, a
            socket or a device.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; set the path of the data or weights to one")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _of_folder(path)
        (digest,) = _digests([_found(str(path), "", status)], path)
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return digest.hex() + path.suffix.lower()


def foreign(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data beside it: a hidden one, or one
    that systems leave behind."""
    return name.startswith(".") or name.casefold() in FOREIGN


class _File(NamedTuple):
    """A file as it lies there.

    Args:
        path: where to open it.
        name: relative to the folder asked for.
        subject: what tells it from other files, whatever its name.
        state: its size and times of change; a link to nothing has none.
    """

    path: str
    name: str
    subject: bytes
    state: bytes

    @property
    def size(self) -> int:
        return struct.unpack_from("<q", self.state)[0] if self.state else 0


def _found(path: str, name: str, status: os.stat_result) -> _File:
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for of, kind in KINDS.items() if of(status.st_mode)), "no file")
        raise UsageError(
            f"{path} is {kind}, not a file; move it elsewhere, or name another file or folder"
        )
    subject = struct.pack(">QQ", status.st_dev % 2**64, status.st_ino % 2**64)
    if status.st_ctime_ns % 10**9 == 0:
        # A file system without fine times may also number its files anew each time it is mounted.
        subject += os.fsencode(os.path.abspath(path))
    return _File(path, name, subject, _state(status))


def _state(status: os.stat_result) -> bytes:
    return struct.pack("<qqq", status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _of_folder(path: Path) -> str:
    files = sorted(_below(str(path), "", ()), key=lambda file: file.name)
    contents = _digests(files, path)
    digest = hashlib.sha256()
    for file, of_file in zip(files, contents, strict=True):
        digest.update(os.fsencode(file.name) + b"\0" + of_file)
    found = digest.hexdigest()
    if len(files) <= LISTED and not remembered.recall([_listing(found)]):
        listing = {file.name: got.hex()[:8] for file, got in zip(files, contents, strict=True)}
        packed = zlib.compress(json.dumps(listing).encode())
        remembered.keep({_listing(found): (found, packed)})
    return found


def _listing(digest: str) -> str:
    return f"folder {digest}"


def difference(old: str, new: str) -> str:
    """How folders of two digests differ, such as "1 added, 2 changed"; nothing where that is not
    remembered, as of folders with very many files."""
    known = remembered.recall([_listing(old), _listing(new)])
    if len(known) < 2:
        return ""
    before, after = (json.loads(zlib.decompress(known[_listing(d)][1])) for d in (old, new))
    counts = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[name] != after[name] for name in before.keys() & after.keys()),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _below(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[_File]:
    """Every file that counts; `above` are the folders on the way, which links may name."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in above:
        return
    above = (*above, (own.st_dev, own.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if foreign(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                yield _File(entry.path, name, b"", b"")  # a link to nothing, or to itself
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from _below(entry.path, f"{name}/", above)
            else:
                yield _found(entry.path, name, status)


def _digests(files: Sequence[_File], root: Path) -> list[bytes]:
    """SHA-256 of each file's bytes, read where they are not known; NOTHING of a link to nothing."""
    subjects = sorted({file.subject for file in files if file.state})
    known = remembered.recall(subjects)
    found: dict[bytes, bytes] = {}
    unread: dict[bytes, _File] = {}
    for file in files:
        state, contents = known.get(file.subject, (None, b""))
        if not file.state or state == file.state:
            found[file.subject] = contents or NOTHING
        else:
            unread[file.subject] = file
    if unread:
        found |= _read_all(list(unread.values()), root)
    return [found[file.subject] for file in files]


def _read_all(files: Sequence[_File], root: Path) -> dict[bytes, bytes]:
    """The digest of every file by its subject, remembered for other commands."""
    found: dict[bytes, bytes] = {}
    size = _in_words(sum(file.size for file in files))
    saying = f"reading {size} of {root} once, to know it again"
    timer = threading.Timer(SAID_SECONDS, print, [saying], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    stop = threading.Event()
    pool = ThreadPoolExecutor(min(32, 2 + 2 * len(os.sched_getaffinity(0))))
    saved = time.monotonic()
    try:
        for done in pool.map(lambda task: _read(task, stop), _tasks(files)):
            found |= {subject: contents for subject, _, contents in done}
            remembered.keep({subject: (state, got) for subject, state, got in done if state})
            if time.monotonic() - saved > SAVED_SECONDS:
                remembered.save()
                saved = time.monotonic()
    finally:
        timer.cancel()
        stop.set()
        pool.shutdown(cancel_futures=True)
        remembered.save()
    return found


def _in_words(size: int) -> str:
    """Bytes as kB, MB or GB."""
    unit = 0
    value = size / 1000
    while value >= 1000 and unit < 2:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {('kB', 'MB', 'GB')[unit]}"


def _tasks(files: Iterable[_File]) -> Iterator[list[_File]]:
    """Files in parts that are worth a thread's turn."""
    task: list[_File] = []
    size = 0
    for file in files:
        task.append(file)
        size += file.size
        if size >= TASK_BYTES or len(task) >= TASK_FILES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _read(files: Sequence[_File], stop: threading.Event) -> list[tuple[bytes, bytes | None, bytes]]:
    """Subject, state and digest of files; no state where another reading may give another."""
    read = []
    for file in files:
        began = time.time_ns()
        # A pipe that has taken a file's place since would be waited for.
        handle = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK)
        with open(handle, "rb", buffering=0) as stream:
            digest = hashlib.sha256()
            size = min(BLOCK, file.size + 1)
            while (block := stream.read(size)) and not stop.is_set():
                digest.update(block)
            status = os.fstat(stream.fileno())
        settled = (
            status.st_ctime_ns <= began - SETTLED_NS
            and abs(status.st_mtime_ns - began) >= SETTLED_NS
        )
        same = _state(status) == file.state and not stop.is_set()
        read.append((file.subject, file.state if settled and same else None, digest.digest()))
    return read
