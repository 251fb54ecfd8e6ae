"""Where results come from: code revision, package versions, host and time."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def installed(package: str) -> str:
    """The installed version of a distribution, or `"missing"`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def git_state(folder: Path) -> dict[str, Any]:
    """The revision of the code and whether it has uncommitted changes; empty outside git.

    Empty too where the folder lies in a repository of something else, as installed packages do.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, check=True, encoding="utf-8", errors="replace"
        ).stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return {}
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def code(git: Mapping[str, Any], letters: int | None = None) -> str:
    """What a run was of, in words. git: as `git_state` gives it. letters: of the revision, all by
    default."""
    if not git.get("revision"):
        return "the installed package"
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    return git["revision"][:letters] + dirty


def host() -> dict[str, Any]:
    return {
        "name": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
