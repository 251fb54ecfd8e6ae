"""The record of a sweep: its trials, how each ended, and what resuming it needs.

It is a run's record like others (`pipeline runs`, `show` and `gc` know it), with one entry more.
Nodes that several trials share stand under their own names, others below their trial's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import provenance
from pipeline.errors import UsageError
from pipeline.holding import hold
from pipeline.record import ORPHAN_SECONDS, RUNNING, command_line, node_entry
from pipeline.store import Store
from sweeps.space import canonical
from sweeps.target import Sweep, Target
from sweeps.work import FINISHED

QUEUED, LAGGED = "queued", "stopped"
ENDED = (FINISHED, LAGGED)  # a failed trial is tried again
RECIPE = "sweep-"


@dataclass
class TrialRecord:
    """One trial.

    Args:
        measured: for each metric a value for each seed.
        errors: for each metric and seed the standard error that its node reports, if any.
        artifacts: for each metric and seed stage and key of the artifact that reports it.
        reports: points of the watched curve, `(step, value)`.
        seconds: work of its own nodes, whenever it was done.
    """

    name: str
    values: dict[str, Any]
    state: str = QUEUED
    measured: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, list[float | None]] = field(default_factory=dict)
    artifacts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    reports: list[tuple[int, float]] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def forget(self) -> None:
        """Begin again."""
        self.state, self.error, self.seconds = QUEUED, "", 0.0
        self.measured, self.errors, self.artifacts, self.reports = {}, {}, {}, []


class SweepRecord:
    """A sweep's record, written to the store as trials end."""

    def __init__(self, store: Store, data: dict[str, Any]) -> None:
        self._store, self.data = store, data
        self.folder = store.run_path(data["id"])
        self.trials = [TrialRecord(**trial) for trial in data["sweep"]["trials"]]
        self._saved = 0.0
        (self.folder / "settings.yaml").write_text(
            yaml.safe_dump(data["settings"]), encoding="utf-8"
        )
        self.save()

    @property
    def id(self) -> str:
        return self.data["id"]

    def trial(self, values: Mapping[str, Any]) -> TrialRecord:
        """The trial with these values; a new one if there is none."""
        wanted = canonical(values)
        for trial in self.trials:
            if canonical(trial.values) == wanted:
                return trial
        self.trials.append(TrialRecord(trial_name(len(self.trials)), dict(values)))
        return self.trials[-1]

    def nodes(
        self, trial: TrialRecord, found: Sequence[Mapping[str, Mapping]], shared: frozenset[str]
    ) -> None:
        """Note a trial's nodes, `found` for each of its seeds."""
        for number, nodes in enumerate(found):
            names = {
                name: node_name(trial.name, number if len(found) > 1 else None, name)
                for name, node in nodes.items()
                if node["key"] not in shared
            }
            for name, node in nodes.items():
                if name in names:
                    upstream = [names.get(parent, parent) for parent in node["upstream"]]
                    self.data["nodes"][names[name]] = dict(node) | {"upstream": upstream}

    def expect(self, trial: TrialRecord, found: Sequence[Target], shared: frozenset[str]) -> None:
        """Note the nodes that a trial is going to run, so that `gc` keeps what they leave."""
        nodes = [
            {node.name: node_entry(node, target.graph.keys[node.name]) for node in target.graph}
            for target in found
        ]
        self.nodes(trial, nodes, shared)

    def end(self, state: str) -> None:
        self.data |= {"state": state, "ended": provenance.now()}
        self.save()

    def save(self, at_most_every: float = 0.0) -> None:
        """Write it; within `at_most_every` seconds of the last time, leave that for later."""
        if time.monotonic() - self._saved < at_most_every:
            return
        self.data["sweep"]["trials"] = [asdict(trial) for trial in self.trials]
        self._store.write_run(self.id, self.data)
        self._saved = time.monotonic()


def outdated(data: Mapping[str, Any], trial: TrialRecord, found: Sequence[Target]) -> bool:
    """Whether code or data changed since a trial ended: its results have other keys now."""
    for number, target in enumerate(found):
        for node in target.measured.values():
            name = node_name(trial.name, number if len(found) > 1 else None, node.name)
            known = data["nodes"].get(name)
            if known is not None and known["key"] != target.graph.keys[node.name]:
                return True
    return False


def trial_name(index: int) -> str:
    return f"trial-{index + 1:02d}"


def node_name(trial: str, seed: int | None, node: str) -> str:
    """What a sweep's record calls a node of a trial."""
    return f"{trial}/{node}" if seed is None else f"{trial}/seed{seed}/{node}"


def new(
    sweep: Sweep, preset: str, settings: Mapping[str, Any], values: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The data of a sweep that begins."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    trials = [TrialRecord(trial_name(i), dict(chosen)) for i, chosen in enumerate(values)]
    return {
        "id": f"{stamp}-{RECIPE}{sweep.name}-{secrets.token_hex(2)}",
        "recipe": f"{RECIPE}{sweep.name}",
        "preset": preset,
        "overrides": list(sweep.overrides),
        "command": command_line(),
        "created": provenance.now(),
        "state": RUNNING,
        "settings": dict(settings),
        "git": provenance.git_state(Path(__file__).parent),
        "nodes": {},
        "sweep": {
            "digest": sweep.digest,
            "space": sweep.space.model_dump(mode="json"),
            "trials": [asdict(trial) for trial in trials],
        },
    }


def same(store: Store, sweep: Sweep) -> list[dict[str, Any]]:
    """Records of this very sweep, the newest first."""
    return [r for r in store.runs() if r.get("sweep", {}).get("digest") == sweep.digest]


def resumable(store: Store, sweep: Sweep) -> dict[str, Any]:
    """The record that `--resume` goes on with: the newest of this sweep.

    Raises:
        UsageError: there is none.
    """
    earlier = same(store, sweep)
    if earlier:
        return earlier[0]
    others = [r["id"] for r in store.runs() if r["recipe"] == f"{RECIPE}{sweep.name}"]
    if others:
        raise UsageError(
            f"no sweep '{sweep.name}' with this space, preset and settings to resume; repeat those "
            f"of {others[0]} (python -m pipeline show {others[0]} gives its command), or leave "
            "--resume out: what is cached is not run again"
        )
    raise UsageError(f"no sweep '{sweep.name}' to resume in this store; leave --resume out")


def opened(store: Store, data: Mapping[str, Any], stack: contextlib.ExitStack) -> SweepRecord:
    """The record, locked until `stack` closes, continued if it had begun before.

    Raises:
        UsageError: another command is running it.
    """
    if not stack.enter_context(hold(store, data["id"], ORPHAN_SECONDS)):
        raise UsageError(f"sweep {data['id']} is going on in another command; wait for it")
    known = store.read_run(data["id"])
    if known is None:
        return SweepRecord(store, dict(data))
    return SweepRecord(store, known | {"state": RUNNING, "continued": provenance.now()})
