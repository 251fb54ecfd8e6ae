"""Which bytes of stored files were checked on this machine before, so that none is hashed twice.

A finding holds while a file has the size, time of change and inode that it had then; damage that
leaves all three as they were is found by `doctor --verify`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline import remembered
from pipeline.artifact import sha256

SMALL = 2**20  # bytes: hashing fewer is as fast as remembering them
SETTLED_SECONDS = 0.1  # a file may change once more within the same tick of its time of change


def digest(file: Path, anew: bool = False) -> str:
    """SHA-256 of a file's bytes, remembered.

    Args:
        anew: hash it whatever is known, and remember that.
    """
    status = file.stat()
    if status.st_size < SMALL:
        return sha256(file)
    subject, state = _subject(file), _state(status)
    if not anew:
        known = remembered.recall([subject]).get(subject)
        if known is not None and known[0] == state:
            return str(known[1])
    found = sha256(file)
    _keep(file, state, found)
    return found


def note(file: Path, found: str) -> None:
    """Remember the SHA-256 of a file that was computed as it was written."""
    status = file.stat()
    if status.st_size >= SMALL:
        _keep(file, _state(status), found)


def _keep(file: Path, state: str, found: str) -> None:
    status = file.stat()
    if _state(status) == state and time.time() - status.st_mtime > SETTLED_SECONDS:
        remembered.keep({_subject(file): (state, found)})
        remembered.save()  # at once: who is killed at the end of a run says no goodbye


def _subject(file: Path) -> str:
    return f"stored {file}"


def _state(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
