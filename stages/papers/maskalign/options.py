"""What MaskAlign is compared with, and the teacher that all of these align with."""

from __future__ import annotations

from pydantic import Field

from pipeline.stage import Settings
from stages.methods import table
from stages.settings.losses.maskalign import MaskRatio, MixLayers

METHODS = ("sit", "repa", "reg", "maskalign")


class ComparisonOptions(Settings):
    """Which trainings are compared, at equal steps and settings."""

    in_full: bool = Field(True, description="recipe full: train the other methods too")
    methods: tuple[table.choice("method", table.LOSSES), ...] = Field(
        METHODS,
        description="methods compared; edm and jit train networks of their own kinds, also on from "
        "networks.path",
    )
    steps: int = Field(
        1200,
        ge=1,
        le=10**8,
        description="optimizer steps of every method; where the recipe full does not score its own "
        "training at their steps, the others end at the last step up to here that it does score, "
        "at its first at the earliest",
    )
    num_checkpoints: int = Field(
        4,
        ge=1,
        le=1000,
        description="steps that are scored of every method, at equal distances; in the recipe full "
        "at steps that its own training is scored at too",
    )
    num_seeds: int = Field(
        3, ge=1, le=100, description="recipe train: seeds of training, counted from the run's own"
    )
    mask_ratios: tuple[MaskRatio, ...] = Field(
        (0.0, 0.25, 0.5, 0.75), description="recipe train: MaskAlign's mask ratios compared"
    )
    mix_layers: tuple[MixLayers, ...] = Field(
        (0, 1, 2, 3), description="recipe train: MaskAlign's mixing layers compared"
    )
    ablation_seeds: int = Field(
        3, ge=0, le=100, description="recipe train: seeds of these comparisons; 0 leaves them out"
    )
    ablation_steps: int | None = Field(
        None,
        ge=1,
        le=10**8,
        description="recipe train: optimizer steps of these comparisons, one of those that are "
        "scored of every method; unset is all",
    )
