"""Resumable state of one node, on the machine that works and, where that is another place, in the
store: a node may begin on one machine and go on with its state on another."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cache
from pipeline.errors import DamagedArtifactError
from pipeline.locations import LocalLocation, files_below
from pipeline.objects import ObjectLocation, is_no_name, location_of

STORED = ".stored.json"  # what of the area is in the store, and as which version


class WorkArea:
    """The state of a node in `path`, whose files with a dot in front are this machine's alone.

    Of a store on a disk, that is a folder in the store. Of an object store it is one in this
    machine's cache: `pull` brings there what is stored, which happens by itself when `path` is
    first asked for, and `push` stores what is new. Sent to another machine, it is the same area.
    """

    def __init__(self, location: LocalLocation | ObjectLocation, stage: str, key: str) -> None:
        self._location, self._stage, self._key = location, stage, key
        self._name = f"work/{stage}/{key}"
        self._remote = isinstance(location, ObjectLocation)
        self._folder = (location.cache if self._remote else location.root) / self._name
        self._hold: cache.Hold | None = None
        self._here = False
        self._left: frozenset[str] = frozenset()  # what earlier attempts had stored
        self._one_thread = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._location.uri, self._stage, self._key)

    @property
    def path(self) -> Path:
        if not self._here:
            self.pull()
        return self._folder

    def pull(self) -> None:
        """Bring here what others stored since.

        Raises:
            DamagedArtifactError: a file has a name that leads out of the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._remote:
            if self._hold is None:
                self._hold = cache.Hold(self._location.cache, self._name)
            with self._one_thread:
                stored = self._location.versions(self._name)
                if not self._here:
                    self._left = frozenset(stored)
                self._pull(stored)
        self._here = True

    def _pull(self, stored: Mapping[str, tuple[int, str]]) -> None:
        for relative, (size, version) in stored.items():
            try:
                self._bring(relative, size, version, self._known())
            except OSError as error:
                if not is_no_name(error):
                    raise
                raise DamagedArtifactError(
                    f"{self._name} has a file {relative[:100]!r}, which no disk can have beside "
                    f"the others ({error.strerror})"
                ) from error

    def _bring(self, relative: str, size: int, version: str, known: dict[str, list[Any]]) -> None:
        path = self._folder / relative
        # Where nobody else has stored it since, what is here is the newer one.
        if version and path.is_file() and known.get(relative, [""])[0] == version:
            return
        cache.make_room(size, anyway=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._location.download(f"{self._name}/{relative}", part)
        part.replace(path)
        self._note(relative, version, _mark(path))

    def push(self) -> None:
        """Make what is in `path` safe against the loss of this machine: store what is new."""
        if not self._remote:
            return
        with self._one_thread:
            known = self._known()
            for relative, path in files_below(self._folder):
                hidden = any(part.startswith(".") for part in relative.split("/"))
                if hidden or known.get(relative, [""])[1:] == _mark(path):
                    continue
                mark = _mark(path)
                self._location.upload(path, f"{self._name}/{relative}")
                _, version = self._location.version(f"{self._name}/{relative}")
                self._note(relative, version, mark)

    def clear(self) -> None:
        """Forget all of it, here and in the store."""
        self._location.remove(self._name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _known(self) -> dict[str, list[Any]]:
        """By file: its version in the store, and size and time of change of what is the same."""
        try:
            known = json.loads((self._folder / STORED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _note(self, relative: str, version: str, mark: list[int]) -> None:
        """Remember what is stored. What others note at this moment may be lost: it is then stored,
        or brought, once more."""
        known = self._known() | {relative: [version, *mark]}
        temporary = self._folder / f"{STORED}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(self._folder / STORED)

    # Shards on other machines

    def visit(self) -> Path | Visit:
        """What stands for the area where a shard of its node runs: its folder, or what finds it."""
        path = self.path
        if not self._remote:
            return path
        return Visit(self._location.uri, self._stage, self._key, self._left)

    def arrive(self, left: frozenset[str]) -> Path:
        """The folder on a shard's machine, with what earlier attempts had stored, and no more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hold = cache.Hold(self._location.cache, self._name)
        if left:
            stored = self._location.versions(self._name)
            self._pull({name: stored[name] for name in left & stored.keys()})
        return self._folder

    # What all machines see at once, beside the files

    def tell(self, name: str, text: str) -> None:
        """Leave a word for the node's processes on all machines."""
        self._location.write(f"{self._name}/.{name}", text.encode())

    def told(self, name: str) -> str | None:
        """The word of that name, None where none was left."""
        data = self._location.read(f"{self._name}/.{name}")
        return None if data is None else data.decode()

    def forget(self, name: str) -> None:
        """Take a word back."""
        self._location.remove(f"{self._name}/.{name}")

    def shared(self, name: str) -> tuple[str, Any]:
        """A folder that all machines reach, and the pyarrow file system that it is on; None for a
        disk."""
        if self._remote:
            path = f"{self._location.root}/{self._name}/.{name}"
            return path, self._location.filesystem()
        return str(self._folder / f".{name}"), None


@dataclass(frozen=True)
class Visit:
    """A work area on its way to a machine where a shard of its node runs."""

    uri: str
    stage: str
    key: str
    left: frozenset[str]

    def area(self) -> WorkArea:
        return WorkArea(location_of(self.uri), self.stage, self.key)


def visiting(function: Callable[..., Any], item: Any, common: tuple) -> Any:
    """`function(item, *common)`, the folder of a work area in the place of its `Visit`; what it
    leaves there is stored."""
    areas = {place: value.area() for place, value in enumerate(common) if isinstance(value, Visit)}
    arrived = [
        areas[place].arrive(value.left) if place in areas else value
        for place, value in enumerate(common)
    ]
    result = function(item, *arrived)
    for area in areas.values():
        area.push()
    return result


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _reopened(uri: str, stage: str, key: str) -> WorkArea:
    return WorkArea(location_of(uri), stage, key)
