"""Where a store's bytes live: a local directory, or any file system that fsspec knows."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.errors import UsageError, nearest

# Object stores by the scheme of their URIs; the last one lives in one process, for tests.
PROTOCOLS = ("s3", "gs", "gcs", "memory")


class Location(Protocol):
    """Files below one root, named by relative paths with `/`."""

    uri: str

    def check_readable(self) -> None:
        """Raise `UsageError` if it cannot be told what is here; that nothing is, is fine."""

    def check_writable(self) -> None:
        """Raise `UsageError` if nothing can be written here."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing."""

    def put(self, folder: Path, name: str, last: str) -> None:
        """Store a folder's files below `name`, the file `last` after all others."""

    def get(self, name: str) -> Path | None:
        """A folder as a local path (downloaded where it is remote), or None."""

    def children(self, name: str) -> list[str]:
        """Names directly below a folder, sorted."""

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""

    def move(self, name: str, to: str) -> None:
        """Move a folder."""

    def size(self, name: str) -> int:
        """Bytes below a folder."""


def cache_folder() -> Path:
    """This user's folder for what can be had again: in `XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-bench"


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


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
            probe = root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"store {root} is not writable ({error.strerror}); choose another with --store"
            ) from error

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)

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

    def get(self, name: str) -> Path | None:
        path = self.root / name
        return path if path.is_dir() else None

    def children(self, name: str) -> list[str]:
        path = self.root / name
        if not path.is_dir():
            return []
        return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))

    def remove(self, name: str) -> None:
        path = self.root / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        # Gone at once: a removal that is cut off leaves no half of an artifact under its name.
        doomed = self.root / "tmp" / f"removed-{os.getpid()}-{time.monotonic_ns()}"
        doomed.parent.mkdir(parents=True, exist_ok=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def move(self, name: str, to: str) -> None:
        target = self.root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).rename(target)

    def size(self, name: str) -> int:
        return sum(path.stat().st_size for _, path in files_below(self.root / name))


class RemoteLocation:
    """An object store through fsspec. Files are fetched once into `cache`."""

    def __init__(self, uri: str, cache: Path) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        self.cache = cache
        protocol = uri.partition("://")[0]
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"store {uri} has the unknown scheme '{protocol}'{nearest(protocol, PROTOCOLS)}; "
                "give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX as --store"
            )
        try:
            self.fs, self.root = fsspec.url_to_fs(self.uri)
        except ImportError as error:
            raise UsageError(
                f"store {uri}: the package for {protocol}:// is not installed ({error})"
            ) from error
        except (ValueError, OSError) as error:
            raise UsageError(f"store {uri}: {error}; choose another with --store") from error

    def check_readable(self) -> None:
        try:
            self.children("runs")
        except Exception as error:
            raise UsageError(
                f"store {self.uri} cannot be read ({type(error).__name__}: {error}); check the "
                "bucket, the network and the credentials, or choose another with --store"
            ) from error

    def check_writable(self) -> None:
        try:
            self.write(".writable", b"")
        except Exception as error:
            raise UsageError(
                f"store {self.uri} is not writable ({type(error).__name__}: {error}); check the "
                "bucket and the credentials, or choose another with --store"
            ) from error

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(self._at(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self.fs.pipe_file(self._at(name), data)

    def put(self, folder: Path, name: str, last: str) -> None:
        files = sorted(files_below(folder), key=lambda item: (item[0] == last, item[0]))
        for relative, path in files:
            self.fs.put_file(str(path), f"{self._at(name)}/{relative}")

    def get(self, name: str) -> Path | None:
        target = self.cache / name
        self.fs.invalidate_cache()
        paths = self.fs.find(self._at(name))
        if not paths:
            return None
        prefix = self._at(name) + "/"
        for path in paths:
            local = target / path.removeprefix(prefix)
            if not local.is_file() or local.stat().st_size != self.fs.size(path):
                local.parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(path, str(local))
        return target

    def children(self, name: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(self._at(name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.cache / name, ignore_errors=True)
        if self.fs.exists(self._at(name)):
            self.fs.rm(self._at(name), recursive=True)

    def move(self, name: str, to: str) -> None:
        shutil.rmtree(self.cache / name, ignore_errors=True)
        self.fs.mv(self._at(name), self._at(to), recursive=True)

    def size(self, name: str) -> int:
        return int(self.fs.du(self._at(name)))
