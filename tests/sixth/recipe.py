"""The nodes of the sixth paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.papers.sixth import contrast

from pipeline.graph import Node
from stages.recipes.nodes import prepare_nodes, settings_of

if TYPE_CHECKING:
    from stages.bench import Bench


def full_nodes(bench: Bench, nodes: list[Node]) -> list[Node]:
    """Its part of the recipe full."""
    settings = settings_of(contrast.ContrastSettings, bench.sixth)
    where = bench.resources.contrast
    return [Node("contrast", contrast.STAGE, settings, {"data": "prepare"}, where)]


def recipe(bench: Bench) -> list[Node]:
    """The data set and its contrast."""
    nodes = prepare_nodes(bench)
    return [*nodes, *full_nodes(bench, nodes)]
