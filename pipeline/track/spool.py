"""A durable queue of what a run tells MLflow, and how far it has been sent.

Two files in the run's directory: `mlflow.spool.jsonl`, one event a line, appended by the engine;
and `mlflow.state.json`, replaced by the sender after each batch. Whoever holds the lock beside
them is the sender; there is one at a time. A process that dies at any point leaves whole events
(a torn last line is not an event) and a state that is at most one batch old.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.track.database import is_lost
from pipeline.track.uri import sqlite_path

MOST_STEPS = 10_000_000  # of one curve
SPOOL, STATE, LOCK = "mlflow.spool.jsonl", "mlflow.state.json", "mlflow.lock"


class Spool:
    """The writing end. Safe to call from several threads; one event costs some 20 microseconds."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / SPOOL
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        # A tracking URI may hold a password: the file is for its owner alone.
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        self._lock = threading.Lock()
        if torn:
            os.write(self._file, b"\n")

    def append(self, event: str, **fields: Any) -> None:
        fields = {"event": event, "time_ms": int(time.time() * 1000), **fields}
        line = json.dumps(fields, separators=(",", ":"), default=str).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)


def read_events(
    run_dir: Path, offset: int, max_bytes: int = 1 << 18
) -> tuple[list[dict[str, Any]], int]:
    """Whole events from `offset` on, about `max_bytes` of them, and the offset behind them."""
    events: list[dict[str, Any]] = []
    try:
        stream = (run_dir / SPOOL).open("rb")
    except FileNotFoundError:
        return events, offset
    with stream:
        stream.seek(offset)
        end = offset + max_bytes
        for line in stream:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            try:
                events.append(json.loads(line))
            except (ValueError, RecursionError):
                continue  # torn by a kill; the line was never acted upon
            if offset >= end:
                break
    return events, offset


def last_begin(run_dir: Path) -> dict[str, Any] | None:
    """The latest `begin` event: where this run is to be sent, and as what."""
    begin = None
    try:
        with (run_dir / SPOOL).open("rb") as stream:
            for line in stream:
                if line.startswith(b'{"event":"begin"') and line.endswith(b"\n"):
                    with contextlib.suppress(ValueError, RecursionError):  # damaged on disk
                        begin = json.loads(line)
    except FileNotFoundError:
        return None
    return begin


class Steps:
    """The steps of one curve that were sent: a set, stored as [first, last, stride] ranges.

    Raises ValueError for more of them than any run sends: a stored state is no more than text.
    """

    def __init__(self, ranges: Iterable[list[int]] = ()) -> None:
        self.ranges = [list(r) for r in ranges]
        every = [range(first, last + 1, stride) for first, last, stride in self.ranges]
        if sum((steps.stop - steps.start) // steps.step for steps in every) > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS} steps")
        self._steps = {step for steps in every for step in steps}

    def __contains__(self, step: int) -> bool:
        return step in self._steps

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int) -> None:
        if step in self._steps:
            return
        self._steps.add(step)
        if self.ranges:
            first, last, stride = self.ranges[-1]
            if first == last and step > last:
                self.ranges[-1] = [first, step, step - first]
                return
            if step == last + stride:
                self.ranges[-1][1] = step
                return
        self.ranges.append([step, step, 1])


class State:
    """How far a run has been sent to `uri`, and the names under which MLflow knows it."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._path = run_dir / STATE
        self.uri = uri
        self.offset = 0
        self.ended = False
        self.database: int | None = None  # which database it was, if it is a file
        self.experiment_id: str | None = None
        self.runs: dict[str, str] = {}  # "" is the parent, a node's name its child
        self.creating: list[str] = []  # asked for, answer not yet seen
        self.open: list[str] = []  # runs that MLflow shows as running
        self.views: list[str] = []  # saved views that the experiment has
        self.child_tags: dict[str, dict[str, str]] = {}
        self._steps: dict[str, dict[str, Steps]] = {}

    @classmethod
    def load(cls, run_dir: Path, uri: str) -> State:
        """The stored state, or a fresh one where there is none or it speaks of another URI."""
        state = cls(run_dir, uri)
        stored = _read_json(state._path)
        if not isinstance(stored, dict) or stored.get("uri") != uri:
            return state
        try:
            steps = {
                run: {metric: Steps(ranges) for metric, ranges in curves.items()}
                for run, curves in stored.pop("steps").items()
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            return state  # damaged: what is sent again changes nothing
        vars(state).update({key: stored[key] for key in vars(state).keys() & stored.keys()})
        state._steps = steps
        return state

    def steps(self, run: str, metric: str) -> Steps:
        return self._steps.setdefault(run, {}).setdefault(metric, Steps())

    def metrics(self, run: str) -> set[str]:
        """Metrics of which at least one point was sent."""
        return {metric for metric, steps in self._steps.get(run, {}).items() if len(steps)}

    def save(self) -> None:
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        fields["steps"] = {
            run: {metric: steps.ranges for metric, steps in curves.items()}
            for run, curves in self._steps.items()
        }
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.touch(mode=0o600)  # the URI may hold a password, as in the spool
        temporary.write_text(json.dumps(fields, separators=(",", ":")), encoding="utf-8")
        temporary.replace(self._path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def is_pending(run_dir: Path) -> bool:
    """Whether MLflow lacks some of a run: not sent yet, or lost with a database that is gone."""
    try:
        size = (run_dir / SPOOL).stat().st_size
    except FileNotFoundError:
        return False
    stored = _read_json(run_dir / STATE)
    if not size or not isinstance(stored, dict):
        return size > 0
    try:
        if stored["offset"] < size or not stored["ended"]:
            return True
        path = sqlite_path(stored["uri"])
        return path is not None and is_lost(path, stored.get("database"))
    except (KeyError, TypeError, AttributeError):
        return True  # damaged: sent again, which changes nothing
