"""Runs a stage's function in this process, without engine, store or Ray."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact, Manifest, describe_files
from pipeline.stage import Result, Settings, Stage, resolve


@dataclass
class Work:
    path: Path
    pushes: int = 0

    def push(self) -> None:
        self.pushes += 1

    def pull(self) -> None:
        pass

    def clear(self) -> None:
        shutil.rmtree(self.path)

    def tell(self, name: str, text: str) -> None:
        (self.path / f".{name}").write_text(text)

    def told(self, name: str) -> str | None:
        file = self.path / f".{name}"
        return file.read_text() if file.exists() else None

    def forget(self, name: str) -> None:
        (self.path / f".{name}").unlink(missing_ok=True)

    def shared(self, name: str) -> tuple[str, Any]:
        return str(self.path / f".{name}"), None


@dataclass
class Context:
    """A `pipeline.stage.Context` that records what it is told."""

    settings: Settings
    inputs: Mapping[str, Any]
    path: Path
    work: Work
    node: str = "node"
    threads: int = 1
    memory_gib: float = 0.0
    logged: list[str] = field(default_factory=list)
    sent: list[tuple[str, int, float]] = field(default_factory=list)
    noticed: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)

    def log(self, message: str) -> None:
        self.logged.append(message)

    def progress(self, done: float, total: float, unit: str = "", note: str = "") -> None:
        assert 0 <= done <= total

    def points(self, abscissa: str, rows: Any) -> None:
        self.sent += rows

    def notice(self, message: str, **tags: str) -> None:
        self.logged.append(message)
        self.noticed.append((message, tags))

    def recall(self, what: Mapping[str, Any]) -> Any:
        return self.memory.get(json.dumps(what, sort_keys=True))

    def remember(self, what: Mapping[str, Any], value: Any) -> None:
        self.memory[json.dumps(what, sort_keys=True)] = json.loads(json.dumps(value))

    def map(self, function: Callable[..., Any], items: Any, *common: Any) -> list[Any]:
        arrived = [value.path if isinstance(value, Work) else value for value in common]
        return [function(item, *arrived) for item in items]


def context(folder: Path, settings: Settings, **inputs: Any) -> Context:
    """A context whose payload goes to `folder`/payload and whose state is in `folder`/work."""
    for name in ("payload", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Context(settings, inputs, folder / "payload", Work(folder / "work"))


def sealed(at: Context, stage: Stage, result: Result) -> Artifact:
    """The artifact of what a run function wrote, with a manifest as the engine writes it."""
    manifest = Manifest(
        key="0" * 32,
        stage=stage.name,
        type=stage.output.type_name(),
        version=stage.version,
        settings=at.settings.model_dump(mode="json"),
        inputs={},
        sources={},
        threads=1,
        files=describe_files(at.path),
        metrics=dict(result.metrics),
        timings=dict(result.timings),
        abscissa=result.abscissa,
    )
    (at.path / "manifest.json").write_text(manifest.dump())
    return stage.output(at.path, manifest)


def make(folder: Path, stage: Stage, settings: Settings, **inputs: Any) -> Artifact:
    """Run a stage and return its artifact."""
    at = context(folder, settings, **inputs)
    return sealed(at, stage, resolve(stage.run)(at))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
