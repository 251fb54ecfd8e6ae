"""What a run would do: for every node whether it is cached, and why not where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from pipeline.artifact import Manifest
from pipeline.capacity import Amount, spread
from pipeline.config import Resolved, flatten
from pipeline.durations import Durations, Foreseen, Known
from pipeline.errors import DamagedArtifactError, EarlierArtifactError, UsageError, nearest
from pipeline.fingerprint import difference
from pipeline.gpus import local_gpus as local_gpus
from pipeline.graph import Graph, Identity, Node
from pipeline.provenance import installed
from pipeline.stage import Catalog
from pipeline.store import Store

CACHED, PARTIAL, TODO, DAMAGED = "cached", "partial", "to do", "damaged"

# Larger artifacts are checked when a node reads them, not each time a plan is made.
VERIFY_BYTES = 256 * 2**20

KINDS = {"cpus": "CPUs", "gpus": "GPUs", "memory_gib": "GiB of memory"}


@dataclass(frozen=True)
class NodePlan:
    """One node's state before a run.

    Args:
        reason: why it must run, or which artifact serves it.
        seconds: how long it took, or will take about, if that is known.
    """

    node: Node
    key: str
    state: str
    reason: str
    seconds: float | None
    manifest: Manifest | None


@dataclass(frozen=True)
class Plan:
    """The graph with the state of every wanted node."""

    recipe: str
    resolved: Resolved
    graph: Graph
    nodes: Mapping[str, NodePlan]
    warnings: Sequence[str]

    @property
    def todo(self) -> list[str]:
        """Names of the nodes to run, in an order that works."""
        return [name for name, plan in self.nodes.items() if plan.state != CACHED]

    def by_urgency(self) -> list[str]:
        """All nodes, those first from which the longest chain of work still hangs.

        Nodes whose time nobody knows count as one second.
        """
        left = self._chains()
        return sorted(self.nodes, key=lambda name: -left[name])

    def about_seconds(self, there: Amount) -> float:
        """About how long the work takes on these machines: as long as its longest chain at the
        least, and as all of it spread over them; nothing for what nobody knows."""
        items = [self.nodes[name] for name in self.todo]
        tasks = [(item.seconds or 0.0, item.node.need) for item in items]
        return max(spread(tasks, there), *self._chains().values(), 0.0)

    def _chains(self) -> dict[str, float]:
        """Seconds of the longest chain of work from each node on."""
        left: dict[str, float] = {}
        after: dict[str, float] = {}  # the longest chain behind a node
        for name in reversed(self.nodes):
            item = self.nodes[name]
            own = 0.0 if item.state == CACHED else 1.0 if item.seconds is None else item.seconds
            left[name] = own + after.get(name, 0.0)
            for parent in item.node.upstream:
                after[parent] = max(after.get(parent, 0.0), left[name])
        return left


@dataclass(frozen=True)
class Request:
    """Which recipe to run with which settings, and what part of it."""

    recipe: str
    preset: str | None = None
    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    start: Sequence[str] = ()
    end: Sequence[str] = ()
    force: Sequence[str] = ()


def build(catalog: Catalog, request: Request, lenient: bool = False) -> tuple[Resolved, Graph]:
    """The resolved settings and the checked graph of a request.

    Args:
        lenient: let nodes be whose data were not fetched yet; else their identities are refused.

    Raises:
        UsageError: see `pipeline.config.resolve` and `pipeline.graph.Graph`; settings from which
            the recipe makes a node that its stage refuses.
    """
    from pipeline import config, fetching

    if request.recipe not in catalog.recipes:
        hint = nearest(request.recipe, catalog.recipes)
        raise UsageError(
            f"unknown recipe '{request.recipe}'{hint} (known: {', '.join(sorted(catalog.recipes))})"
        )
    resolved = config.resolve(catalog, request.preset, request.overrides)
    try:
        nodes = catalog.recipes[request.recipe](resolved.settings)
    except ValidationError as error:
        raise config.of_node(catalog, request.recipe, error) from error
    absent = {n.name: said for n in nodes if (said := fetching.absent(catalog, n.settings))}
    return resolved, Graph(nodes, catalog.exclude_sources, absent, lenient)


def make(catalog: Catalog, store: Store, request: Request, lenient: bool = False) -> Plan:
    """Compare the graph of a request with what the store holds. Writes nothing.

    Args:
        lenient: see `build`; such a node is to do, and its reason says what is not there.
    """
    resolved, graph = build(catalog, request, lenient)
    wanted = graph.select(request.only, request.start, request.end)
    forced = {name for pattern in request.force for name in graph.matching(pattern)}
    durations = Durations(catalog, request.preset, request.recipe, resolved)
    previous = _Previous(store, request.recipe, durations)
    nodes = _states(graph, store, wanted, forced, previous)
    return Plan(request.recipe, resolved, graph, nodes, _version_warnings(catalog, nodes))


def of_graph(store: Store, recipe: str, resolved: Resolved, graph: Graph) -> Plan:
    """The plan of a graph that was built before, all of it; why a node must run is not said."""
    return Plan(recipe, resolved, graph, _states(graph, store, set(graph.nodes), set(), None), ())


def _states(
    graph: Graph, store: Store, wanted: set[str], forced: set[str], previous: _Previous | None
) -> dict[str, NodePlan]:
    nodes: dict[str, NodePlan] = {}
    verified = 0
    for node in graph:
        if node.name in wanted:
            node_plan = _state(node, graph, store, nodes, forced, previous, verified)
            verified += _verified(node_plan.manifest, verified)
            nodes[node.name] = node_plan
    return nodes


def _verified(manifest: Manifest | None, verified: int) -> int:
    """The bytes of an artifact that are checked, beside those that were: 0 where it is too much,
    and the node that reads it checks."""
    size = 0 if manifest is None else manifest.num_bytes
    return size if verified + size <= VERIFY_BYTES else 0


def _state(
    node: Node,
    graph: Graph,
    store: Store,
    nodes: Mapping[str, NodePlan],
    forced: set[str],
    previous: _Previous | None,
    verified: int,
) -> NodePlan:
    stage, key = node.stage.name, graph.keys[node.name]
    manifest, state, reason, seconds = None, TODO, "", None
    try:
        manifest = store.manifest(stage, key)
        if not store.remote and _verified(manifest, verified):
            store.open(stage, key)
    except DamagedArtifactError as error:
        manifest, state = None, DAMAGED
        earlier = isinstance(error, EarlierArtifactError)
        reason = str(error) if earlier else f"damaged: {error}"
    if manifest is not None:
        seconds = manifest.seconds
        state, reason = CACHED, f"made {manifest.finished[:16].replace('T', ' ')}"
        if node.name in forced:
            state, reason = TODO, "forced"
    elif state != DAMAGED:
        waiting = [name for name in node.upstream if nodes[name].state != CACHED]
        if previous is not None:
            reason = previous.what_changed(node.name, graph.identities[node.name], waiting)
        if store.has_work(stage, key):
            state, reason = PARTIAL, "interrupted; continues from its last checkpoint"
    reason = graph.absent.get(node.name, reason)
    if seconds is None:
        seconds = node.hint_seconds if previous is None else previous.seconds(node, graph)
    return NodePlan(node, key, state, reason, seconds, manifest)


class _Previous:
    """What earlier runs of a recipe say of a node: read only when somebody asks."""

    def __init__(self, store: Store, recipe: str, durations: Durations) -> None:
        self._store, self._recipe, self._durations = store, recipe, durations
        self._found: dict[str, tuple[Manifest, Foreseen | None] | None] = {}

    def _newest(self, name: str) -> tuple[Manifest, Foreseen | None] | None:
        """The manifest of the newest finished artifact that a node of this name gave, and what was
        foreseen of it."""
        if name not in self._found:
            self._found[name] = next(self._candidates(name), None)
        return self._found[name]

    def _candidates(self, name: str) -> Iterator[tuple[Manifest, Foreseen | None]]:
        for run in self._runs:
            node = run["nodes"].get(name)
            if node is not None:
                try:
                    manifest = self._store.manifest(node["stage"], node["key"])
                except DamagedArtifactError:
                    continue
                if manifest is not None:
                    told = node.get("foreseen")
                    yield manifest, told and Foreseen(**told)

    @cached_property
    def _runs(self) -> list[dict[str, Any]]:
        runs = self._store.runs()[:100]
        return sorted(runs, key=lambda run: run["recipe"] != self._recipe)

    def seconds(self, node: Node, graph: Graph) -> float | None:
        """How long a node will take, about."""
        measured = None
        if (newest := self._newest(node.name)) is not None and newest[1] is not None:
            measured = Known(newest[0].seconds, newest[1])
        return self._durations.seconds(node, graph, measured)

    def what_changed(self, name: str, identity: Identity, waiting: Sequence[str]) -> str:
        """In words, what changed since a node of this name last finished."""
        newest = self._newest(name)
        return _changes(newest[0], identity, waiting) if newest else "never made"


def _changes(old: Manifest, new: Identity, waiting: Sequence[str]) -> str:
    changes = []
    before, after = dict(flatten(old.settings)), dict(flatten(new.settings))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            changes.append(f"{key} {before.get(key, '-')} -> {after.get(key, '-')}")
    for module in sorted(old.sources.keys() | new.sources.keys()):
        if old.sources.get(module) != new.sources.get(module):
            changes.append(f"code of {module} changed")
    changes += _changed_files(old.external, new.files)
    if old.threads != new.threads:
        changes.append(f"threads {old.threads} -> {new.threads}")
    if old.version != new.version:
        changes.append(f"version {old.version} -> {new.version}")
    if old.inputs != new.inputs:
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        changes.append(f"reads {', '.join(waiting[:3]) or 'other inputs'}{more}")
    return "; ".join(changes) or "not finished before"


def _changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """In words, which outside files have other contents, whatever their names are now."""
    for name, digest in new.items():
        if digest in old.values():
            continue
        (before,) = old.values() if len(old) == 1 else [old.get(name, "")]
        what = difference(before, digest)
        yield f"files of {name} changed: {what}" if what else f"{name} changed on disk"
    if len(old) > len(new):
        yield from (f"{name} is gone" for name in old.keys() - new.keys())


def _version_warnings(catalog: Catalog, nodes: Mapping[str, NodePlan]) -> list[str]:
    changed: dict[str, set[str]] = {}
    for plan in nodes.values():
        for package, version in (plan.manifest.packages if plan.manifest else {}).items():
            if package in catalog.packages and version != installed(package):
                changed.setdefault(package, set()).add(version)
    return [
        f"cached artifacts were made with {package} {', '.join(sorted(versions))}; "
        f"{installed(package)} is installed (use --force to make them again)"
        for package, versions in sorted(changed.items())
    ]


def check_resources(plan: Plan, have: Amount, where: str) -> None:
    """Refuse a node that can never start, or whose workers cannot.

    Args:
        have: what there is, or what it may grow to.

    Raises:
        UsageError: a node to run asks for more than there is.
    """
    for name in plan.todo:
        node = plan.graph[name]
        asked, workers = node.resources, node.stage.workers(node.settings)
        for field, kind in KINDS.items():
            need, most = getattr(asked, field), getattr(have, field)
            if need > most:
                # Rounded down: what is said fits.
                most = math.floor(most * 10) / 10
                raise UsageError(
                    f"{name} asks for {need:g} {kind}, {where} has {most:g}; "
                    f"set resources.{node.stage.name}.{field} to at most {most:g}"
                )
        if workers is None:
            continue
        for field, kind in KINDS.items():
            need, there = getattr(node.need, field), getattr(have, field)
            if need > there:
                most = int(there * workers.count // need)
                remedy = f"to at most {most}" if most else "to 0"
                there = math.floor(there * 10) / 10
                raise UsageError(
                    f"{name} starts {workers.count} workers, which take {need:g} {kind} at once, "
                    f"and {where} has {there:g}; "
                    f"set {node.stage.name}.{workers.setting} {remedy}"
                )
