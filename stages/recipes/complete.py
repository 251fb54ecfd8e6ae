"""What every recipe ends with: features of its evaluations, teacher, spectra, the report, hints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from pipeline.stage import Stage
from stages.bench import Bench
from stages.papers.csflow import spectrum
from stages.papers.icr import scan
from stages.papers.maskalign import diagnose
from stages.papers.stein import calibrate, lipschitz
from stages.papers.wavelet import draw, risk
from stages.recipes.nodes import (
    REFERENCES,
    own_features_node,
    spectrum_nodes,
    teacher_nodes,
)
from stages.report import report
from stages.sampling import sample
from stages.scoring import evaluate, external, extractor
from stages.scoring.evaluate import features_node
from stages.training import teach, train

if TYPE_CHECKING:
    from stages.bench import Bench


def shown_samples(nodes: Sequence[Node]) -> list[str]:
    """Names of the sample nodes that the report shows: of scanned models those of the last step."""
    scanned = {name for node in nodes if node.stage is scan.STAGE for name in node.slot("model")}
    sampled = [node for node in nodes if node.stage is sample.STAGE]
    last = {node.inputs["model"]: node.name for node in sampled}
    return [
        node.name
        for node in sampled
        if node.inputs["model"] not in scanned or node.name == last[node.inputs["model"]]
    ]


def scored(recipe: Callable[[Bench], list[Node]]) -> Callable[[Bench], list[Node]]:
    """The recipe with the features that its evaluations read."""

    def complete(bench: Bench) -> list[Node]:
        return with_features(bench, recipe(bench))

    return complete


def with_features(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with what their evaluations read: one node of features for every sample set.

    Raises UsageError where a set is smaller than its evaluation asks for.
    """
    by_name = {node.name: node for node in nodes}
    scored = [node for node in nodes if node.stage is evaluate.STAGE]
    sets = dict.fromkeys(name for node in scored for name in node.slot("samples"))
    for node in scored:
        for name in node.slot("samples"):
            _check_size(node, by_name[name])
    features = {name: own_features_node(bench, features_node(name), samples=name) for name in sets}
    return [_connected(node, features) for node in nodes] + list(features.values())


def _connected(node: Node, features: dict[str, Node]) -> Node:
    if node.stage is evaluate.STAGE:
        own = [features[name].name for name in node.slot("samples")]
        return replace(node, inputs={**node.inputs, "features": own, **REFERENCES})
    if node.stage is report.STAGE:
        every = [found.name for found in features.values()]
        return replace(node, inputs={**node.inputs, "features": every})
    return node


def _check_size(scores: Node, samples: Node) -> None:
    wanted = scores.settings.num_samples
    if samples.stage is sample.STAGE and samples.settings.num_samples < wanted:
        raise UsageError(
            f"evaluate.num_samples={wanted} is above "
            f"sample.num_samples={samples.settings.num_samples}; raise sample.num_samples, or "
            "lower evaluate.num_samples"
        )


def with_needed(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, with the teacher and every spectrum that one of them reads."""
    read = {slot for node in nodes for slot in node.inputs}
    spectra = dict.fromkeys(n.inputs["spectrum"] for n in nodes if "spectrum" in n.inputs)
    return [
        *nodes,
        *(teacher_nodes(bench) if "teacher" in read else ()),
        *(node for name in spectra for node in spectrum_nodes(bench, name)),
    ]


def report_node(bench: Bench, nodes: Sequence[Node]) -> Node:
    """The report of what all other nodes give."""

    def of(stage: Stage) -> list[str]:
        return [node.name for node in nodes if node.stage is stage]

    inputs = {
        "data": "prepare",
        "extractor": of(extractor.STAGE),
        "spectrum": [name for name in of(spectrum.STAGE) if name == "spectrum"],
        "teacher": of(teach.STAGE),
        "training": of(train.STAGE),
        "diagnoses": of(diagnose.STAGE),
        "scores": of(evaluate.STAGE),
        "schedules": of(calibrate.STAGE),
        "lipschitz": of(lipschitz.STAGE),
        "samples": shown_samples(nodes) + of(external.STAGE),
        "risks": of(risk.STAGE),
        "drawn": of(draw.STAGE),
        "scans": of(scan.STAGE),
    }
    return Node("report", report.STAGE, bench.report, inputs, bench.resources.report)


def _hint(hints: Mapping[str, float], name: str) -> float | None:
    """Seconds under the longest beginning of a node's name."""
    found = [key for key in hints if name.startswith(key)]
    return hints[max(found, key=len)] if found else None


def hinted(recipe: Callable[[Bench], list[Node]]) -> Callable[[Bench], list[Node]]:
    """The recipe, each node with the preset's hint of its time."""

    def build(bench: Bench) -> list[Node]:
        return [replace(node, hint_seconds=_hint(bench.hints, node.name)) for node in recipe(bench)]

    return build
