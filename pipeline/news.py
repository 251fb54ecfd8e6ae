"""News of a run: what is known of its nodes, and where what they say goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline import progress
from pipeline.artifact import Manifest
from pipeline.graph import Node
from pipeline.locations import append_only
from pipeline.record import log_path


@dataclass
class Progress:
    """What the scheduler knows of one node."""

    node: Node
    key: str
    state: str = progress.QUEUED
    manifest: Manifest | None = None
    error: str = ""
    not_before: float = 0.0
    deadline: float | None = None
    damaged: list[str] = field(default_factory=list)  # keys of inputs that it found damaged


@dataclass
class Listener:
    """Where news of a run goes: the terminal, the log files, the run record, MLflow."""

    view: progress.View
    folder: Path
    tracker: Any = None
    on_change: Any = None

    def log(self, node: str, text: str) -> None:
        # Not kept open: there may be more nodes than a process may have files.
        with open_log(self.folder, node) as stream:
            stream.write(text)


def open_log(folder: Path, node: str) -> IO[str]:
    """The log of one node of the run whose folder this is, to add to."""
    path = log_path(folder, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8", opener=append_only)


def tell(listener: Any, item: Progress, kind: str, rest: Sequence[Any]) -> None:
    """Pass on what a worker said of a node: "log", or while it has not ended "started",
    "progress", "notice" or "points"; rest: what the kind has more."""
    node, tracker = item.node.name, listener.tracker
    if kind == "log":
        listener.log(node, rest[0])
    elif item.state in progress.ENDED:
        return
    elif kind == "started" and tracker is not None:
        tracker.node_started(node, dict(item.node.tags))
    elif kind == "progress":
        done, total, unit, note = rest
        listener.view.update(node, done=done, total=total, unit=unit, note=note)
    elif kind == "notice":
        message, tags = rest
        listener.view.message(f"{node}: {message}")
        if tracker is not None and tags:
            tracker.node_started(node, dict(item.node.tags) | tags)
    elif kind == "points" and tracker is not None:
        tracker.points(node, rest[0], rest[1])


def headline(manifest: Manifest | None) -> str:
    """A few of a node's metrics in one short line."""
    metrics: Mapping[str, float] = manifest.metrics if manifest else {}
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:4])
