"""Artifacts by the hash of what made them, written once, in a local directory or an object store.

Layout: `artifacts/STAGE/KEY/` (payload and manifest), `work/STAGE/KEY/` (resumable state),
`memory/STAGE/` (small results that nodes of one stage share), `runs/RUN/` (records, logs, report),
`quarantine/` (damaged artifacts set aside).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline import locations
from pipeline.artifact import MANIFEST, Artifact, Manifest, describe_files, open_artifact
from pipeline.errors import DamagedArtifactError, EarlierArtifactError, UsageError


class Store:
    """The artifacts, work areas and run records of one project.

    Args:
        uri: a local directory, or an object store (`s3://bucket/prefix`, `gs://...`).

    Raises:
        UsageError: the URI is empty, of no kind that a store can be, or lacks a slash, or no
            package is installed for that kind.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if not self.uri:
            raise UsageError("the store has an empty name; give a folder as --store, or leave it")
        slip = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/(?!/)", self.uri)
        if slip:
            rest = self.uri[slip.end() :]
            right = "file:///" if slip[1] == "file" else f"{slip[1]}://"
            raise UsageError(
                f"store {self.uri} has one slash where a URI has two; write {right}{rest}, or "
                f"./{self.uri} for a folder of that name"
            )
        self.remote = "://" in self.uri and not self.uri.startswith("file://")
        if self.remote:
            slug = hashlib.sha256(self.uri.encode()).hexdigest()[:12]
            self.local = locations.cache_folder() / slug
            self.location: locations.Location = locations.RemoteLocation(self.uri, self.local)
        else:
            self.local = Path(self.uri.removeprefix("file://")).expanduser().resolve()
            self.uri = str(self.local)
            self.location = locations.LocalLocation(self.local)

    def check_readable(self) -> None:
        """Raise `UsageError` if it cannot be told what the store holds."""
        self.location.check_readable()

    def check_writable(self) -> None:
        """Raise `UsageError` if the store, or its local side, cannot be written."""
        locations.LocalLocation(self.local).check_writable()
        self.location.check_writable()

    # Artifacts

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a finished artifact, or None.

        Raises:
            DamagedArtifactError: there is a manifest that cannot be read.
        """
        data = self.location.read(f"artifacts/{stage}/{key}/{MANIFEST}")
        if data is None:
            return None
        try:
            return Manifest.parse(data.decode())
        except EarlierArtifactError as error:
            raise EarlierArtifactError(f"artifact {stage}/{key} {error}") from error
        except (DamagedArtifactError, UnicodeDecodeError) as error:
            raise DamagedArtifactError(f"artifact {stage}/{key}: {error}") from error

    def open(self, stage: str, key: str) -> Artifact:
        """Open an artifact, every file checked against its SHA-256.

        Raises:
            DamagedArtifactError: it is not there, or does not match its manifest.
        """
        name = f"artifacts/{stage}/{key}"
        try:
            return self._open(name)
        except DamagedArtifactError:
            if not self.remote:
                raise
        shutil.rmtree(self.local / name, ignore_errors=True)  # perhaps only our copy is damaged
        return self._open(name)

    def _open(self, name: str) -> Artifact:
        path = self.location.get(name)
        if path is None:
            raise DamagedArtifactError(f"{name} is not in the store")
        try:
            artifact = open_artifact(path)
            manifest = artifact.manifest
            artifact.reopen = (reopen, (path, self.uri, manifest.stage, manifest.key))
            artifact.verify()
        except EarlierArtifactError as error:
            raise EarlierArtifactError(f"{name} {error}") from error
        except (DamagedArtifactError, OSError) as error:
            raise DamagedArtifactError(f"{name}: {error}") from error
        return artifact

    def scratch(self, key: str) -> Path:
        """A fresh folder on the store's own disk to write a payload in."""
        path = self.local / "tmp" / f"{key}-{os.getpid()}-{time.monotonic_ns()}"
        path.mkdir(parents=True)
        return path

    def commit(self, folder: Path, describe: Callable[[dict[str, Any]], Manifest]) -> Manifest:
        """Checksum the files in `folder` and make them an artifact at once.

        Args:
            describe: called with the description of the files, returns the manifest.
        """
        manifest = describe(describe_files(folder))
        (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
        self.location.put(folder, f"artifacts/{manifest.stage}/{manifest.key}", last=MANIFEST)
        shutil.rmtree(folder, ignore_errors=True)
        return manifest

    def set_aside(self, stage: str, key: str) -> str:
        """Move an artifact out of the way; where it is now, "" if it was gone already."""
        name = locations.quarantine_name(f"{stage}-{key}")
        try:
            self.location.move(f"artifacts/{stage}/{key}", name)
        except FileNotFoundError:
            return ""
        return name

    def set_aside_damaged(self, stage: str, key: str) -> str:
        """Move an artifact out of the way if it is damaged still; where it is now.

        "" if there is nothing to move: others did it meanwhile, or make it again at this moment.
        """
        with self.lock(f"{stage}-{key}") as held:
            if not held:
                return ""
            try:
                self.open(stage, key)
            except DamagedArtifactError:
                return self.set_aside(stage, key)
        return ""

    def artifacts(self) -> Iterator[tuple[str, str]]:
        """`(stage, key)` of every artifact."""
        for stage in self.location.children("artifacts"):
            for key in self.location.children(f"artifacts/{stage}"):
                yield stage, key

    # Work areas

    def work_path(self, stage: str, key: str) -> Path:
        return self.local / "work" / stage / key

    def has_work(self, stage: str, key: str) -> bool:
        """Whether an unfinished node left state to continue from."""
        name = f"work/{stage}/{key}"
        if self.remote:
            return bool(self.location.children(name))
        path = self.work_path(stage, key)
        return path.is_dir() and any(path.iterdir())

    def work(self, stage: str, key: str) -> WorkArea:
        """The work area of a node, with what an earlier attempt left in it."""
        path = self.work_path(stage, key)
        if self.remote:
            self.location.get(f"work/{stage}/{key}")
        path.mkdir(parents=True, exist_ok=True)
        return WorkArea(self, stage, key, path)

    def drop_work(self, stage: str, key: str) -> None:
        self.location.remove(f"work/{stage}/{key}")
        shutil.rmtree(self.work_path(stage, key), ignore_errors=True)

    @contextmanager
    def lock(self, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Try to hold a lock among all processes that share the store's disk.

        Yields whether it is held, within `wait_seconds`. A process that dies lets go of it.
        """
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_seconds
        with path.open("w", encoding="utf-8") as stream:
            while not (held := _try_lock(stream, fcntl.LOCK_EX)) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield held

    def is_locked(self, name: str) -> bool:
        """Whether somebody holds a lock at this moment. Writes nothing."""
        try:
            with self._lock_path(name).open(encoding="utf-8") as stream:
                return not _try_lock(stream, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def _lock_path(self, name: str) -> Path:
        return self.local / "locks" / name.replace("/", "-")

    # Run records

    def write_run(self, run_id: str, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=1)
        self.location.write(f"runs/{run_id}/run.json", text.encode())

    def read_run(self, run_id: str) -> dict[str, Any] | None:
        data = self.location.read(f"runs/{run_id}/run.json")
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return None

    def runs(self) -> list[dict[str, Any]]:
        """All run records, the newest first."""
        candidates = (self.read_run(name) for name in self.location.children("runs"))
        records = [record for record in candidates if record]
        return sorted(records, key=lambda r: (r["created"], r["id"]), reverse=True)

    def run_path(self, run_id: str) -> Path:
        """This machine's folder for a run's logs, report and MLflow spool."""
        path = self.local / "runs" / run_id
        path.mkdir(parents=True, exist_ok=True)
        return path


class WorkArea:
    """Resumable state of one node."""

    def __init__(self, store: Store, stage: str, key: str, path: Path) -> None:
        self._store, self._name, self.path = store, f"work/{stage}/{key}", path
        self._pushed: dict[str, tuple[int, int]] = {}

    def push(self) -> None:
        """Copy new and changed files to a remote store; on a local one they are safe already."""
        if not self._store.remote:
            return
        for relative, path in locations.files_below(self.path):
            status = path.stat()
            mark = (status.st_size, status.st_mtime_ns)
            if self._pushed.get(relative) != mark:
                self._store.location.write(f"{self._name}/{relative}", path.read_bytes())
                self._pushed[relative] = mark


def reopen(path: Path, uri: str, stage: str, key: str) -> Artifact:
    """Open an artifact where it was, or through its store on a machine that lacks the path."""
    if not (path / MANIFEST).is_file():
        return Store(uri).open(stage, key)
    artifact = open_artifact(path)
    artifact.reopen = (reopen, (path, uri, stage, key))
    return artifact


def _try_lock(stream: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
