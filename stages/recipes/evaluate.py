"""The nodes that scores need: the extractor, the features of every set, samples made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.data.recognised import SUFFIXES
from stages.recipes.given import GIVEN, given_node
from stages.recipes.nodes import (
    curve,
    extractor_nodes,
    pixel_nodes,
    pixels_node,
    prepare_nodes,
    sample_node,
    settings_of,
)
from stages.recipes.published import is_published
from stages.scoring import evaluate, external
from stages.scoring.evaluate import EvaluateSettings
from stages.scoring.external import ExternalSettings

if TYPE_CHECKING:
    from stages.bench import Bench


def samples_node(bench: Bench, inputs: Mapping[str, str]) -> Node:
    """`external`: the samples at `evaluate.path`.

    Raises UsageError where it is not set.
    """
    if bench.evaluate.path is None:
        raise UsageError(
            "the recipe evaluate scores samples made elsewhere: set evaluate.path to a folder of "
            "images or to an .npz file, or networks.path to a network that makes them"
        )
    settings = ExternalSettings(path=bench.evaluate.path)
    return Node("external", external.STAGE, settings, inputs, bench.resources.external)


def external_nodes(bench: Bench) -> list[Node]:
    """The samples at `evaluate.path` and their scores; UsageError where it is not set."""
    samples = samples_node(bench, {"data": pixels_node(bench)})
    scores = Node(
        "evaluate/external",
        evaluate.STAGE,
        settings_of(EvaluateSettings, bench.evaluate, seed=bench.seed),
        {"samples": [samples.name]},
        bench.resources.evaluate,
        tags={"method": name_of(Path(bench.evaluate.path))},
    )
    return [samples, scores]


def name_of(path: Path) -> str:
    """What samples made elsewhere are called: as their folder, or as their archive but for its
    suffix."""
    path = Path(os.path.abspath(path.expanduser()))  # without the dots of `.` and `..`
    archive = path.suffix.lower() in SUFFIXES and not path.is_dir()
    named = path.stem if archive else path.name
    return named or str(path)


def recipe(bench: Bench) -> list[Node]:
    """Samples made elsewhere, or those of a network trained elsewhere: their scores under the
    preset's protocol; a published one reads no data set."""
    given = bench.networks.path is not None
    if is_published(bench):
        nodes = given_nodes(bench) if given else []
    elif given:
        nodes = [*prepare_nodes(bench), *extractor_nodes(bench), *given_nodes(bench)]
    else:
        nodes = [*pixel_nodes(bench), *extractor_nodes(bench)]
    return nodes if given and bench.evaluate.path is None else [*nodes, *external_nodes(bench)]


def given_nodes(bench: Bench) -> list[Node]:
    """The network given, its samples as those of a training's checkpoints are made, and their
    scores."""
    given, options = given_node(bench, with_data=not is_published(bench)), bench.sample
    settings = options.options(seed=bench.seed, **options.of_checkpoints())
    name = GIVEN.partition("/")[2]
    tags = {"method": given.tags["method"], "solver": settings.solver, "grid": settings.grid}
    samples = sample_node(bench, name, given.name, settings, tags)
    count = min(bench.evaluate.num_samples, settings.num_samples)
    return [given, *curve(bench, name, [samples], tags=tags, num_samples=count)]
