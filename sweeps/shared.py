"""The nodes that several trials need: run once, before the trials, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline import progress
from pipeline.capacity import Amount
from pipeline.news import open_log
from pipeline.plan import CACHED, DAMAGED, NodePlan, Plan
from pipeline.record import node_entry
from pipeline.run import Claims, Execution, run_together
from pipeline.session import say
from pipeline.store import Store
from sweeps.check import Checked
from sweeps.record import SweepRecord


class SharedNodes:
    """What trials share.

    Args:
        packages: distributions whose versions go into manifests.
        show: makes the view of nodes, by their names, from what each needs.
    """

    def __init__(
        self,
        store: Store,
        checked: Checked,
        entry: SweepRecord,
        packages: Sequence[str],
        show: Callable[[Mapping[str, Amount]], Any],
    ) -> None:
        self._store, self._checked, self._entry = store, checked, entry
        self._packages, self._show = packages, show

    def run(self) -> dict[str, str]:
        """Run what is not cached, each node once; returns why some failed, by key.

        Raises:
            RayLostError: Ray's processes died.
        """
        plans = self._plans()
        if not plans:
            return {}
        names = {p.key: self._label(n, p.key) for plan in plans for n, p in plan.nodes.items()}
        todo = {p.key for plan in plans for p in plan.nodes.values() if p.state != CACHED}
        say(f"{len(todo)} nodes that several trials need come first")
        nodes = {names[p.key]: p.node for plan in plans for p in plan.nodes.values()}
        needs = {name: nodes[name].need for key, name in names.items() if key in todo}
        view = self._show(needs)
        claims = Claims()
        executions = [
            Execution(
                plan,
                self._store,
                Listener(view, self._entry, {n: names[p.key] for n, p in plan.nodes.items()}),
                self._packages,
                claims,
                self._entry.data["git"],
            )
            for plan in plans
        ]
        run_together(executions)
        view.close()
        return self._ended(executions)

    def _plans(self) -> list[Plan]:
        """For each trial whose shared nodes no earlier one has, a plan of these."""
        plans: list[Plan] = []
        covered: set[str] = set()
        for trial in self._checked.looked_at:
            for target in trial:
                plan = target.plan(self._store)
                nodes = {n: p for n, p in plan.nodes.items() if p.key in self._checked.shared}
                for name, node in nodes.items():
                    self._note(name, node)
                todo = {p.key for p in nodes.values() if p.state != CACHED}
                if todo - covered:
                    covered |= todo
                    plans.append(replace(plan, nodes=nodes))
        for node in {p.key: p for plan in plans for p in plan.nodes.values()}.values():
            if node.state == DAMAGED:
                self._store.set_aside_damaged(node.node.stage.name, node.key)
        return plans

    def _note(self, name: str, node: NodePlan) -> None:
        self._entry.data["nodes"].setdefault(
            self._label(name, node.key),
            node_entry(
                node.node,
                node.key,
                progress.REUSED if node.state == CACHED else progress.QUEUED,
                node.seconds if node.manifest else None,
            ),
        )

    def _label(self, name: str, key: str) -> str:
        """The name in the record: a number behind it where several trials' nodes share a name."""
        nodes, label, number = self._entry.data["nodes"], name, 1
        while label in nodes and nodes[label]["key"] != key:
            number += 1
            label = f"{name}-{number}"
        return label

    def _ended(self, executions: Sequence[Execution]) -> dict[str, str]:
        failed = {}
        for execution in executions:
            for name, item in execution.nodes.items():
                self._entry.data["nodes"][self._label(name, item.key)] |= {
                    "state": item.state,
                    "seconds": item.manifest.seconds if item.manifest else None,
                    "error": item.error,
                }
                if item.state in (progress.FAILED, progress.BLOCKED):
                    failed[item.key] = f"{name}: {item.error}"
        return failed


class Listener:
    """What an execution of shared nodes says: to the terminal and the log files.

    Args:
        names: what the record calls its nodes.
    """

    def __init__(self, view: Any, entry: SweepRecord, names: Mapping[str, str]) -> None:
        self._view, self._entry, self._names = view, entry, names
        self.view, self.tracker, self.on_change = self, None, None

    def update(self, name: str, **changes: Any) -> None:
        shown = self._view.nodes.get(self._names[name])
        if shown is not None and shown.state not in progress.ENDED:
            self._view.update(self._names[name], **changes)

    def tick(self) -> None:
        self._view.tick()

    def message(self, text: str) -> None:
        self._view.message(text)

    def log(self, node: str, text: str) -> None:
        with open_log(self._entry.folder, self._names[node]) as stream:
            stream.write(text)
