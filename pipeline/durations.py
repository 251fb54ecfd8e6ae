"""How long nodes will take: as long as one of the name took, or as a preset says of its own, times
how much more there is to do."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cache

from pydantic import ValidationError

from pipeline import config
from pipeline.config import Resolved
from pipeline.errors import UsageError
from pipeline.graph import Graph, Node
from pipeline.stage import Catalog, Settings


@dataclass(frozen=True)
class Known:
    """How long something took, or may take, and what it was.

    work: operations, by its stage's estimate; None where that says nothing.
    """

    seconds: float
    work: float | None = None

    def of(self, work: float | None) -> float:
        """Seconds of so much work."""
        return self.seconds * work / self.work if work and self.work else self.seconds

    def distance(self, work: float | None) -> float:
        """By how much so much work is another, up or down; 0 where that is not known."""
        return abs(math.log(work / self.work)) if work and self.work else 0.0


def device(settings: Settings) -> str | None:
    """On what a node computes; None for one that has no choice."""
    return getattr(settings, "device", None)


def work(graph: Graph, name: str) -> float | None:
    """Operations of a node, where its stage's estimate says."""
    return graph.estimates[name].get("flops") or None


class Durations:
    """How long the nodes of a graph will take.

    A network of four times the tokens takes about four times as long, on the same device: neither
    a small run nor a preset for other data says how long this one takes, but how long an operation
    takes they do.
    """

    def __init__(self, catalog: Catalog, preset: str | None, recipe: str, resolved: Resolved):
        self._catalog, self._preset, self._recipe = catalog, preset, recipe
        self._resolved = resolved
        self._hinted = cache(self._hinted_by)

    def seconds(self, node: Node, graph: Graph, measured: Known | None) -> float | None:
        """Of a node of the graph; None where nobody knows.

        measured: how long one of its name took on the same device. Where it was of another size
        than both, the nearer counts.
        """
        amount = work(graph, node.name)
        known = [found for found in (measured, self._hint(node, graph)) if found is not None]
        if not known:
            return None
        return min(known, key=lambda found: found.distance(amount)).of(amount)

    def _hint(self, node: Node, here: Graph) -> Known | None:
        """What the preset says, of its own data and sizes."""
        if node.hint_seconds is None:
            return None
        origins = self._resolved.origins
        origin = origins.get(node.hint_setting, "")
        if origin == f"preset {self._resolved.preset}" and "command line" not in origins.values():
            return Known(node.hint_seconds, work(here, node.name))
        graph = self._hinted(origin)
        if graph is None:
            return Known(node.hint_seconds)
        alike = [other for other in graph if other.hint_setting == node.hint_setting]
        if node.name in graph.nodes and graph[node.name] in alike:
            alike = [graph[node.name]]
        if alike and device(node.settings) not in {device(other.settings) for other in alike}:
            return None  # that is said of another device
        amounts = [amount for other in alike if (amount := work(graph, other.name))]
        return Known(node.hint_seconds, statistics.median(amounts) if amounts else None)

    def _hinted_by(self, origin: str) -> Graph | None:
        """The recipe's graph by the preset that hints at its times; None where there is none."""
        try:
            settings = config.as_of(self._catalog, self._preset, origin)
            if settings is None:
                return None
            return Graph(self._catalog.recipes[self._recipe](settings))
        except (UsageError, ValidationError):
            return None
