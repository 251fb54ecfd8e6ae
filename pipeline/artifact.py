"""Artifacts: what a node wrote, as a directory of files beside a manifest.

The manifest says what the files are (sizes and SHA-256), what made them (settings, inputs, source
digests, package versions, git revision) and what was measured. Subclasses, one for each kind of
artifact, stand beside the stage that writes them and add a `load()` that reads the payload.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import blocks, shapes
from pipeline.errors import DamagedArtifactError, EarlierArtifactError

MANIFEST = "manifest.json"
CURVES = "curves.parquet"
# Raise it when manifests change, or when the classes that they name move.
SCHEMA = 3
CHECKSUM = "checksum"
# Manifests name classes; modules of these packages may be imported for one.
KIND_PACKAGES = ("pipeline", "stages", "sweeps")
REMEDY = "run its recipe again, which makes it anew, or read it with the version that made it"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    if path.stat().st_size < 2**20:
        return hashlib.sha256(path.read_bytes()).hexdigest()  # cheaper than a buffer a file
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_files(folder: Path, parted: bool = False) -> dict[str, dict[str, Any]]:
    """`{relative name: {"size", "sha256"}}` of every payload file below `folder`, sorted.

    Args:
        parted: parts of large files will be read elsewhere: give these `blocks` as well.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): _described(p, parted) for p in files}


def _described(path: Path, parted: bool) -> dict[str, Any]:
    size = path.stat().st_size
    if parted and size >= blocks.WHOLE_BELOW:
        return blocks.described(path)
    return {"size": size, "sha256": sha256(path)}


