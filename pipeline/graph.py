"""Nodes, edges and the checks that are made before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.capacity import Amount
from pipeline.errors import UsageError, nearest
from pipeline.fingerprint import fingerprint
from pipeline.stage import Input, Resources, Settings, Stage, resolve


@dataclass(frozen=True)
class Node:
    """A stage with its settings in a graph.

    Args:
        name: `stage/variant`, unique in the graph.
        inputs: for each slot of the stage the name of a node, or several for a `many` slot.
        tags: what MLflow and the report say of it (`method`, ...); not part of the key.
        hint_seconds: how long it may take, for a first estimate; not part of the key.
        hint_setting: the setting, by dotted key, that says so.
    """

    name: str
    stage: Stage
    settings: Settings
    inputs: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    tags: Mapping[str, str] = field(default_factory=dict)
    hint_seconds: float | None = None
    hint_setting: str = ""

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of the nodes it reads, in the order of its slots."""
        return tuple(name for slot in self.inputs for name in self.slot(slot))

    @property
    def cpus(self) -> float:
        """CPUs it takes at once: a task that waits for its workers lends them its own."""
        workers = self.stage.workers(self.settings)
        return max(self.resources.cpus, workers.cpus if workers else 0.0)

    @property
    def gpus(self) -> float:
        """GPUs it takes at once, those of its workers included."""
        workers = self.stage.workers(self.settings)
        return self.resources.gpus + (workers.gpus if workers else 0.0)

    @property
    def memory_gib(self) -> float:
        """Memory it reserves at once: each of its workers as much as it would alone."""
        workers = self.stage.workers(self.settings)
        return self.resources.memory_gib * (workers.count if workers else 1)

    @cached_property
    def need(self) -> Amount:
        """All that it takes at once; of a fan-out, one shard."""
        return Amount(self.cpus, self.gpus, self.memory_gib)

    def slot(self, slot: str) -> tuple[str, ...]:
        """Names of the nodes that fill one slot."""
        value = self.inputs.get(slot, ())
        return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True)
class Identity:
    """The parts whose hash is a node's key; compared to say why a node must run."""

    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    sources: Mapping[str, str]
    threads: int
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        parts = dict(self.__dict__)
        if len(self.files) == 1:
            parts["files"] = list(self.files.values())  # its name decides nothing
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fingerprints(paths: Iterable[Path]) -> dict[str, str]:
    """The digest of each by its name, and a number behind that where another has it too."""
    found: dict[str, str] = {}
    for path in paths:
        same = sum(name.partition("/")[0] == path.name for name in found)
        found[f"{path.name}/{same + 1}" if same else path.name] = fingerprint(path)
    return found


