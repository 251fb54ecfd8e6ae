"""Artifacts by the hash of what made them, written once, in a local directory or an object store.

Layout: `artifacts/STAGE/KEY/` (payload and manifest), `work/STAGE/KEY/` (resumable state),
`memory/STAGE/` (small results that nodes of one stage share), `runs/RUN/` (records, logs, report),
`quarantine/` (damaged artifacts set aside).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import leases, locations, shapes
from pipeline.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    artifact_of,
    describe_files,
    open_artifact,
)
from pipeline.errors import (
    DamagedArtifactError,
    DamagedRecordError,
    EarlierArtifactError,
    UsageError,
)
from pipeline.locking import by_creation, drop, is_locked, lock_file
from pipeline.objects import ObjectLocation

RECORD, ENDED_NODES = "run.json", "nodes.jsonl"
RUNNING = "running"  # the state of a run whose record may still be added to


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
            self.location: locations.Location = ObjectLocation(self.uri, self.local)
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
        found = self._manifest(stage, key)
        return found[0] if found else None

    def _manifest(self, stage: str, key: str) -> tuple[Manifest, int] | None:
        """A manifest and how many bytes it takes."""
        try:
            data = self.location.read(f"artifacts/{stage}/{key}/{MANIFEST}")
            if data is None:
                return None
            manifest = Manifest.parse(data)
        except EarlierArtifactError as error:
            raise EarlierArtifactError(f"artifact {stage}/{key} {error}") from error
        except (DamagedArtifactError, OSError) as error:
            raise DamagedArtifactError(f"artifact {stage}/{key}: {_words(error)}") from error
        if (manifest.stage, manifest.key) != (stage, key):
            raise DamagedArtifactError(f"artifact {stage}/{key}: its manifest is of another one")
        return manifest, len(data)

    def open(self, stage: str, key: str) -> Artifact:
        """Open an artifact, every file checked against its SHA-256.

        Raises:
            DamagedArtifactError: it is not there, or does not match its manifest.
        """
        name = f"artifacts/{stage}/{key}"
        try:
            return self._open(stage, key)
        except EarlierArtifactError:
            raise
        except DamagedArtifactError:
            if not self.remote:
                raise
        shutil.rmtree(self.local / name, ignore_errors=True)  # perhaps only our copy is damaged
        return self._open(stage, key)

    def _open(self, stage: str, key: str) -> Artifact:
        name = f"artifacts/{stage}/{key}"
        found = self._manifest(stage, key)
        if found is None:
            raise DamagedArtifactError(f"{name} is not in the store")
        manifest, num_bytes = found
        sizes = {file: described["size"] for file, described in manifest.files.items()}
        try:
            path = self.location.get(name, sizes | {MANIFEST: num_bytes})
            if path is None:
                raise DamagedArtifactError("its files are not in the store")
            artifact = artifact_of(path, manifest)
            artifact.reopen = (reopen, (path, self.uri, stage, key, type(artifact)))
            artifact.verify()
        except EarlierArtifactError as error:
            raise EarlierArtifactError(f"{name} {error}") from error
        except (DamagedArtifactError, OSError) as error:
            raise DamagedArtifactError(f"{name}: {_words(error)}") from error
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

    # Housekeeping

    def leftovers(self) -> list[str]:
        """What killed commands left half written, on this machine's side too."""
        return sorted(
            {*self.location.leftovers(), *locations.LocalLocation(self.local).leftovers()}
        )

    def size(self, name: str) -> int:
        """Bytes of a file, or below a folder."""
        here = locations.LocalLocation(self.local).size(name) if self.remote else 0
        return self.location.size(name) or here

    def remove(self, name: str) -> None:
        """Remove a file or folder, with what this machine has of it."""
        self.location.remove(name)
        if self.remote:
            locations.LocalLocation(self.local).remove(name)

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

    # Locks

    @contextmanager
    def lock(self, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Try to hold a lock among all processes, and machines, that share the store.

        Yields whether it is held. Another process of this machine is waited for as long as
        `wait_seconds`. A process that dies lets go of it, a machine after two minutes.
        """
        with lock_file(self._lock_path(name), wait_seconds) as held:
            if held and isinstance(self.location, ObjectLocation):
                with leases.lease(self.location, name, self._here) as leased:
                    yield leased
            else:
                yield held

    def holder(self, name: str) -> str:
        """The machine that holds a lock at this moment, "" if none does. Writes nothing."""
        if is_locked(self._lock_path(name)):
            return socket.gethostname()
        if isinstance(self.location, ObjectLocation):
            return leases.holder(self.location, name, self._here)
        return ""

    def drop_locks(self) -> None:
        """Remove what is left of locks that nobody holds."""
        for path in (self.local / "locks").glob("*"):
            drop(path)
        if isinstance(self.location, ObjectLocation):
            for entry in self.location.children("locks"):
                if leases.is_stale(self.location, entry.removesuffix(".json")):
                    self.location.remove(f"locks/{entry}")

    def has_no_locks(self) -> bool:
        """Whether locks are files, since the disk has none; the store must be writable."""
        (self.local / "locks").mkdir(exist_ok=True)
        return by_creation(self.local / "locks")

    def _lock_path(self, name: str) -> Path:
        return self.local / "locks" / name.replace("/", "-")

    @property
    def _here(self) -> str:
        """What has our local locks: this machine's side of the store."""
        return f"{socket.gethostname()}:{self.local}"

    # Run records

    def write_run(self, run_id: str, record: dict[str, Any]) -> None:
        """Write a run's record, whole."""
        self.location.write(f"runs/{run_id}/{RECORD}", json.dumps(record).encode())
        self.location.remove(f"runs/{run_id}/{ENDED_NODES}")

    def append_run(self, run_id: str, nodes: dict[str, dict[str, Any]]) -> None:
        """Add to a run's record how nodes ended: what `read_run` puts into their entries."""
        line = json.dumps(nodes, separators=(",", ":")).encode() + b"\n"
        self.location.append(f"runs/{run_id}/{ENDED_NODES}", line)

    def read_run(self, run_id: str) -> dict[str, Any] | None:
        """A run's record, None where there is none.

        Raises:
            DamagedRecordError: there is something that is no record of this run.
        """
        try:
            data = self.location.read(f"runs/{run_id}/{RECORD}")
            if data is None:
                return None
            record = shapes.parse(data)
            if isinstance(record, dict) and record.get("state") == RUNNING:
                _put_ended(record, self.location.appended(f"runs/{run_id}/{ENDED_NODES}"))
            shapes.check(record, shapes.RecordFields)
            if record["id"] != run_id:
                raise ValueError("it is of another run")
        except (ValueError, OSError) as error:
            raise DamagedRecordError(
                f"the record of run {run_id} cannot be read ({_words(error)}); move "
                f"runs/{run_id} out of the store"
            ) from error
        return record

    def runs(self, unread: Callable[[str], object] = lambda text: None) -> list[dict[str, Any]]:
        """All run records, the newest first.

        Args:
            unread: hears a sentence about each record that is damaged, which is left out.
        """
        records = []
        for name in self.location.children("runs"):
            try:
                record = self.read_run(name)
            except DamagedRecordError as error:
                unread(str(error))
                continue
            if record is not None:
                records.append(record)
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
            if not path.name.startswith(".") and self._pushed.get(relative) != mark:
                self._store.location.upload(path, f"{self._name}/{relative}")
                self._pushed[relative] = mark


def _put_ended(record: dict[str, Any], lines: bytes) -> None:
    """Put what was appended to a record into its nodes; the last line may be torn."""
    for line in lines.splitlines():
        try:
            ended = shapes.parse(line)
        except ValueError:
            continue
        for name, entry in ended.items() if isinstance(ended, dict) else ():
            node = record["nodes"].get(name) if isinstance(record.get("nodes"), dict) else None
            if isinstance(node, dict) and isinstance(entry, dict):
                node |= entry


def reopen(path: Path, uri: str, stage: str, key: str, kind: type[Artifact]) -> Artifact:
    """Open an artifact where it was, or through its store on a machine that lacks the path."""
    if not (path / MANIFEST).is_file():
        return Store(uri).open(stage, key)
    artifact = open_artifact(path, kind)
    artifact.reopen = (reopen, (path, uri, stage, key, kind))
    return artifact


def _words(error: Exception) -> str:
    """What went wrong, without the machinery's numbers."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
