"""What is told to the methods put together."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.stage import Settings
from stages.settings.solvers import NFE


class CombinedOptions(Settings):
    """Where the methods are put together."""

    in_full: bool = Field(
        True,
        description="recipe full: MaskAlign, CSFlow's grid and the calibrated correction together "
        "and each alone, where a checkpoint of train has as many steps as MaskAlign's training",
    )
    nfes: tuple[NFE, ...] = Field((5,), min_length=1, description="network evaluations compared")

    @field_validator("nfes")
    @classmethod
    def _ascending(cls, nfes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(nfes)))
