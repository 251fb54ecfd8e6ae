"""Digests of the files and folders outside the store that settings name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pipeline import remembered
from pipeline.artifact import sha256
from pipeline.errors import UsageError

LARGE = 2**24  # bytes of a file whose digest is kept between commands


@cache
def fingerprint(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's names, sizes and times of change.

    The bytes of a large file are read again only where its size, place or times have changed;
    those of a folder's files never, of which there may be millions. Links are followed.

    Raises:
        UsageError: there is nothing at `path`, or it cannot be read.
    """
    try:
        if path.is_file():
            return _of_file(path)
        if path.is_dir():
            return _of_folder(path)
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    raise UsageError(f"{path} does not exist; set the path of the data or weights to one")


def _of_folder(path: Path) -> str:
    digest = hashlib.sha256()
    for line in _lines(str(path), "", ()):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _of_file(path: Path) -> str:
    status = path.stat()
    if status.st_size < LARGE:
        return sha256(path)
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    mark = f"sha256 {path.absolute()} {status.st_ino} {status.st_size} {times}"
    return remembered.under(mark, lambda: sha256(path))


def _lines(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """A line for every file below; `above` are the folders on the way, which links may name."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in above:
        return
    above = (*above, (own.st_dev, own.st_ino))
    with os.scandir(folder) as entries:
        listing = sorted(entries, key=lambda entry: entry.name)
    for entry in listing:
        if entry.is_dir():
            yield from _lines(entry.path, f"{prefix}{entry.name}/", above)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:  # a link to nothing
            status = entry.stat(follow_symlinks=False)
        yield f"{prefix}{entry.name} {status.st_size} {status.st_mtime_ns}\n"
