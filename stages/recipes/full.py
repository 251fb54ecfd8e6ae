"""The recipe full: every method on one training, and the report of it."""

from __future__ import annotations

from pipeline.graph import Node
from stages.bench import Bench
from stages.recipes import combined, csflow, icr, stein, wavelet
from stages.recipes import train as recipes_train
from stages.recipes.complete import report_node, with_needed
from stages.recipes.evaluate import external_nodes
from stages.recipes.nodes import (
    checkpoint_nodes,
    extractor_nodes,
    prepare_nodes,
    solver_nodes,
    train_nodes,
)


def recipe(bench: Bench) -> list[Node]:
    """Everything: data, extractor, trainings, samples over steps and over solvers, scores,
    report."""
    method = bench.train.method
    nodes = [
        *prepare_nodes(bench),
        *extractor_nodes(bench),
        *train_nodes(bench),
        *checkpoint_nodes(bench, method),
        *solver_nodes(bench, method),
    ]
    if bench.evaluate.path is not None:
        nodes += external_nodes(bench)
    if bench.maskalign.in_full:
        nodes += recipes_train.full_nodes(bench, nodes)
    if bench.stein.in_full:
        nodes += stein.full_nodes(bench, nodes)
    if bench.csflow.in_full:
        nodes += csflow.full_nodes(bench, nodes)
    if bench.combined.in_full and bench.csflow.in_full:
        nodes += combined.full_nodes(bench, nodes)
    if bench.wavelet.in_full:
        nodes += wavelet.full_nodes(bench, nodes)
    if bench.icr.in_full:
        nodes += icr.full_nodes(bench)
    nodes = with_needed(bench, nodes)
    return [*nodes, report_node(bench, nodes)]