@dataclass(frozen=True)
class Manifest:
    """Provenance of one artifact. `timings`, `host` and the times are not part of the payload."""

    key: str
    stage: str
    type: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, Any]
    sources: dict[str, str]
    threads: int
    files: dict[str, dict[str, Any]]
    external: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    abscissa: str | None = None
    curves: dict[str, int] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def payload(self) -> str:
        """Digest of all payload files: equal for two artifacts with the same bytes."""
        text = json.dumps({n: f["sha256"] for n, f in self.files.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(f["size"] for f in self.files.values())

    def dump(self) -> str:
        """As JSON, with a checksum over all of it."""
        return json.dumps(self.__dict__ | {CHECKSUM: _checksum(self.__dict__)}, indent=1)

    @classmethod
    def parse(cls, text: bytes | str) -> Manifest:
        """Read a manifest.

        Raises:
            DamagedArtifactError: the text is not a manifest, or not what was written.
            EarlierArtifactError: it has a schema that this version does not read.
        """
        try:
            fields = shapes.parse(text)
            if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
                raise ValueError("it has no schema")
            schema = fields["schema"]
            if schema != SCHEMA:
                age = "an earlier" if schema < SCHEMA else "a later"
                raise EarlierArtifactError(
                    f"was made by {age} version (manifest schema {schema}, this one reads "
                    f"{SCHEMA}); {REMEDY}"
                )
            if fields.pop(CHECKSUM, None) != _checksum(fields):
                raise ValueError("it does not match its checksum")
            shapes.check(fields, shapes.ManifestFields)
        except ValueError as error:
            raise DamagedArtifactError(f"manifest cannot be read ({error})") from error
        return cls(**fields)


def _checksum(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_kinds: dict[str, type[Artifact]] = {}  # every class of artifacts that was defined


class Artifact:
    """A finished artifact: `path / name` is a file of its payload on this machine's disk.

    `path` is a folder, or a `pipeline.payload.Payload`, which fetches what is read.
    """

    # Glob patterns of payload files that MLflow shows.
    tracked: ClassVar[tuple[str, ...]] = ()
    # Those that hold a table as `{"columns": [...], "data": [[...], ...]}`, which MLflow lays out.
    tables: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _kinds[cls.type_name()] = cls

    def __init__(self, path: Any, manifest: Manifest) -> None:
        self.path = Path(path) if isinstance(path, str) else path
        self.manifest = manifest

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, an artifact is opened again."""
        return open_artifact, (self.path, type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.manifest.stage} {self.manifest.key[:12]})"

    @classmethod
    def type_name(cls) -> str:
        """`"module:Class"`, as stored in manifests."""
        return f"{cls.__module__}:{cls.__qualname__}"

    @property
    def metrics(self) -> dict[str, float]:
        return self.manifest.metrics

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the stage that made it, as plain data."""
        return self.manifest.settings

    def verify(self, digest: Callable[[Path], str] = sha256) -> None:
        """Check every file against the manifest.

        Args:
            digest: gives the SHA-256 of a file.

        Raises:
            DamagedArtifactError: a file is missing, or its size or SHA-256 differs.
        """
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise DamagedArtifactError(f"{name} is missing")
            if file.stat().st_size != expected["size"]:
                raise DamagedArtifactError(
                    f"{name} has {file.stat().st_size} bytes, the manifest says {expected['size']}"
                )
            if digest(file) != expected["sha256"]:
                raise DamagedArtifactError(f"{name} does not match its SHA-256")

    def load(self) -> Any:
        """The payload in memory. Subclasses return what suits their kind."""
        return {name: self.path / name for name in self.manifest.files}

    def folder(self) -> Path:
        """A folder with every file of the payload."""
        return self.path if isinstance(self.path, Path) else self.path.whole()

    def tracked_files(self) -> list[Path]:
        """The payload files that MLflow shows."""
        return self._named(self.tracked)

    def table_files(self) -> list[Path]:
        """The payload files that MLflow lays out as tables."""
        return self._named(self.tables)

    def _named(self, patterns: Sequence[str]) -> list[Path]:
        """The payload files of these patterns, whose `*` stands for parts of one name."""
        names = {
            name
            for name in map(PurePosixPath, self.manifest.files)
            for pattern in patterns
            if name.match(pattern) and len(name.parts) == len(PurePosixPath(pattern).parts)
        }
        return [self.path / name.as_posix() for name in sorted(names)]

    def datasets(self) -> list[dict[str, Any]]:
        """Data sets to note in MLflow: `name`, `digest`, `source` and a small `profile`."""
        return []

    def curves(self) -> list[tuple[str, int, float]]:
        """Rows `(metric, step, value)` that the node recorded; the step is its `abscissa`."""
        return read_curves(self.path / CURVES) if CURVES in self.manifest.files else []


_kinds[Artifact.type_name()] = Artifact


def write_curves(path: Path, rows: list[tuple[str, int, float]]) -> None:
    """Write `(metric, step, value)` rows as parquet."""
    import pyarrow
    import pyarrow.parquet

    metric, step, value = zip(*rows, strict=True) if rows else ((), (), ())
    table = pyarrow.table(
        {
            "metric": pyarrow.array(metric, pyarrow.string()),
            "step": pyarrow.array(step, pyarrow.int64()),
            "value": pyarrow.array(value, pyarrow.float64()),
        }
    )
    pyarrow.parquet.write_table(table, path)


def read_curves(path: Path) -> list[tuple[str, int, float]]:
    """Read what `write_curves` wrote."""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).to_pydict()
    return list(zip(columns["metric"], columns["step"], columns["value"], strict=True))


def open_artifact(path: Any, kind: type[Artifact] | None = None) -> Artifact:
    """Open an artifact directory, or a `Payload`, as the class that its manifest names.

    Args:
        kind: the class, where the caller knows it.

    Raises:
        DamagedArtifactError: the manifest cannot be read.
        EarlierArtifactError: it, or the class that it names, is of another version.
    """
    carried = getattr(path, "manifest", None)  # by a payload
    return artifact_of(path, carried or Manifest.parse((path / MANIFEST).read_bytes()), kind)


def artifact_of(path: Any, manifest: Manifest, kind: type[Artifact] | None = None) -> Artifact:
    """The artifact of a directory and its manifest; arguments and errors as `open_artifact`."""
    if kind is None or kind.type_name() != manifest.type:
        kind = _kind(manifest.type)
    return kind(path, manifest)


def _kind(name: str) -> type[Artifact]:
    """The class of artifacts of that name: only such a one, of this project, is ever made."""
    module = name.partition(":")[0]
    if name not in _kinds and module.partition(".")[0] in KIND_PACKAGES:
        # Of another version, or nobody's: told below.
        with contextlib.suppress(ImportError, ValueError):
            importlib.import_module(module)
    if name not in _kinds:
        raise EarlierArtifactError(
            f"is of a kind that this version does not have ({name}); {REMEDY}"
        )
    return _kinds[name]