class Graph:
    """A checked graph: unique names, known inputs of the right types, no cycles.

    Args:
        absent: for nodes whose files are not there, what to say.
        lenient: give such nodes an identity all the same, which nothing else has; else asking for
            identities is refused with what there is to say.

    Raises:
        UsageError: the graph is wrong; names the node and what to change.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        exclude_sources: frozenset[str] = frozenset(),
        absent: Mapping[str, str] | None = None,
        lenient: bool = False,
    ) -> None:
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            if node.name in self.nodes:
                raise UsageError(f"two nodes are named '{node.name}'; give each its own name")
            self.nodes[node.name] = node
        self._exclude = exclude_sources
        self.absent, self._lenient = absent or {}, lenient
        for node in self.nodes.values():
            self._check_inputs(node)
        self.order = self._topological_order()

    def __iter__(self) -> Iterator[Node]:
        """Nodes, each after all that it reads."""
        return (self.nodes[name] for name in self.order)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Node:
        try:
            return self.nodes[name]
        except KeyError:
            known = nearest(name, self.nodes) or f" (known: {', '.join(self.nodes)})"
            raise UsageError(f"unknown node '{name}'{known}") from None

    def place(self, name: str) -> tuple[str, str]:
        """Stage and key of a node, by which a store has its artifact."""
        return self[name].stage.name, self.keys[name]

    def _check_inputs(self, node: Node) -> None:
        for slot in node.inputs:
            if slot not in node.stage.inputs:
                raise UsageError(f"{node.name}: stage {node.stage.name} has no input '{slot}'")
        for slot, declared in node.stage.inputs.items():
            self._check_slot(node, slot, declared)
        for slot in node.stage.needs(node.settings):
            if not node.slot(slot):
                takes = node.stage.inputs[slot].type.__name__
                raise UsageError(
                    f"{node.name}: its settings need the input '{slot}', which is not connected; "
                    f"connect a node that gives {takes}, or change the settings"
                )

    def _check_slot(self, node: Node, slot: str, declared: Input) -> None:
        names = node.slot(slot)
        if not names and not declared.optional and not declared.many:
            raise UsageError(f"{node.name}: input '{slot}' is not connected")
        if len(names) > 1 and not declared.many:
            raise UsageError(f"{node.name}: input '{slot}' takes one node, {len(names)} are given")
        for name in names:
            if name not in self.nodes:
                hint = nearest(name, self.nodes)
                raise UsageError(f"{node.name}: input '{slot}' names unknown node '{name}'{hint}")
            output = self.nodes[name].stage.output
            if not issubclass(output, declared.type):
                raise UsageError(
                    f"{node.name}: input '{slot}' takes {declared.type.__name__}, "
                    f"but {name} gives {output.__name__}"
                )

    def _topological_order(self) -> list[str]:
        order: dict[str, None] = {}
        for name in self.nodes:
            self._visit(name, order)
        return list(order)

    def _visit(self, first: str, order: dict[str, None]) -> None:
        """Add a node to the order, after all that it reads; chains may be long."""
        trail = {first: iter(self.nodes[first].upstream)} if first not in order else {}
        while trail:
            name, parents = next(reversed(trail.items()))
            parent = next(parents, None)
            if parent is None:
                order[name] = None
                del trail[name]
            elif parent in trail:
                names = list(trail)
                cycle = " -> ".join((*names[names.index(parent) :], parent))
                raise UsageError(f"the graph has a cycle: {cycle}")
            elif parent not in order:
                trail[parent] = iter(self.nodes[parent].upstream)

    @cached_property
    def estimates(self) -> dict[str, Mapping[str, Any]]:
        """What is known of every node before it runs, see `Stage.estimate`; may be nothing."""
        known: dict[str, Mapping[str, Any]] = {}
        for node in self:
            known[node.name] = {}
            if node.stage.estimate:
                filled = {slot: names for slot in node.inputs if (names := node.slot(slot))}
                given = {
                    slot: {**known[names[0]], "nodes": len(names)} for slot, names in filled.items()
                }
                known[node.name] = resolve(node.stage.estimate)(node.settings, given)
        return known

    @cached_property
    def identities(self) -> dict[str, Identity]:
        """The identity of every node; keys follow from it."""
        by_name: dict[str, Identity] = {}
        for node in self:
            by_name[node.name] = self._identity(node, by_name)
        return by_name

    @cached_property
    def keys(self) -> dict[str, str]:
        """The artifact key of every node."""
        return {name: identity.key for name, identity in self.identities.items()}

    def _identity(self, node: Node, known: Mapping[str, Identity]) -> Identity:
        inputs: dict[str, Any] = {}
        for slot, declared in node.stage.inputs.items():
            names = node.slot(slot)
            if declared.many:
                inputs[slot] = {name: known[name].key for name in names}
            elif names:
                inputs[slot] = known[names[0]].key
        dotted = [node.stage.run, *node.stage.sources(node.settings)]
        return Identity(
            stage=node.stage.name,
            version=node.stage.version,
            settings=node.settings.keyed(),
            inputs=inputs,
            sources=sources.closure((d.partition(":")[0] for d in dotted), self._exclude),
            threads=node.resources.threads,
            files=self._files(node),
        )

    def _files(self, node: Node) -> dict[str, str]:
        if node.name not in self.absent:
            return _fingerprints(node.stage.files(node.settings))
        if not self._lenient:
            raise UsageError(self.absent[node.name])
        return {"": "absent"}

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """`names` and everything they read, directly or not."""
        return self._reach(names, {node.name: node.upstream for node in self})

    def descendants(self, names: Iterable[str]) -> set[str]:
        """`names` and everything that reads them, directly or not."""
        readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self:
            for parent in node.upstream:
                readers[parent].append(node.name)
        return self._reach(names, readers)

    def _reach(self, names: Iterable[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
        waiting, reached = [self[name].name for name in names], set()
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += edges[name]
        return reached

    def matching(self, pattern: str) -> list[str]:
        """Nodes of that name, or all nodes of that stage.

        Raises:
            UsageError: there is neither.
        """
        if pattern in self.nodes:
            return [pattern]
        names = [node.name for node in self if node.stage.name == pattern]
        return names or [self[pattern].name]

    def select(
        self, only: Sequence[str] = (), start: Sequence[str] = (), end: Sequence[str] = ()
    ) -> set[str]:
        """The nodes that `--only`, `--from` and `--to` ask for, with what they need.

        `only` and `end` bring what they read; `start` asks for its nodes, everything that reads
        these, and what those need.
        """
        wanted = set(self.nodes)
        if only or end:
            names = [n for pattern in (*only, *end) for n in self.matching(pattern)]
            wanted = self.ancestors(names)
        if start:
            names = [n for pattern in start for n in self.matching(pattern)]
            wanted &= self.ancestors(self.descendants(names) & wanted)
        return wanted

    def mermaid(self, states: Mapping[str, str] | None = None) -> str:
        """The graph as a Mermaid flow chart."""
        ids = {name: f"n{i}" for i, name in enumerate(self.order)}
        lines = ["flowchart LR"]
        for name, ident in ids.items():
            state = f"<br/>{states[name]}" if states and name in states else ""
            lines.append(f'  {ident}["{name}{state}"]')
        for node in self:
            lines += [f"  {ids[parent]} --> {ids[node.name]}" for parent in node.upstream]
        return "\n".join(lines)
