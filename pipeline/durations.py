"""How long nodes will take: as long as one of the name took, or as a preset says of its own, and by
how much longer as there is more to do."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any, Literal

from pydantic import ValidationError

from pipeline import config
from pipeline.config import Resolved
from pipeline.errors import UsageError
from pipeline.graph import Graph, Node
from pipeline.stage import Catalog

# Operations a second, by device, below which a node was busy with something else.
SLOWEST = {"cuda": 1e13}
SLOWEST_CPU = 4e9
MOST = 30.0  # times as much to do that such a node tells anything of
# Settings that decide how fast the same operations are.
HOW = ("device", "kind", "network.kind", "precision", "compute", "compile", "num_workers", "shard")
# What nodes know of each other before they run, see `Stage.estimate`.
KNOWN_OF_INPUTS = ("shape", "images", "held_out", "states")
OWN = "own"


@dataclass(frozen=True)
class Foreseen:
    """What is known of a node before it runs; kept with its run, to be compared with others.

    work: operations, by its stage's estimate; None where that says nothing. how: what decides how
    fast these are. scope: where work is None, a hash of its settings, but for the seed, and of what
    is known of its inputs.
    """

    work: float | None
    how: Mapping[str, Any]
    scope: str = ""

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Foreseen:
        """Of a node of the graph."""
        work = graph.estimates[node.name].get("flops") or None
        return cls(work, _how(node), "" if work else _scope(graph, node))

    def data(self) -> dict[str, Any]:
        """As JSON; `Foreseen(**data)` gives it back."""
        return asdict(self)


def _how(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": node.resources.threads}
    for name in HOW:
        value: Any = node.settings
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _scope(graph: Graph, node: Node) -> str:
    settings = node.settings.model_dump(mode="json", exclude={"seed"})
    known = (graph.estimates[name] for name in node.upstream)
    inputs = {str([of.get(fact) for fact in KNOWN_OF_INPUTS]) for of in known}
    text = json.dumps([settings, sorted(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Known:
    """How long something took, or may take, and what it was."""

    seconds: float
    was: Foreseen

    def of(self, node: Foreseen) -> float | None:
        """Seconds of a node; None where this tells nothing of it.

        An operation more takes as long as these did, or less where these were few and most of the
        time went elsewhere; where they were too few, nobody knows.
        """
        before, work = self.was.work, node.work
        if self.was.how != node.how or bool(before) != bool(work):
            return None
        if not work or not before:
            return self.seconds if self.was.scope == node.scope else None
        rate = before / max(self.seconds, 1e-9)
        slowest = SLOWEST.get(node.how.get("device", ""), SLOWEST_CPU)
        if rate < slowest and self.distance(node) > math.log(MOST):
            return None
        return self.seconds + (work - before) / max(rate, slowest)

    def distance(self, node: Foreseen) -> float:
        """By how much a node does more or less; 0 where that is not counted."""
        return abs(math.log(node.work / self.was.work)) if node.work and self.was.work else 0.0


class Hinted:
    """The nodes of whose times a preset speaks, in the sizes that it has."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @cached_property
    def _by_setting(self) -> dict[str, dict[str, Foreseen]]:
        found: dict[str, dict[str, Foreseen]] = {}
        for node in self._graph:
            if node.hint_setting:
                of = Foreseen.of(self._graph, node)
                found.setdefault(node.hint_setting, {})[node.name] = of
        return found

    @cached_property
    def _groups(self) -> dict[str, list[Foreseen]]:
        """Under each setting, one for all that work alike: of their median, or of each scope."""
        groups = {}
        for setting, nodes in self._by_setting.items():
            works: dict[str, list[float]] = {}
            others: dict[str, Foreseen] = {}
            for of in nodes.values():
                if of.work:
                    works.setdefault(json.dumps(of.how), []).append(of.work)
                else:
                    others[of.scope] = of
            counted = [Foreseen(statistics.median(w), json.loads(how)) for how, w in works.items()]
            groups[setting] = counted + list(others.values())
        return groups

    def like(self, node: Node, here: Foreseen) -> Foreseen | None:
        """What the preset speaks of: the node of this name, or those under the same setting."""
        named = self._by_setting.get(node.hint_setting, {}).get(node.name)
        if named is not None:
            return named
        for of in self._groups.get(node.hint_setting, ()):
            if of.how == here.how and ((of.work and here.work) or of.scope == here.scope):
                return of
        return None


class Durations:
    """How long the nodes of a graph will take.

    A network of four times the tokens takes about four times as long: neither a small run nor a
    preset for other data says how long this one takes, but how long an operation takes they do, on
    the same device.
    """

    def __init__(self, catalog: Catalog, preset: str | None, recipe: str, resolved: Resolved):
        self._catalog, self._preset, self._resolved = catalog, preset, resolved
        self._build = catalog.recipes[recipe]
        self._hinted = cache(self._hinted_by)

    def seconds(self, node: Node, graph: Graph, measured: Known | None) -> float | None:
        """Of a node of the graph; None where nobody knows.

        measured: how long one of its name took. Where it was of another size than what the preset
        says, the nearer counts.
        """
        if measured is None and node.hint_seconds is None:
            return None
        here = Foreseen.of(graph, node)
        told = [
            (known.distance(here), seconds)
            for known in (measured, self._hint(node, here))
            if known is not None and (seconds := known.of(here)) is not None
        ]
        return min(told, key=lambda one: one[0])[1] if told else None

    def _hint(self, node: Node, here: Foreseen) -> Known | None:
        """What the preset says, of its own data and sizes."""
        if node.hint_seconds is None:
            return None
        origin = self._resolved.origins.get(node.hint_setting, config.COMMAND_LINE)
        if origin == config.COMMAND_LINE:  # what is typed is said of this very run
            return Known(node.hint_seconds, here)
        hinted = self._hinted(origin)
        was = here if hinted is OWN else hinted and hinted.like(node, here)
        return was and Known(node.hint_seconds, was)

    def _hinted_by(self, origin: str) -> Hinted | Literal["own"] | None:
        """By the preset that hints at its times: `OWN` where that is what runs, None where it
        cannot stand alone."""
        settings = config.as_of(self._catalog, self._preset, origin)
        if settings == self._resolved.settings:
            return OWN
        try:
            return settings and Hinted(Graph(self._build(settings)))
        except (UsageError, ValidationError):
            return None
