"""The nodes that scores need: the extractor, the features of every set, samples made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from pipeline.errors import UsageError
from pipeline.graph import Node
from pipeline.stage import Settings
from stages import embed, evaluate, external, extract, report, sample
from stages.embed import FeatureSettings
from stages.evaluate import EvaluateOptions, EvaluateSettings, features_node
from stages.external import ExternalSettings
from stages.extract import EMBEDDED, ExtractorOptions, ExtractorSettings
from stages.weights import FOLDER

if TYPE_CHECKING:
    from stages.bench import Bench
    from stages.teach import TeachOptions

SettingsT = TypeVar("SettingsT", bound=Settings)

REFERENCES = {"train": "features/train", "held_out": "features/held-out"}


class Evaluation(EvaluateOptions):
    """How sets are scored, and samples made elsewhere that are scored too."""

    path: str | None = Field(
        None,
        description="samples made elsewhere, of the data set's size: a folder of image files or "
        "an .npz file",
    )


def settings_of(kind: type[SettingsT], options: Settings, **more: object) -> SettingsT:
    """Settings of a stage from those of a preset's section that it has, and further ones."""
    names = kind.model_fields.keys() & type(options).model_fields.keys()
    return kind(**{name: getattr(options, name) for name in names} | more)


def extractor_nodes(bench: Bench) -> list[Node]:
    """The extractor, and features of the training and the held-out images."""
    weights = weights_of(bench.extractor)
    settings = settings_of(ExtractorSettings, bench.extractor, seed=bench.seed, weights=weights)
    inputs = {"data": "prepare"}
    node = Node("extractor", extract.STAGE, settings, inputs, bench.resources.extractor)
    return [
        node,
        _features_node(bench, REFERENCES["train"], "train"),
        _features_node(bench, REFERENCES["held_out"], "test"),
    ]


def external_nodes(bench: Bench) -> list[Node]:
    """The samples at `evaluate.path` and their scores.

    Raises UsageError where it is not set.
    """
    if bench.evaluate.path is None:
        raise UsageError(
            "the recipe evaluate scores samples made elsewhere: set evaluate.path to a folder of "
            "images or to an .npz file"
        )
    settings = ExternalSettings(path=bench.evaluate.path)
    samples = Node(
        "external", external.STAGE, settings, {"data": "prepare"}, bench.resources.external
    )
    scores = Node(
        "evaluate/external",
        evaluate.STAGE,
        settings_of(EvaluateSettings, bench.evaluate, seed=bench.seed),
        {"samples": [samples.name]},
        bench.resources.evaluate,
        tags={"method": Path(bench.evaluate.path).stem},
    )
    return [samples, scores]


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
    features = {name: _features_node(bench, features_node(name), samples=name) for name in sets}
    return [_connected(node, features) for node in nodes] + list(features.values())


def _connected(node: Node, features: dict[str, Node]) -> Node:
    if node.stage is evaluate.STAGE:
        own = [features[name].name for name in node.slot("samples")]
        return replace(node, inputs={**node.inputs, "features": own, **REFERENCES})
    if node.stage is report.STAGE:
        every = [found.name for found in features.values()]
        return replace(node, inputs={**node.inputs, "features": every})
    return node


def _features_node(bench: Bench, name: str, part: str = "samples", samples: str = "") -> Node:
    return Node(
        name,
        embed.STAGE,
        settings_of(
            FeatureSettings, bench.extractor, part=part, weights=weights_of(bench.extractor)
        ),
        {"data": "prepare", "extractor": "extractor"} | ({"samples": samples} if samples else {}),
        bench.resources.features,
    )


def weights_of(options: ExtractorOptions | TeachOptions) -> str | None:
    """Where weights are looked for, for workers that may run in another folder."""
    if options.kind == EMBEDDED:
        return None
    return str(Path(options.weights or FOLDER).expanduser().absolute())


def _check_size(scores: Node, samples: Node) -> None:
    wanted = scores.settings.num_samples
    if samples.stage is sample.STAGE and samples.settings.num_samples < wanted:
        raise UsageError(
            f"evaluate.num_samples={wanted} is above "
            f"sample.num_samples={samples.settings.num_samples}; raise sample.num_samples, or "
            "lower evaluate.num_samples"
        )
