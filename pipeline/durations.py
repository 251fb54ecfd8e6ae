"""How long nodes will take: as long as one of the name took, or as a preset says of its own, and by
how much longer as there is more to do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import ValidationError

from pipeline import config
from pipeline.config import Resolved, flatten
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


@dataclass(frozen=True)
class Known:
    """How long something took, or may take, and what it was.

    work: operations, by its stage's estimate; None where that says nothing. settings: as JSON, by
    dotted key.
    """

    seconds: float
    work: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, work: float | None) -> float | None:
        """Seconds of so much work; as long as this where either is not known.

        An operation more takes as long as these did, or less where these were few and most of the
        time went elsewhere; None where they were too few to tell.
        """
        if not work or not self.work:
            return self.seconds
        rate = self.work / max(self.seconds, 1e-9)
        slowest = SLOWEST.get(self.settings.get("device", ""), SLOWEST_CPU)
        if rate < slowest and self.distance(work) > math.log(MOST):
            return None
        return self.seconds + (work - self.work) / max(rate, slowest)

    def distance(self, work: float | None) -> float:
        """By how much so much work is another, up or down; 0 where that is not known."""
        return abs(math.log(work / self.work)) if work and self.work else 0.0

    def as_fast(self, settings: Mapping[str, Any]) -> bool:
        """Whether a node of these settings makes operations as fast."""
        return all(
            self.settings.get(name, settings.get(name)) == settings.get(name) for name in HOW
        )


def work(graph: Graph, name: str) -> float | None:
    """Operations of a node, where its stage's estimate says."""
    return graph.estimates[name].get("flops") or None


class Durations:
    """How long the nodes of a graph will take.

    A network of four times the tokens takes about four times as long: neither a small run nor a
    preset for other data says how long this one takes, but how long an operation takes they do, on
    the same device.
    """

    def __init__(self, catalog: Catalog, preset: str | None, recipe: str, resolved: Resolved):
        self._catalog, self._preset, self._recipe = catalog, preset, recipe
        self._resolved = resolved
        self._hinted = cache(self._hinted_by)

    def seconds(self, node: Node, graph: Graph, measured: Known | None) -> float | None:
        """Of a node of the graph; None where nobody knows.

        measured: how long one of its name took. Where it was of another size than what the preset
        says, the nearer counts.
        """
        amount, settings = work(graph, node.name), written(node)
        known = [found for found in (measured, self._hint(node, graph)) if found is not None]
        known = [found for found in known if found.as_fast(settings)]
        if not known:
            return None
        return min(known, key=lambda found: found.distance(amount)).of(amount)

    def _hint(self, node: Node, here: Graph) -> Known | None:
        """What the preset says, of its own data and sizes."""
        if node.hint_seconds is None:
            return None
        settings, origin = written(node), self._resolved.origins.get(node.hint_setting, "")
        whole = Known(node.hint_seconds, work(here, node.name), settings)
        if not origin or origin == config.COMMAND_LINE:
            return whole
        graph = self._hinted(origin, here)
        if graph is here or graph is None:
            return graph and whole
        alike = [other for other in graph if other.hint_setting == node.hint_setting]
        alike = [other for other in alike if other.name == node.name] or alike
        alike = [other for other in alike if whole.as_fast(written(other))]
        amounts = [amount for other in alike if (amount := work(graph, other.name))]
        if amounts and whole.work:
            return Known(node.hint_seconds, statistics.median(amounts), settings)
        scope = _scope(here, node)
        return whole if any(_scope(graph, other) == scope for other in alike) else None

    def _hinted_by(self, origin: str, here: Graph) -> Graph | None:
        """The recipe's graph by the preset that hints at its times; None where there is none."""
        try:
            settings = config.as_of(self._catalog, self._preset, origin)
            if settings == self._resolved.settings:
                return here
            return settings and Graph(self._catalog.recipes[self._recipe](settings))
        except (UsageError, ValidationError):
            return None


def written(node: Node) -> dict[str, Any]:
    """A node's settings as JSON, by dotted key."""
    return dict(flatten(node.settings.model_dump(mode="json")))


def _scope(graph: Graph, node: Node) -> tuple[dict[str, Any], set[str]]:
    """All that decides how long a node takes whose operations nobody counts."""
    settings = {name: value for name, value in written(node).items() if name != "seed"}
    known = (graph.estimates[name] for name in node.upstream)
    return settings, {str([of.get(fact) for fact in KNOWN_OF_INPUTS]) for of in known}
