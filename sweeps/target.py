"""From a trial's values to what must be run: its settings and the needed part of the graph."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from pipeline import plan as planning
from pipeline.config import Resolved
from pipeline.errors import UsageError, nearest
from pipeline.graph import Graph, Node
from pipeline.plan import Plan, Request
from pipeline.stage import Catalog
from pipeline.store import Store
from sweeps.space import Halving, Space, canonical

SEED = "seed"  # the setting, and the field of stages, that `seeds` counts on from


@dataclass(frozen=True)
class Sweep:
    """What is asked for: a space, and what the command line adds.

    Args:
        overrides: `key=value` settings of all trials; they go before the space's own `settings`.
    """

    name: str
    space: Space
    preset: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Equal for sweeps that try the same and judge it the same way."""
        data = [self.space.model_dump(mode="json"), self.preset, list(self.overrides)]
        return hashlib.sha256(canonical(data).encode()).hexdigest()[:16]

    def request(self, values: Mapping[str, Any]) -> Request:
        """The run whose part one trial is."""
        fixed = [setting(path, value) for path, value in self.space.settings.items()]
        own = [setting(path, value) for path, value in values.items()]
        return Request(self.space.recipe, self.preset, (*fixed, *self.overrides, *own))


@dataclass(frozen=True)
class Target:
    """What one trial runs with one seed.

    Args:
        resolved: all settings.
        graph: only the nodes that the sweep's metrics need.
        measured: for each metric of the space the node that reports it.
        watched: the node that tells the curve of early stopping.
        grace: the first step of that curve at which the trial may stop.
    """

    recipe: str
    resolved: Resolved
    graph: Graph
    measured: Mapping[str, Node]
    watched: str | None
    grace: int | None

    def plan(self, store: Store) -> Plan:
        """The state of every node."""
        return planning.of_graph(store, self.recipe, self.resolved, self.graph)

    @property
    def results(self) -> tuple[str, ...]:
        """Keys of the nodes that report the metrics: equal keys mean equal trials."""
        return tuple(self.graph.keys[node.name] for node in self.measured.values())


def targets(catalog: Catalog, sweep: Sweep, values: Mapping[str, Any]) -> list[Target]:
    """What a trial runs, for each of its seeds.

    Raises:
        UsageError: settings that cannot be, or a metric that no node reports; one sentence.
    """
    return [_target(catalog, sweep, values, number) for number in range(sweep.space.seeds)]


def _built(
    catalog: Catalog, sweep: Sweep, values: Mapping[str, Any], number: int
) -> tuple[Resolved, Graph]:
    """The settings and the whole graph, `number` seeds after the run's own."""
    request, seeded = sweep.request(values), sweep.space.seeded
    if unknown := [name for name in seeded if name not in catalog.stages]:
        hint = nearest(unknown[0], catalog.stages)
        raise UsageError(f"seeded has unknown stage '{unknown[0]}'{hint}")
    resolved, graph = planning.build(catalog, request)
    if not number:
        return resolved, graph
    if not seeded:
        if SEED not in resolved.flat():
            raise UsageError("seeds: these settings have no seed; name the stages in seeded")
        seed = setting(SEED, resolved.flat()[SEED] + number)
        return planning.build(catalog, replace(request, overrides=(*request.overrides, seed)))
    nodes = [_reseeded(node, number) if node.stage.name in seeded else node for node in graph]
    return resolved, Graph(nodes, catalog.exclude_sources, graph.absent)


def _reseeded(node: Node, number: int) -> Node:
    if SEED not in type(node.settings).model_fields:
        raise UsageError(f"seeded: {node.name} has no seed; leave {node.stage.name} out")
    changed = {SEED: getattr(node.settings, SEED) + number}
    return replace(node, settings=node.settings.revised(**changed))


