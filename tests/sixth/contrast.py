"""The stage `contrast`: the standard deviation of the first images of both parts."""

from __future__ import annotations

import json

from pydantic import Field

from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.data import Data
from stages.artifacts.described import DescribedArtifact


class ContrastSettings(Settings):
    """The stage's settings."""

    num_images: int = Field(32, ge=2, description="images measured of each part")


class ContrastOptions(ContrastSettings):
    """What a preset says of it."""

    in_full: bool = Field(True, description="recipe full: measure it too")


class Contrast(DescribedArtifact):
    """Facts: train and test, in units of pixels in [-1, 1]."""

    facts = "contrast.json"


def run(context: Context) -> Result:
    """Measure both parts."""
    data = context.inputs["data"].load()
    first = slice(context.settings.num_images)
    found = {part: getattr(data, part)[first].std().item() for part in ("train", "test")}
    (context.path / Contrast.facts).write_text(json.dumps(found))
    return Result(metrics={f"contrast_{part}": value for part, value in found.items()})


STAGE = Stage(
    name="contrast",
    settings=ContrastSettings,
    output=Contrast,
    run="stages.papers.sixth.contrast:run",
    inputs={"data": Input(Data)},
    metrics=lambda node: ("contrast_train", "contrast_test"),
)
