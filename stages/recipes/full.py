"""The recipe full: one training, or a network given, its samples and scores, and what every paper
adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stage import resolve
from stages.recipes.evaluate import external_nodes, given_nodes
from stages.recipes.given import GIVEN
from stages.recipes.nodes import (
    checkpoint_nodes,
    extractor_nodes,
    prepare_nodes,
    solver_nodes,
    train_nodes,
)

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.bench import Bench


def recipe(bench: Bench) -> list[Node]:
    """Everything: data, extractor, trainings, samples over steps and over solvers, scores. Of a
    network given all but what trainings are needed for."""
    nodes = [*prepare_nodes(bench), *extractor_nodes(bench)]
    if bench.networks.path is not None:
        nodes += [*given_nodes(bench), *solver_nodes(bench, GIVEN)]
    else:
        nodes += [*train_nodes(bench), *checkpoint_nodes(bench), *solver_nodes(bench)]
    if bench.evaluate.path is not None:
        nodes += external_nodes(bench)
    for paper in bench.papers:
        if paper.full and getattr(bench, paper.name).in_full:
            nodes += resolve(paper.full)(bench, nodes)
    return nodes
