"""The record of a run: which recipe, settings and nodes, and how each node ended."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import progress, provenance
from pipeline.durations import Foreseen
from pipeline.graph import Node
from pipeline.holding import hold
from pipeline.journal import Journal
from pipeline.locations import write_own
from pipeline.plan import Plan
from pipeline.store import RUNNING, Store
from pipeline.track.redaction import PUT_BACK, redact

FINISHED, FAILED, STOPPED = "finished", "failed", "interrupted"


def command_line() -> str:
    """The command as the user typed it, without passwords: it is kept and shown to others."""
    return shlex.join(["python", "-m", "pipeline", *map(redact, sys.argv[1:])])


def resume_command(*more: str) -> str:
    """The command again, with arguments that it lacks, as a person is told to type it."""
    lacking = [argument for argument in more if argument not in sys.argv]
    hidden = any(redact(argument) != argument for argument in sys.argv)
    return " ".join([command_line(), *lacking]) + (f"\n  ({PUT_BACK})" if hidden else "")


def same_nodes(data: dict[str, Any], plan: Plan) -> bool:
    """Whether a record is of the same recipe with the same keys as a plan."""
    keys = {name: node.key for name, node in plan.nodes.items()}
    return data["recipe"] == plan.recipe and keys == {
        name: node["key"] for name, node in data["nodes"].items()
    }


def finished_run(store: Store, plan: Plan) -> dict[str, Any] | None:
    """The newest run that already holds every result of a plan."""
    for data in store.runs():
        if data["state"] == FINISHED and same_nodes(data, plan):
            return data
    return None


# A killed command's child holds the lock until it has seen that it is alone.
ORPHAN_SECONDS = 2.0
LONGEST = 16  # points of a measured curve that a record holds


class Record:
    """A run's record in the store: written whole at both ends, added to in between."""

    def __init__(self, store: Store, data: dict[str, Any]) -> None:
        self._store, self.data = store, data
        self._journal = Journal(store, data["id"])
        self.folder = store.run_path(data["id"])
        write_own(self.folder / "settings.yaml", yaml.safe_dump(data["settings"]))
        self._save()

    @property
    def id(self) -> str:
        return self.data["id"]

    @classmethod
    def open(
        cls, store: Store, plan: Plan, overrides: list[str], stack: contextlib.ExitStack
    ) -> Record:
        """Continue the unfinished run with the same nodes, or begin a new one.

        The run stays locked until `stack` closes, so that two commands never share a record.
        """
        for data in store.runs():
            if data["state"] == FINISHED or not same_nodes(data, plan):
                continue
            if stack.enter_context(hold(store, data["id"], ORPHAN_SECONDS)):
                return cls(store, data | {"state": RUNNING, "continued": provenance.now()})
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = f"{stamp}-{plan.recipe}-{secrets.token_hex(2)}"
        stack.enter_context(hold(store, run_id))
        return cls(store, _new(run_id, plan, overrides))

    def node(
        self, name: str, state: str, seconds: float | None, error: str, timings: Mapping[str, Any]
    ) -> None:
        """Note how a node ended, and what it measured of its own speed."""
        noted = {"state": state, "seconds": seconds, "error": error, "timings": brief(timings)}
        self.data["nodes"][name] |= noted
        self._journal.add(name, noted)

    def end(self, state: str) -> None:
        """Note how the run ended."""
        self.data |= {"state": state, "ended": provenance.now()}
        self._journal.close()
        self._save()

    def _save(self) -> None:
        self._store.write_run(self.id, self.data)


def node_entry(
    node: Node,
    key: str,
    state: str = progress.QUEUED,
    seconds: float | None = None,
    error: str = "",
) -> dict[str, Any]:
    """What a run's record says of a node."""
    return {
        "stage": node.stage.name,
        "key": key,
        "upstream": list(node.upstream),
        "tags": dict(node.tags),
        "state": state,
        "seconds": seconds,
        "error": error,
    }


def log_path(folder: Path, node: str) -> Path:
    """The log of one node of the run whose folder this is."""
    return folder / "logs" / f"{node.replace('/', '.')}.log"


def brief(timings: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    """Measured curves as `[[step, value], ...]`; of a long one only the median, without step."""
    curves = {}
    for name, rows in timings.items():
        if isinstance(rows, list) and rows:
            long = len(rows) > LONGEST
            median = statistics.median(value for _, value in rows)
            curves[name] = [[None, median]] if long else [list(row) for row in rows]
    return curves


def in_words(rows: Sequence[Sequence[float | None]]) -> str:
    """One curve of `brief` as text."""
    return ", ".join(
        f"median {value:.3g}" if step is None else f"{step:g}: {value:.3g}" for step, value in rows
    )


def _new(run_id: str, plan: Plan, overrides: list[str]) -> dict[str, Any]:
    nodes = {
        name: node_entry(item.node, item.key)
        | {"foreseen": Foreseen.of(plan.graph, item.node).data()}
        for name, item in plan.nodes.items()
    }
    return {
        "id": run_id,
        "recipe": plan.recipe,
        "preset": plan.resolved.preset,
        "overrides": overrides,
        "command": command_line(),
        "created": provenance.now(),
        "state": RUNNING,
        "settings": plan.resolved.settings.model_dump(mode="json"),
        "git": provenance.git_state(Path(__file__).parent),
        "nodes": nodes,
    }
