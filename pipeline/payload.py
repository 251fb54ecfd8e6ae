"""An artifact's files in an object store, brought to this machine when they are asked for."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import cache, checks
from pipeline.artifact import Manifest, sha256
from pipeline.blocks import LARGEST, WHOLE_BELOW, bounds, is_whole
from pipeline.errors import DamagedArtifactError, StoreFullError
from pipeline.locking import lock_file
from pipeline.objects import ObjectLocation, is_no_name

# A file of which so large a part was asked for, bit by bit, is fetched whole: 1 / 32.
PARTS = 32
TRIES = 2
REFUSED_SECONDS = 60.0  # in which a cache without room for a file is not asked again


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset` of a file; OSError where it ends before."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a call gives 2 GiB at most
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise OSError(f"a file of a payload ends before byte {offset + size}")
        data += more
    return data


class Payload:
    """The folder of a payload on this machine, of which files are fetched when they are read.

    `payload / name` is a file that is here, whole and checked; of a folder it is a `Payload`.
    It can be sent to other machines, which fetch for themselves. While it lives, nothing of the
    artifact leaves the cache.

    Attributes:
        manifest: of the artifact.
        folder: where the files go.
    """

    def __init__(self, location: ObjectLocation, manifest: Manifest, below: str = "") -> None:
        self.manifest, self._location, self._below = manifest, location, below
        self._name = f"artifacts/{manifest.stage}/{manifest.key}"
        self.folder = location.cache / self._name
        self._hold: cache.Hold | None = None
        self._here: set[str] = set()
        self._parts: Counter[str] = Counter()  # bytes of files that were read without fetching
        self._refused: dict[str, float] = {}  # until when files are not asked room for
        self._last = ("", 0, b"")  # file, place and bytes of what was read so at last

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._location.uri, self.manifest, self._below)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Payload) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"{self._location.uri}/{self._name}/{self._below}"

    @property
    def _identity(self) -> tuple[str, str, str]:
        return self._location.uri, self._name, self._below

    def __truediv__(self, name: str) -> Path | Payload:
        """A file, fetched unless it is here; a folder; or the path of what does not exist.

        Raises:
            DamagedArtifactError: the store has no such file, or another than the manifest names.
            StoreFullError: the cache's disk has no room for it.
        """
        full = self._below + str(name)
        if full in self.manifest.files:
            return self._fetched(full)
        if any(file.startswith(f"{full}/") for file in self.manifest.files):
            return Payload(self._location, self.manifest, f"{full}/")
        return self.folder / full

    def whole(self) -> Path:
        """The folder, every file of it fetched; errors as `/`."""
        for name in self.manifest.files:
            self._fetched(name)
        return self.folder

    def has(self, name: str) -> bool:
        """Whether a file is on this machine already."""
        return (self.folder / (self._below + name)).exists()

    def part(self, name: str, start: int, size: int) -> bytes | memoryview:
        """Bytes of a file, which is fetched whole once much of it was asked for.

        Until then nothing is kept, and what is given is checked by blocks; that of a file whose
        manifest has none, such as one that was made on a disk and copied, by its length alone.

        Raises:
            DamagedArtifactError: as `/`; or the file ends before.
        """
        if size == 0:
            return b""
        full = self._below + name
        total = self.manifest.files[full]["size"]
        if not self.has(name) and total >= WHOLE_BELOW:
            begin, end = bounds(self.manifest.files[full], start, size)
            last = self._last  # of this thread: others may read too
            if not _has(last, full, begin, end):
                self._parts[full] += end - begin
                if self._parts[full] * PARTS >= total and self._has_room(full, total):
                    return self._read(full, start, size)
                last = full, begin, self._asked(full, begin, end)
                if end - begin <= LARGEST:
                    self._last = last
            return memoryview(last[2])[start - last[1] :][:size]
        return self._read(full, start, size)

    def _has_room(self, name: str, size: int) -> bool:
        """Whether a file that need not come may: to ask looks through the whole cache."""
        if time.monotonic() < self._refused.get(name, 0.0):
            return False
        fits = cache.make_room(size)
        if not fits:
            self._refused[name] = time.monotonic() + REFUSED_SECONDS
        return fits

    def _read(self, name: str, start: int, size: int) -> bytes:
        with self._fetched(name).open("rb") as stream:
            return read_at(stream.fileno(), size, start)

    def _asked(self, name: str, begin: int, end: int) -> bytes:
        for _ in range(TRIES):
            try:
                data = self._location.part(f"{self._name}/{name}", begin, end - begin)
            except FileNotFoundError as error:
                raise self._damaged(name, "is missing") from error
            if len(data) != end - begin:
                raise self._damaged(name, f"ends before byte {end}")
            if is_whole(self.manifest.files[name], begin, data):
                return data
        raise self._damaged(name, f"does not match its checksums between bytes {begin} and {end}")

    def _fetched(self, name: str) -> Path:
        path = self.folder / name
        if name in self._here:
            return path
        if self._hold is None:
            self._hold = cache.Hold(self._location.cache, self._name)
        try:
            self._fetch(name, path)
        except OSError as error:
            if not is_no_name(error):
                raise
            why = f"is a name that no disk can have beside the others ({error.strerror})"
            raise self._damaged(name[:100], why) from error
        self._here.add(name)
        return path

    def _fetch(self, name: str, path: Path) -> None:
        """Bring a file here under its lock, whole or not at all: others wait, and find it."""
        if self._is_whole(name, path):
            return
        which = hashlib.sha256(f"{self._name}/{name}".encode()).hexdigest()[:24]
        lock = self._location.cache / "locks" / f"fetch-{which}"
        with lock_file(lock, math.inf):
            if not self._is_whole(name, path):
                self._bring(name, path)
            lock.unlink(missing_ok=True)

    def _is_whole(self, name: str, path: Path) -> bool:
        expected = self.manifest.files[name]
        try:
            same = path.stat().st_size == expected["size"]
            return same and checks.digest(path) == expected["sha256"]
        except FileNotFoundError:
            return False

    def _bring(self, name: str, path: Path) -> None:
        expected = self.manifest.files[name]
        self._make_room(name, expected["size"])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        for _ in range(TRIES):
            try:
                self._location.download(f"{self._name}/{name}", part)
            except FileNotFoundError as error:
                raise self._damaged(name, "is missing") from error
            if sha256(part) == expected["sha256"]:
                with part.open("rb") as stream:
                    os.fsync(stream.fileno())
                part.replace(path)
                checks.note(path, expected["sha256"])
                return
        size = part.stat().st_size
        part.unlink()
        if size != expected["size"]:
            raise self._damaged(name, f"has {size} bytes, the manifest says {expected['size']}")
        raise self._damaged(name, "does not match its SHA-256")

    def _make_room(self, name: str, size: int) -> None:
        if cache.make_room(size, anyway=True):
            return
        free = cache.free_bytes()
        if free < size:
            raise StoreFullError(
                f"the cache {self._location.cache} has no room for {self._name}/{name} "
                f"({size / 1e9:.3g} GB, {free / 1e9:.3g} GB free); make room, or choose another "
                "place with --cache"
            )
        self._location.say(
            f"note: what is in use of the cache is above its bound of "
            f"{cache.bound() / 2**30:.3g} GiB (--cache-gib)"
        )

    def _damaged(self, name: str, why: str) -> DamagedArtifactError:
        stage, key = self.manifest.stage, self.manifest.key
        return DamagedArtifactError(f"{self._name}: {name} {why}", (stage, key))


def _has(last: tuple[str, int, bytes], name: str, begin: int, end: int) -> bool:
    known, place, data = last
    return known == name and place <= begin and end <= place + len(data)


def _reopened(uri: str, manifest: Manifest, below: str) -> Payload:
    return Payload(ObjectLocation.of(uri), manifest, below)
