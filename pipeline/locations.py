"""Where a store's bytes live: here a local directory; `pipeline.objects` has object stores."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.errors import UsageError

CACHE = "PIPELINE_CACHE"
# Larger files are no records or manifests, whatever they are called.
MOST_BYTES = 2**28
_NO_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and no characters


_KEY = re.compile("[0-9a-f]{32,}")

# Names of what is being written or removed, by the process that does it.
BEGUN = re.compile(r"\..+\.(\d+(\.tmp)?|removed-\d+-\d+)")
BEGUN_AT_ROOT = re.compile(r"\.probe\.\d+|\.mlflow\.db\.new(-\w+)?")
SCRATCH = re.compile(r".+-\d+-\d+")


class Location(Protocol):
    """Files below one root, named by relative paths with `/`."""

    uri: str

    def check_readable(self) -> None:
        """Raise `UsageError` if it cannot be told what is here; that nothing is, is fine."""

    def check_writable(self) -> None:
        """Raise `UsageError` if nothing can be written here."""

    def read(self, name: str) -> bytes | None:
        """A small file's bytes, or None where there is none.

        Raises:
            OSError: it is no ordinary file, or larger than any record.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing."""

    def append(self, name: str, data: bytes) -> None:
        """Add to what `appended` gives."""

    def appended(self, name: str) -> bytes:
        """All that was appended under a name, in order."""

    def put(self, folder: Path, name: str, last: str) -> None:
        """Store a folder's files below `name`, the file `last` after all others."""

    def upload(self, path: Path, name: str) -> None:
        """Store one file."""

    def children(self, name: str) -> list[str]:
        """Names directly below a folder, sorted; none that is hidden or leads elsewhere."""

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""

    def move(self, name: str, to: str) -> None:
        """Move a folder. Raises FileNotFoundError if there is none."""

    def size(self, name: str) -> int:
        """Bytes below a folder, or of a file."""

    def leftovers(self) -> list[str]:
        """What killed commands left half written, where no command is at work."""


def cache_folder() -> Path:
    """The folder for what can be had again: `PIPELINE_CACHE`, or this user's own, in
    `XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-bench"


def is_plain(name: str) -> bool:
    """Whether a relative name stays below the folder in which it is looked up."""
    parts = name.split("/")
    return not _NO_NAME.search(name) and all(part not in ("", ".", "..") for part in parts)


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def belongs(path: Path, store: Path) -> bool:
    """Whether a file is a store's own, wherever links lead: those of a stage's folder, which may
    lie on another disk, to folders named as artifacts are."""
    real, root = path.resolve(), store.resolve()
    if real.is_relative_to(root):
        return True
    parts = path.relative_to(store).parts if path.is_relative_to(store) else ()
    if len(parts) < 4 or parts[0] != "artifacts" or not _KEY.fullmatch(parts[2]):
        return False
    return real.is_relative_to((root / "artifacts" / parts[1]).resolve() / parts[2])


def write_own(path: Path, text: str) -> None:
    """Write a text file of a store anew. Where others laid a link, what it leads to stays."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def append_only(path: str | Path, flags: int) -> int:
    """As `opener` of `open`: adds to a file of a store, and never to what a link leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def quarantine_name(name: str) -> str:
    """A new place for something that is set aside."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"quarantine/{name}-{stamp}-{secrets.token_hex(4)}"


class LocalLocation:
    """A local directory: renames make writes atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def check_readable(self) -> None:
        try:
            os.scandir(self.root).close()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UsageError(
                f"store {self.root} is no folder that can be read ({error.strerror}); choose "
                "another with --store"
            ) from error

    def check_writable(self) -> None:
        root = self.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"store {root} is not writable ({error.strerror}); choose another with --store"
            ) from error

    def read(self, name: str) -> bytes | None:
        try:
            # A pipe would be waited for: it is opened without, and refused.
            descriptor = os.open(self.root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is no ordinary file", name)
            if status.st_size > MOST_BYTES:
                raise OSError(errno.EFBIG, f"has {status.st_size} bytes", name)
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)

    def append(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=append_only) as stream:
            stream.write(data)

    def appended(self, name: str) -> bytes:
        return self.read(name) or b""

    def upload(self, path: Path, name: str) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)

    def put(self, folder: Path, name: str, last: str) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".{target.name}.{os.getpid()}"
        shutil.rmtree(staged, ignore_errors=True)
        if folder.stat().st_dev == target.parent.stat().st_dev:
            folder.rename(staged)
        else:
            shutil.copytree(folder, staged)
        for _, path in files_below(staged):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        if not self._renamed(staged, target, last):
            # Left by a removal that was cut off: without its last file it is nothing.
            self.move(name, quarantine_name(name.replace("/", "-")))
            if not self._renamed(staged, target, last):
                raise FileExistsError(f"{target} is in the way; move it elsewhere")

    def _renamed(self, staged: Path, target: Path, last: str) -> bool:
        """Whether `target` is whole now: renamed to it, or finished by somebody else before."""
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Somebody else may have finished the same artifact first; both are the same.
            if not (target / last).is_file():
                return False
            shutil.rmtree(staged, ignore_errors=True)
        return True

    def children(self, name: str) -> list[str]:
        path = self.root / name
        if not path.is_dir():
            return []
        return sorted(p.name for p in path.iterdir() if _is_listed(p.name))

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir() and not path.is_symlink():  # of a link, what it leads to stays
            # Gone at once: a removal that is cut off leaves no half of an artifact under its name.
            # It stays beside it: the store's own folder may be on another disk.
            doomed = path.with_name(f".{path.name}.removed-{os.getpid()}-{time.monotonic_ns()}")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def move(self, name: str, to: str) -> None:
        source, target = self.root / name, self.root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            staged = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copytree(source, staged, symlinks=True)
            staged.rename(target)
            self.remove(name)

    def size(self, name: str) -> int:
        path = self.root / name
        if path.is_file():
            return path.stat().st_size
        return sum(file.stat().st_size for _, file in files_below(path))

    def leftovers(self) -> list[str]:
        places = ("artifacts/*", "memory/*", "quarantine", "runs", "runs/*", "work/*")
        found = [p for place in places for p in self._named(f"{place}/.*", BEGUN)]
        found += self._named(".*", BEGUN_AT_ROOT)
        found += self.root.glob("work/*/*/**/.*.tmp")
        found += self.root.glob("artifacts/*/*/**/.*.part")
        found += [p for p in self.root.glob("runs/*/mlflow.state.*") if p.suffix[1:].isdigit()]
        found += self._named("tmp/*", SCRATCH)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def _named(self, pattern: str, name: re.Pattern[str]) -> list[Path]:
        """What lies there under a name that this project gives: a store may be a folder in which
        others keep files too."""
        return [path for path in self.root.glob(pattern) if name.fullmatch(path.name)]


def _is_listed(name: str) -> bool:
    return not name.startswith(".") and is_plain(name)
