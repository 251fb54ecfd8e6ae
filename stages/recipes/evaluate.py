"""The nodes that scores need: the extractor, the features of every set, samples made elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
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
from stages.scoring import evaluate, external
from stages.scoring.evaluate import EvaluateSettings
from stages.scoring.external import ExternalSettings

if TYPE_CHECKING:
    from stages.bench import Bench


def external_nodes(bench: Bench) -> list[Node]:
    """The samples at `evaluate.path` and their scores.

    Raises UsageError where it is not set.
    """
    if bench.evaluate.path is None:
        raise UsageError(
            "the recipe evaluate scores samples made elsewhere: set evaluate.path to a folder of "
            "images or to an .npz file, or networks.path to a network that makes them"
        )
    settings = ExternalSettings(path=bench.evaluate.path)
    samples = Node(
        "external", external.STAGE, settings, {"data": pixels_node(bench)}, bench.resources.external
    )
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
    named = path.stem if path.suffix.lower() == ".npz" and not path.is_dir() else path.name
    return named or str(path)


def recipe(bench: Bench) -> list[Node]:
    """Samples made elsewhere, or those of a network trained elsewhere: their scores under the
    preset's protocol."""
    if bench.networks.path is None:
        return [*pixel_nodes(bench), *extractor_nodes(bench), *external_nodes(bench)]
    nodes = [*prepare_nodes(bench), *extractor_nodes(bench), *given_nodes(bench)]
    return nodes if bench.evaluate.path is None else [*nodes, *external_nodes(bench)]


def given_nodes(bench: Bench) -> list[Node]:
    """The network given, its samples as those of a training's checkpoints are made, and their
    scores."""
    given, options = given_node(bench), bench.sample
    settings = options.options(seed=bench.seed, **options.of_checkpoints())
    name = GIVEN.partition("/")[2]
    tags = {"method": given.tags["method"], "solver": settings.solver, "grid": settings.grid}
    samples = sample_node(bench, name, given.name, settings, tags)
    count = min(bench.evaluate.num_samples, settings.num_samples)
    return [given, *curve(bench, name, [samples], tags=tags, num_samples=count)]
