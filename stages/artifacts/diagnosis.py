"""What MaskAlign's paper makes its case with, measured on a training's checkpoints and stored."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.artifact import Artifact

FILE = "diagnosis.json"


@dataclass(frozen=True)
class Measured:
    """One checkpoint, identified by the `step` of its training.

    full: how often each patch is among those with the largest alignment gradients, over images,
    every token present, (rows, columns) as lists. masked: the same where a mask leaves some out,
    None for a patch that no image kept.
    masked_alignment, full_alignment: L_alignment of the same tokens with the others masked and
    present. gap: their difference G, with its standard error over blocks of images.
    """

    step: int
    full: list[list[float]]
    masked: list[list[float | None]]
    max_min_ratio: float | None
    variation: float
    masked_max_min_ratio: float | None
    masked_variation: float
    masked_alignment: float
    full_alignment: float
    gap: float
    gap_error: float | None


class Diagnosis(Artifact):
    """Heatmaps and stability gaps of a training over its checkpoints."""

    def load(self) -> list[Measured]:
        """Checkpoints in the order of training."""
        return [
            Measured(**line) for line in json.loads((self.path / FILE).read_text(encoding="utf-8"))
        ]
