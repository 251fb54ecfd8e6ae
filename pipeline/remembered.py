"""What earlier commands found out about files, kept between commands in the user's cache folder.

A finding is kept under a mark that holds the file's path, size and times of change, as Python
remembers compiled modules: a changed file is looked at again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.locations import cache_folder

NEWEST = 2000  # findings that are kept


def under(mark: str, find: Callable[[], Any]) -> Any:
    """What `find()` gives, which must be JSON data; called only where nothing is kept as `mark`."""
    findings = _findings()
    if mark not in findings:
        findings[mark] = find()
    return findings[mark]


def _file() -> Path:
    return cache_folder() / "remembered.json"


@cache
def _findings() -> dict[str, Any]:
    """What earlier commands found; written back when this one ends, if it found more."""
    try:
        findings = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        findings = {}
    atexit.register(_keep, findings, len(findings))
    return findings


def _keep(found: dict[str, Any], known: int) -> None:
    if len(found) == known:
        return
    newest = dict(list(found.items())[-NEWEST:])
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(newest), encoding="utf-8")
        temporary.replace(file)
