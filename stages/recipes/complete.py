"""What every recipe ends with: features of its evaluations, teacher, spectra, the report, hints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError, raised_as
from pipeline.graph import Node
from pipeline.stage import resolve
from stages.artifacts.extractor import EMBEDDED
from stages.data.counted import samples_at, unlabelled
from stages.data.readers.tree import may_be_images
from stages.methods.fewest import FEWEST_IMAGES
from stages.recipes.given import GIVEN
from stages.recipes.nodes import (
    REFERENCES,
    decode_node,
    own_features_node,
    pixels_node,
    settings_of,
    spectrum_nodes,
    teacher_nodes,
)
from stages.recipes.published import is_published, under_protocol, without_unread_data
from stages.report import report
from stages.report.report import ReportSettings
from stages.sampling import sample
from stages.scoring import evaluate, external, extractor, published
from stages.scoring.evaluate import features_node
from stages.training import checkpoint, teach, train

if TYPE_CHECKING:
    from stages.bench import Bench
    from stages.data.options import PrepareSettings
    from stages.scoring.external import ExternalSettings


def completed(place: str) -> Callable[[Bench], list[Node]]:
    """The recipe at `"module:function"`, read when it is asked for, with what all end with."""

    def build(bench: Bench) -> list[Node]:
        nodes = resolve(place)(bench)
        if is_published(bench):
            nodes = under_protocol(bench, nodes)
        nodes = _with_needed(bench, nodes)
        _check_given(bench, nodes)
        _check_guidance(nodes)
        nodes = with_features(bench, [*nodes, report_node(bench, nodes)])
        if is_published(bench):
            nodes = without_unread_data(bench, nodes)
        return [_hinted(node, bench.hints) for node in nodes]

    return build


def _check_given(bench: Bench, nodes: Sequence[Node]) -> None:
    """Raise UsageError where a network from elsewhere is named and the recipe reads none."""
    if bench.networks.path is not None and not any(node.name == GIVEN for node in nodes):
        raise UsageError(
            f"networks.path={bench.networks.path} is not read by this recipe; leave it out, or "
            "choose full, stein, csflow, icr, wavelet, evaluate or train"
        )


def _check_guidance(nodes: Sequence[Node]) -> None:
    """Raise UsageError where samples are guided that no label dropout of a training allows."""
    trained = {node.name: node.settings for node in nodes if node.stage is train.STAGE}
    for node in nodes:
        if node.stage is not sample.STAGE or node.settings.guidance == 1:
            continue
        training, scale = trained.get(node.inputs["model"]), node.settings.guidance
        if training is not None and not training.conditional:
            raise UsageError(
                f"sample.guidance={scale:g} and train.conditional=false contradict each other: "
                "guidance is towards a class; set sample.guidance=1, or train.conditional=true"
            )
        if training is not None and not 0 < training.label_dropout < 1:
            raise UsageError(
                f"sample.guidance={scale:g} and train.label_dropout={training.label_dropout:g} "
                "contradict each other: guidance needs a network trained with and without "
                "classes; set train.label_dropout=0.1, say, or sample.guidance=1"
            )


def shown_samples(bench: Bench, nodes: Sequence[Node]) -> list[str]:
    """Names of the sample nodes that the report shows: those of the run's own seed, and of models
    that are scanned those of the last step."""
    scanned = {n for node in nodes if node.name.startswith("scan/") for n in node.slot("model")}
    sampled = [node for node in nodes if node.stage is sample.STAGE]
    last = {node.inputs["model"]: node.name for node in sampled}
    return [
        node.name
        for node in sampled
        if (
            node.name == last[node.inputs["model"]]
            if node.inputs["model"] in scanned
            else node.settings.seed == bench.seed
        )
    ]


def with_features(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with what their evaluations read: one node of features for every sample set, of
    pictures where these are latents.

    Raises UsageError where a set is smaller than its evaluation asks for.
    """
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        for name in node.slot("samples") if node.stage in (evaluate.STAGE, published.STAGE) else ():
            _check_size(node, by_name[name])
    nodes = _decoded(bench, nodes)
    scored = [node for node in nodes if node.stage is evaluate.STAGE]
    sets = dict.fromkeys(name for node in scored for name in node.slot("samples"))
    if scored:
        _check_data(bench)
    features = {name: own_features_node(bench, features_node(name), samples=name) for name in sets}
    return [_connected(node, features) for node in nodes] + list(features.values())


