"""Artifacts by the hash of what made them, written once, in a local directory or an object store.

Layout: `artifacts/STAGE/KEY/` (payload and manifest), `work/STAGE/KEY/` (resumable state),
`memory/STAGE/` (small results that nodes of one stage share), `runs/RUN/` (records, logs, report),
`quarantine/` (damaged artifacts set aside).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import cache, checks, leases, locations, shapes
from pipeline.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    artifact_of,
    describe_files,
)
from pipeline.errors import (
    DamagedArtifactError,
    DamagedRecordError,
    EarlierArtifactError,
    UsageError,
)
from pipeline.locking import by_creation, drop, is_locked, lock_file, make_folder
from pipeline.objects import ObjectLocation, location_of
from pipeline.payload import Payload
from pipeline.workarea import WorkArea

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
        self.location = location_of(self.uri)
        self.remote = isinstance(self.location, ObjectLocation)
        self.local = self.location.cache if self.remote else self.location.root
        self.uri = self.uri if self.remote else str(self.local)

    def check_readable(self) -> None:
        """Raise `UsageError` if it cannot be told what the store holds."""
        self.location.check_readable()

    def check_writable(self) -> None:
        """Raise `UsageError` if the store, or its local side, cannot be written."""
        if self.remote:
            locations.LocalLocation(self.local).check_writable()
        self.location.check_writable()

    # Artifacts

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a finished artifact, or None.

        Raises:
            DamagedArtifactError: there is a manifest that cannot be read.
        """
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
        return manifest

    def open(self, stage: str, key: str) -> Artifact:
        """Open an artifact.

        On a disk every file is checked against its SHA-256, unless this machine did so before. Of
        one in an object store the manifest is read; a file is fetched, and checked, when it is.

        Raises:
            DamagedArtifactError: it is not there, or does not match its manifest.
        """
        with _named(stage, key):
            manifest = self.manifest(stage, key)
            if manifest is None:
                raise DamagedArtifactError("is not in the store")
            if isinstance(self.location, ObjectLocation):
                return artifact_of(Payload(self.location, manifest), manifest)
            artifact = artifact_of(self.local / f"artifacts/{stage}/{key}", manifest)
            artifact.verify(checks.digest)
            return artifact

    def verify(self, stage: str, key: str) -> None:
        """Hash every byte of an artifact where it is stored, and of what the cache has of it.

        Raises:
            DamagedArtifactError: as `open`.
        """
        name = f"artifacts/{stage}/{key}"
        with _named(stage, key):
            manifest = self.manifest(stage, key)
            if manifest is None:
                raise DamagedArtifactError("is not in the store")
            artifact = artifact_of(self.local / name, manifest)
            if not isinstance(self.location, ObjectLocation):
                artifact.verify(functools.partial(checks.digest, anew=True))
                return
            for file, expected in manifest.files.items():
                self._drop_damaged(self.local / name / file, expected["sha256"])
                try:
                    found = self.location.digest(f"{name}/{file}")
                except FileNotFoundError as error:
                    raise DamagedArtifactError(f"{file} is missing") from error
                if found != expected["sha256"]:
                    raise DamagedArtifactError(f"{file} does not match its SHA-256")

    def _drop_damaged(self, copy: Path, expected: str) -> None:
        """Remove the cache's copy of a file if it is damaged: it is fetched again."""
        if copy.is_file() and checks.digest(copy, anew=True) != expected:
            copy.unlink(missing_ok=True)
            print(f"note: the cache's copy {copy} was damaged and is removed", flush=True)

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
        manifest = describe(describe_files(folder, parted=self.remote))
        (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
        name = f"artifacts/{manifest.stage}/{manifest.key}"
        written = {file: (folder / file).stat().st_ino for file in manifest.files}
        self.location.put(folder, name, last=MANIFEST)
        with self._held(name):  # others who need room take what was used longest ago first
            if self.remote:
                self._keep(folder, name, manifest)
            for file, inode in written.items():
                # It was hashed a moment ago, unless it is another's who was the first.
                place = self.local / name / file
                if place.is_file() and place.stat().st_ino == inode:
                    checks.note(place, manifest.files[file]["sha256"])
        shutil.rmtree(folder, ignore_errors=True)
        return manifest

    def _held(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """The use of an entry of the cache, if the store has one."""
        hold = contextlib.nullcontext()
        return contextlib.closing(cache.Hold(self.local, name)) if self.remote else hold

    def _keep(self, folder: Path, name: str, manifest: Manifest) -> None:
        """Move what was stored into the cache, where the next reader on this machine finds it."""
        if not cache.make_room(manifest.num_bytes):
            return
        for file in manifest.files:
            target = self.local / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / file).replace(target)

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
                self.verify(stage, key)
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
        found = set(self.location.leftovers())
        if self.remote:
            found |= set(locations.LocalLocation(self.local).leftovers())
        return sorted(found)

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
        return bool(self.location.children(f"work/{stage}/{key}"))

    def work(self, stage: str, key: str) -> WorkArea:
        """The work area of a node, with what an earlier attempt left in it."""
        return WorkArea(self.location, stage, key)

    def drop_work(self, stage: str, key: str) -> None:
        self.location.remove(f"work/{stage}/{key}")
        shutil.rmtree(self.work_path(stage, key), ignore_errors=True)

    # Locks

    @contextlib.contextmanager
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
        """Whether locks are files, since the disk has none; the store must be writable.

        Raises:
            UsageError: something else is where the locks go.
        """
        make_folder(self.local / "locks")
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


@contextlib.contextmanager
def _named(stage: str, key: str) -> Iterator[None]:
    """Errors of an artifact's files say whose they are."""
    name = f"artifacts/{stage}/{key}"
    try:
        yield
    except EarlierArtifactError as error:
        raise EarlierArtifactError(_about(f"{name} ", error), (stage, key)) from error
    except (DamagedArtifactError, OSError) as error:
        raise DamagedArtifactError(_about(f"{name}: ", error), (stage, key)) from error


def _about(name: str, error: Exception) -> str:
    words = _words(error)
    return words if words.startswith("artifact") else f"{name}{words}"


def _words(error: Exception) -> str:
    """What went wrong, without the machinery's numbers."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
