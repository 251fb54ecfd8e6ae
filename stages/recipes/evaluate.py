"""The nodes that scores need: the extractor, the features of every set, samples made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

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
from stages.scoring import evaluate, external, published
from stages.scoring.evaluate import EvaluateSettings
from stages.scoring.external import ExternalSettings
from stages.scoring.published import PublishedSettings
from stages.settings.protocols import CLEAN

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


def published_nodes(bench: Bench) -> list[Node]:
    """The samples at `evaluate.path` and their scores under a published protocol; no data set."""
    if bench.networks.path is not None:
        raise UsageError(
            f"networks.path={bench.networks.path} and evaluate.protocol={bench.evaluate.protocol} "
            "do not go together: score the network's samples without it, write them with `python "
            "-m pipeline export`, and set evaluate.path to them in place of networks.path"
        )
    samples = samples_node(bench, {})
    try:
        settings = settings_of(PublishedSettings, bench.evaluate)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        words = problem.get("ctx", {}).get("error", problem["msg"])
        raise UsageError(f"evaluate: {words}") from error
    scores = Node(
        "published/external",
        published.STAGE,
        settings,
        {"samples": [samples.name]},
        bench.resources.published,
        tags={"method": name_of(Path(bench.evaluate.path)), "protocol": settings.protocol},
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
    preset's protocol; of samples made elsewhere under a published one too."""
    if bench.evaluate.protocol != CLEAN:
        return published_nodes(bench)
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
