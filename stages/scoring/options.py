"""What a preset says of scores: those against the data, and those under published protocols."""

from __future__ import annotations

from pydantic import Field

from stages.scoring.evaluate import EvaluateOptions
from stages.settings.protocols import ProtocolOptions


class Evaluation(EvaluateOptions, ProtocolOptions):
    """How sets are scored, and samples made elsewhere that are scored too."""

    path: str | None = Field(
        None,
        description="samples made elsewhere, of the data set's size: a folder of image files or "
        "an .npz file",
    )
