"""An object store through fsspec: where a store's bytes live that several machines share.

A client of an object store does not survive a fork: it is opened in the process that uses it.
Outages are waited out (`pipeline.patience`). Names come from a server that others may write to:
one that would lead out of a folder is refused.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifact import MANIFEST
from pipeline.errors import DamagedArtifactError, UsageError, nearest
from pipeline.locations import MOST_BYTES, LocalLocation, cache_folder, files_below, is_plain
from pipeline.patience import PATIENCE_SECONDS, patiently

# By the scheme of their URIs; the last one lives in one process, for tests.
PROTOCOLS = ("s3", "gs", "gcs", "memory")
# Of names that a server may list together, but not a disk.
_NO_FILE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
# What `excludes` creates for a moment, with the time of it.
PROBES = "locks/.probe-"
PROBE_NAME = re.compile(re.escape(PROBES) + r"(\d{20})-[0-9a-f]{16}")
PROBE_SECONDS = 3600.0


def _is_left(name: str) -> bool:
    """Whether a name is of a probe that is older than any command takes for one."""
    known = PROBE_NAME.fullmatch(name)
    return known is not None and time.time() - int(known[1]) / 1e9 > PROBE_SECONDS


BLOCK_BYTES = 2**23  # in memory at once


def is_no_name(error: OSError) -> bool:
    """Whether an error says that a disk cannot have a file of that name beside the others."""
    return error.errno in _NO_FILE


def _version(info: Mapping[str, Any]) -> str:
    """By the server: what changes when an object is written."""
    names = ("ETag", "etag", "generation", "created", "LastModified")
    return str(next((info[name] for name in names if info.get(name)), ""))


def _print(text: str) -> None:
    print(text, flush=True)


class ObjectLocation:
    """An object store below one prefix; `cache` is its side on this machine.

    Attributes:
        patience_seconds: how long an outage is waited out.
        say: hears of outages.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        self.cache = cache
        self.patience_seconds = PATIENCE_SECONDS
        self.say: Callable[[str], object] = _print
        protocol = uri.partition("://")[0]
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"store {uri} has the unknown scheme '{protocol}'{nearest(protocol, PROTOCOLS)}; "
                "give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX as --store"
            )
        try:
            self.fs, self.root = fsspec.url_to_fs(self.uri, use_listings_cache=False)
        except ImportError as error:
            raise UsageError(
                f"store {uri}: the package for {protocol}:// is not installed ({error})"
            ) from error
        except (ValueError, OSError) as error:
            raise UsageError(f"store {uri}: {error}; choose another with --store") from error

    @classmethod
    def of(cls, uri: str) -> ObjectLocation:
        """The store of that URI, its side in this machine's cache."""
        return cls(uri, cache_folder() / hashlib.sha256(uri.encode()).hexdigest()[:12])

    def at_once(self) -> ObjectLocation:
        """The same place for somebody who would rather not wait for a server that is away."""
        hasty = copy.copy(self)
        hasty.patience_seconds = 0.0
        return hasty

    def check_readable(self) -> None:
        try:
            self.at_once().children("runs")
        except Exception as error:
            raise UsageError(
                f"store {self.uri} cannot be read ({type(error).__name__}: {error}); check the "
                "bucket, the network and the credentials, or choose another with --store"
            ) from error

    def check_writable(self) -> None:
        try:
            excludes = self.at_once().excludes()
        except Exception as error:
            raise UsageError(
                f"store {self.uri} is not writable ({type(error).__name__}: {error}); check the "
                "bucket and the credentials, or choose another with --store"
            ) from error
        if not excludes:
            self.say(
                f"warning: store {self.uri} knows no conditional writes: two machines that begin "
                "the same node at the very same moment both make it"
            )

    def excludes(self) -> bool:
        """Whether the server refuses to create a name that exists: then machines have locks."""
        probe = f"{PROBES}{time.time_ns():020d}-{secrets.token_hex(8)}"
        try:
            return self.create(probe, b"1") and not self.create(probe, b"2")
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._do(self.fs.rm_file, self._at(probe))

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _do(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return patiently(
            lambda: call(*arguments, **options),
            f"store {self.uri}",
            self.patience_seconds,
            self.say,
        )

    # Files

    def read(self, name: str) -> bytes | None:
        try:
            # One more byte than is allowed tells whether there are more.
            data = self._do(self.fs.cat_file, self._at(name), start=0, end=MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError:
            if self._do(self.fs.size, self._at(name)) == 0:  # S3 gives no part of nothing
                return b""
            raise
        if len(data) > MOST_BYTES:
            raise OSError(f"{name} has more than {MOST_BYTES} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        self._do(self.fs.pipe_file, self._at(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one, where the server can tell; whether it was written."""
        try:
            self._do(self.fs.pipe_file, self._at(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def append(self, name: str, data: bytes) -> None:
        # Nothing can be added to an object: each part is one.
        self.write(f"{name}/{time.time_ns():020d}-{secrets.token_hex(4)}", data)

    def appended(self, name: str) -> bytes:
        parts = (self.read(f"{name}/{part}") for part in self.children(name))
        return b"".join(part for part in parts if part)

    def upload(self, path: Path, name: str) -> None:
        self._do(self.fs.put_file, str(path), self._at(name))

    # Folders

    def put(self, folder: Path, name: str, last: str) -> None:
        files = sorted(files_below(folder), key=lambda item: (item[0] == last, item[0]))
        for relative, path in files:
            self.upload(path, f"{name}/{relative}")

    def part(self, name: str, start: int, size: int) -> bytes:
        """Bytes of a file, fewer where it ends before. Raises FileNotFoundError."""
        return self._do(self.fs.cat_file, self._at(name), start=start, end=start + size)

    def download(self, name: str, path: Path) -> None:
        """Bring a file to a path of this machine. Raises FileNotFoundError."""
        self._do(self.fs.get_file, self._at(name), str(path))

    def digest(self, name: str) -> str:
        """SHA-256 of a file as it lies in the store, a part in memory at a time."""
        digest, start = hashlib.sha256(), 0
        size = self._do(self.fs.size, self._at(name))
        while start < size:
            data = self.part(name, start, BLOCK_BYTES)
            if not data:
                break
            digest.update(data)
            start += len(data)
        return digest.hexdigest()

    def versions(self, name: str) -> dict[str, tuple[int, str]]:
        """Size, and what changes with every write, of the files below a folder that are not hidden.

        Raises:
            DamagedArtifactError: a file has a name that leads out of the folder.
        """
        found = self._do(self.fs.find, self._at(name), detail=True)
        prefix = self._at(name) + "/"
        below = {path.removeprefix(prefix): info for path, info in found.items()}
        strange = next((relative for relative in below if not is_plain(relative)), None)
        if strange is not None:
            raise DamagedArtifactError(
                f"{name} has a file named {strange!r}, which leads elsewhere"
            )
        return {
            relative: (info["size"], _version(info))
            for relative, info in below.items()
            if not any(part.startswith(".") for part in relative.split("/"))
        }

    def version(self, name: str) -> tuple[int, str]:
        """As `versions`, of one file."""
        info = self._do(self.fs.info, self._at(name))
        return info["size"], _version(info)

    def filesystem(self) -> Any:
        """The store as a file system of pyarrow, whose paths begin with `root`."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.fs))

    def children(self, name: str) -> list[str]:
        try:
            paths = self._do(self.fs.ls, self._at(name), detail=False)
        except FileNotFoundError:
            return []
        prefix = self._at(name) + "/"
        names = {path.rstrip("/").removeprefix(prefix) for path in paths if path.startswith(prefix)}
        return sorted(n for n in names if is_plain(n) and "/" not in n and not n.startswith("."))

    def remove(self, name: str) -> None:
        shutil.rmtree(self.cache / name, ignore_errors=True)
        self._delete(self._found(name))

    def move(self, name: str, to: str) -> None:
        shutil.rmtree(self.cache / name, ignore_errors=True)
        paths = self._found(name)
        if not paths:
            raise FileNotFoundError(name)
        prefix = self._at(name)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # others move it too
                self._do(self.fs.cp_file, path, self._at(to) + path.removeprefix(prefix))
        self._delete(paths)

    def _found(self, name: str) -> list[str]:
        return list(self._do(self.fs.find, self._at(name)))

    def _delete(self, paths: list[str]) -> None:
        """Delete, manifests first: of what is cut off, no artifact is left that lacks files."""
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST}")):
            with contextlib.suppress(FileNotFoundError):
                self._do(self.fs.rm_file, path)

    def size(self, name: str) -> int:
        found = self._do(self.fs.find, self._at(name), detail=True)
        return sum(info["size"] for info in found.values())

    def leftovers(self) -> list[str]:
        """Probes of commands that were killed; else an object is whole or absent."""
        try:
            paths = self._do(self.fs.ls, self._at("locks"), detail=False)
        except FileNotFoundError:
            return []
        names = (path.removeprefix(f"{self.root}/") for path in paths)
        return sorted(name for name in names if _is_left(name))


def location_of(uri: str) -> LocalLocation | ObjectLocation:
    """The place of a store's bytes, by the store's URI."""
    if "://" in uri and not uri.startswith("file://"):
        return ObjectLocation.of(uri)
    return LocalLocation(Path(uri.removeprefix("file://")).expanduser().resolve())