def _decoded(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with scores and pictures of decoded samples, where there is an autoencoder."""
    if bench.latents.autoencoder is None:
        return list(nodes)
    slots = dict.fromkeys((evaluate.STAGE.name, published.STAGE.name), ("samples", "reference"))
    slots[report.STAGE.name] = ("samples",)
    sampled = {node.name: node for node in nodes if node.stage is sample.STAGE}
    pictures: dict[str, Node] = {}

    def picture(name: str) -> str:
        if name not in sampled:
            return name
        return pictures.setdefault(name, decode_node(bench, sampled[name])).name

    shown = []
    for node in nodes:
        inputs = dict(node.inputs)
        for slot in slots.get(node.stage.name, ()):
            if slot in inputs:
                names = [picture(name) for name in node.slot(slot)]
                inputs[slot] = names[0] if isinstance(inputs[slot], str) else names
        shown.append(replace(node, inputs=inputs))
    return [*shown, *pictures.values()]


def _connected(node: Node, features: dict[str, Node]) -> Node:
    if node.stage is evaluate.STAGE:
        own = [features[name].name for name in node.slot("samples")]
        return replace(node, inputs={**node.inputs, "features": own, **REFERENCES})
    if node.stage is report.STAGE:
        every = [feature.name for feature in features.values()]
        return replace(node, inputs={**node.inputs, "features": every})
    return node


def _check_data(bench: Bench) -> None:
    """Raise UsageError where the settings leave fewer real images than scores need."""
    data = bench.data if bench.latents.autoencoder is None else bench.pictures
    fewest = FEWEST_IMAGES
    for name in ("held_out", "limit_held_out"):
        if (count := getattr(data, name)) is not None and count < fewest:
            raise UsageError(
                f"data.{name}={count} leaves too few held-out images: scores need at least "
                f"{fewest}; raise it"
            )
    _check_folder(data)
    _check_labels(bench, data)
    if (most := data.most_train) is None:
        return
    if most < evaluate.FEWEST:
        raise UsageError(
            f"data.limit={data.limit} and data.held_out={data.held_out} leave {most} training "
            f"images, and scores need at least {evaluate.FEWEST}; raise the one or lower the other"
        )
    if most < bench.evaluate.num_samples:
        try:
            bench.evaluate.check_neighbours(most, f"the {most} training images that are left")
        except ValueError as error:
            raise UsageError(f"evaluate.{error}") from error


def _check_folder(data: PrepareSettings) -> None:
    """Raise UsageError for a folder with fewer images than scores need."""
    place, fewest = Path(data.path or "").expanduser(), evaluate.FEWEST + FEWEST_IMAGES
    if data.dataset != "folder" or not place.is_dir():
        return
    if 0 < (count := may_be_images(place, fewest)) < fewest:
        raise UsageError(
            f"data.path={data.path} holds too few images, {count}: scores need at least "
            f"{evaluate.FEWEST} to train on and {FEWEST_IMAGES} held out; give more"
        )


def _check_labels(bench: Bench, data: PrepareSettings) -> None:
    """Raise UsageError for a folder without classes, which the embedded extractor is trained on."""
    if bench.extractor.kind == EMBEDDED and unlabelled(data):
        raise UsageError(
            f"data.path={data.path} has no class folders, and extractor.kind=embedded is trained "
            "to tell the data's classes apart; set extractor.kind=inception or dinov2-base, or put "
            "the images of each class into a folder of its own"
        )


def _check_size(scores: Node, samples: Node) -> None:
    if samples.stage is external.STAGE:
        return _check_external(scores, samples.settings)
    if scores.stage is published.STAGE:
        return  # which says how many are made
    wanted = scores.settings.num_samples
    if samples.stage is sample.STAGE and samples.settings.num_samples < wanted:
        raise UsageError(
            f"evaluate.num_samples={wanted} is above "
            f"sample.num_samples={samples.settings.num_samples}; raise sample.num_samples, or "
            "lower evaluate.num_samples"
        )


def _check_external(scores: Node, samples: ExternalSettings) -> None:
    """Raise UsageError where fewer samples lie at `evaluate.path` than are scored, as far as that
    is known before they are read."""
    place, by = Path(samples.path), published if scores.stage is published.STAGE else evaluate
    if not place.exists():
        return  # its node says so
    external.readers_of(samples)  # of what holds no samples at all
    with raised_as(UsageError, ValueError, OSError):
        count = samples_at(place, most=by.wanted(scores.settings))
    if count and (said := by.too_few(count, scores.settings)):
        raise UsageError(f"evaluate.path={place} {said}")


def _with_needed(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
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
    shown = {name for paper in bench.papers for name in paper.shown}

    def of(*stages: str) -> list[str]:
        return [node.name for node in nodes if node.stage.name in stages]

    inputs = {
        "data": pixels_node(bench),
        "extractor": of(extractor.STAGE.name),
        "spectrum": [name for name in of("spectrum") if name == "spectrum"],
        "teacher": of(teach.STAGE.name),
        "training": of(train.STAGE.name),
        "given": of(checkpoint.STAGE.name),
        "scores": of(evaluate.STAGE.name, published.STAGE.name),
        "samples": shown_samples(bench, nodes) + of(external.STAGE.name),
        "papers": of(*shown),
    }
    settings = settings_of(
        ReportSettings,
        bench.report,
        sections=tuple(paper.section for paper in bench.papers if paper.section),
        claims=tuple(paper.claims for paper in bench.papers if paper.claims),
        key_figures=tuple(paper.key_figure for paper in bench.papers if paper.claims),
        apart=tuple(paper.apart for paper in bench.papers if paper.apart),
    )
    return Node("report", report.STAGE, settings, inputs, bench.resources.report)


def _hinted(node: Node, hints: Mapping[str, float]) -> Node:
    """The node with the seconds under the longest beginning of its name."""
    beginnings = [key for key in hints if node.name.startswith(key)]
    if not beginnings:
        return node
    key = max(beginnings, key=len)
    return replace(node, hint_seconds=hints[key], hint_setting=f"hints.{key}")
