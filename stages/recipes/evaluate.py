"""The nodes that scores need: the extractor, the features of every set, samples made elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.recipes.nodes import extractor_nodes, pixel_nodes, pixels_node, settings_of
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
            "images or to an .npz file"
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
    """Samples made elsewhere: their scores under the preset's protocol."""
    return [*pixel_nodes(bench), *extractor_nodes(bench), *external_nodes(bench)]