def _target(catalog: Catalog, sweep: Sweep, values: Mapping[str, Any], number: int) -> Target:
    resolved, whole = _built(catalog, sweep, values, number)
    space, flat = sweep.space, resolved.flat()
    measured = {
        name: _reporting(whole, filled(measure.node, flat), measure.metric or name)
        for name, measure in space.metrics.items()
    }
    needed = [node.name for node in measured.values()]
    watched = grace = None
    if space.halving is not None:
        pattern = filled(space.halving.node, flat)
        node = _reporting(whole, pattern, space.halving.metric)
        watched, grace = node.name, _grace(space.halving, node)
        needed.append(watched)
    names = whole.ancestors(needed)
    if watched is not None and watched not in whole.ancestors(needed[:-1]):
        raise UsageError(
            f"halving watches {watched}, which {space.decides} does not need: stopping it would "
            f"save nothing; name a node upstream of {measured[space.decides].name}"
        )
    nodes = [node for node in whole if node.name in names]
    graph = Graph(nodes, catalog.exclude_sources, whole.absent)
    return Target(space.recipe, resolved, graph, measured, watched, grace)


def _grace(halving: Halving, node: Node) -> int:
    """The first step at which a trial may stop; UsageError where it ends before."""
    count = node.stage.curve_steps
    steps = None if count is None else count(node)
    if halving.grace < 1:
        if steps is None:
            raise UsageError(
                f"halving.grace={halving.grace:g} is a share of the steps of {node.name}, which "
                "has none that are known before; give a number of steps"
            )
        return max(1, round(halving.grace * steps))
    if steps is not None and halving.grace >= steps:
        raise UsageError(
            f"halving.grace={halving.grace:g} is not below the {steps} steps of {node.name}, so "
            "that no trial could be stopped: lower it (0.25 is a quarter of the steps), or leave "
            "early stopping out (--scheduler none)"
        )
    return int(halving.grace)


def filled(pattern: str, flat: Mapping[str, Any]) -> str:
    """A node's name with `{setting}` replaced by that setting's value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in flat:
            hint = nearest(match[1], flat)
            raise UsageError(f"'{pattern}' names unknown setting '{match[1]}'{hint}")
        return str(flat[match[1]])

    return re.sub(r"{([\w.]+)}", value, pattern)


def _reporting(graph: Graph, pattern: str, metric: str) -> Node:
    """The one node that a pattern fits; UsageError unless it may report the metric."""
    matches = [name for name in graph.nodes if fnmatchcase(name, pattern)]
    if not matches:
        known = [name for name in graph.nodes if _may_report(graph[name], metric)]
        these = f" (with {metric}: {_few(known)})" if known else ""
        hint = nearest(pattern, graph.nodes) or these
        raise UsageError(f"no node of the recipe fits '{pattern}', for {metric}{hint}")
    if len(matches) > 1:
        raise UsageError(
            f"'{pattern}' fits {len(matches)} nodes ({_few(matches)}); {metric} is taken from one: "
            "name it, or narrow the pattern"
        )
    node = graph[matches[0]]
    if not _may_report(node, metric):
        reported = node.stage.metrics(node)
        known = f" (it reports: {', '.join(reported) or 'nothing'})"
        raise UsageError(
            f"{node.name} reports no metric '{metric}'{nearest(metric, reported)}{known}"
        )
    return node


def _may_report(node: Node, metric: str) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in node.stage.metrics(node))


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shared_keys(trials: Iterable[Sequence[Target]], least: int = 2) -> set[str]:
    """Keys of the nodes that at least so many trials need, those that report metrics left out."""
    counts: dict[str, int] = {}
    reported: set[str] = set()
    for trial in trials:
        for key in {key for target in trial for key in target.graph.keys.values()}:
            counts[key] = counts.get(key, 0) + 1
        reported |= {key for target in trial for key in target.results}
    return {key for key, count in counts.items() if count >= least} - reported


def setting(path: str, value: Any) -> str:
    """`path=value`, the value written so that it is read back as it is."""
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted path as the tree that a preset file holds."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, leaf = path.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return tree
