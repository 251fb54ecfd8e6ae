"""A recipe's scores under a published protocol, in place of those against the data.

The protocol says how many samples a set has and how their classes are drawn, so that it reaches the
samples too; and no node is left that reads training images for scores' sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.data import encode, prepare
from stages.recipes.nodes import ENCODE, PIXELS, PREPARE, REFERENCES, settings_of
from stages.report import report
from stages.sampling import decode, sample
from stages.scoring import evaluate, external, published
from stages.scoring.published import PublishedSettings
from stages.settings.protocols import CLEAN
from stages.training import checkpoint

if TYPE_CHECKING:
    from stages.bench import Bench

DATA = (PREPARE, PIXELS, ENCODE)
# Stages that do without the data where nothing else reads them.
CONTENT = (prepare.STAGE, encode.STAGE, checkpoint.STAGE, decode.STAGE, report.STAGE)


def is_published(bench: Bench) -> bool:
    """Whether scores are taken under a published protocol."""
    return bench.evaluate.protocol != CLEAN


def under_protocol(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with scores under the preset's published protocol, and samples as it takes them.

    Raises UsageError where the settings contradict each other, or nothing is scored.
    """
    settings = _settings(bench)
    scored = [node for node in nodes if node.stage is evaluate.STAGE]
    if not scored:
        raise UsageError(
            f"evaluate.protocol={settings.protocol}: this recipe scores no samples; leave it out, "
            "or choose evaluate, full, train, stein, csflow or icr"
        )
    sets = {
        name for node in scored for slot in ("samples", "reference") for name in node.slot(slot)
    }
    gone = {"extractor", *REFERENCES.values()}
    pictures = _scored_alone(nodes) if _samples_pixels(bench) else set()
    return [
        _under(bench, node, settings, sets, node.name in pictures)
        for node in nodes
        if node.name not in gone
    ]


def _samples_pixels(bench: Bench) -> bool:
    """Whether samples are pictures, and not latents of them."""
    return bench.latents.autoencoder is None and not bench.data.holds_latents


def _scored_alone(nodes: Sequence[Node]) -> set[str]:
    """The sets that are scored by their pictures and read by nothing else: distances between sets
    would see that they were rounded."""
    by_pictures, otherwise = set(), set()
    for node in nodes:
        for slot in node.inputs:
            scored = node.stage is evaluate.STAGE and slot == "samples"
            plain = scored and not node.slot("reference")
            (by_pictures if plain else otherwise).update(node.slot(slot))
    return by_pictures - otherwise


def _settings(bench: Bench) -> PublishedSettings:
    try:
        settings = settings_of(PublishedSettings, bench.evaluate)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        words = problem.get("ctx", {}).get("error", problem["msg"])
        raise UsageError(f"evaluate: {words}") from error
    drawn, wanted = bench.sample.classes, settings.stated("classes")
    if drawn not in (None, wanted):
        raise UsageError(
            f"sample.classes={drawn} and evaluate.protocol={settings.protocol} contradict each "
            f"other: its scores are of {wanted} classes; leave sample.classes unset, or set "
            f"evaluate.classes={drawn}"
        )
    return settings


def _under(
    bench: Bench, node: Node, settings: PublishedSettings, sets: set[str], is_picture: bool
) -> Node:
    if node.stage is evaluate.STAGE:
        inputs = {name: of for name, of in node.inputs.items() if name in published.STAGE.inputs}
        return Node(
            node.name,
            published.STAGE,
            settings.revised(abscissa=node.settings.abscissa),
            inputs,
            bench.resources.published,
            {**node.tags, "protocol": settings.protocol},
        )
    if node.stage is external.STAGE:
        return replace(node, inputs={})
    if node.stage is not sample.STAGE or node.name not in sets:
        return node
    count = settings.stated("best_of") * settings.protocol_samples
    # Equal shares: "balanced" is every class equally often, whatever the data's shares.
    drawn = {"num_samples": count, "classes": settings.stated("classes"), "labels": "equal"}
    if is_picture:
        drawn["kept"] = settings.stated("rounding")
    return replace(node, settings=node.settings.revised(**drawn))


def without_unread_data(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes without the data set where no training and no calibration reads it.

    Latents that the user gives stay where samples are decoded: they say how they are scaled.
    """
    if any(_reads_data(node) for node in nodes if node.stage not in CONTENT):
        return list(nodes)
    scaled = bench.data.holds_latents and any(node.stage is decode.STAGE for node in nodes)
    kept = [node for node in nodes if node.name not in DATA]
    if scaled:
        own = Node(PREPARE, prepare.STAGE, bench.data, resources=bench.resources.prepare)
        return [own, *(_reading(node, scaled) for node in kept)]
    return [_reading(node, scaled) for node in kept]


def _reads_data(node: Node) -> bool:
    return any(name in DATA for slot in node.inputs for name in node.slot(slot))


def _reading(node: Node, scaled: bool) -> Node:
    """The node without the data, or with those of `prepare` where it decodes."""
    inputs = {
        slot: of
        for slot, of in node.inputs.items()
        if not any(name in DATA for name in node.slot(slot))
    }
    if scaled and node.stage is decode.STAGE:
        inputs["data"] = PREPARE
    return replace(node, inputs=inputs)
