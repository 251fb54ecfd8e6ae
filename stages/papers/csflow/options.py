"""What CSFlow's recipe and its part of the recipe full can be told."""

from __future__ import annotations

from pydantic import Field

from pipeline.stage import Settings
from stages.methods import table
from stages.settings.densities import Display

BASELINES = {name: place for name, place in table.DENSITY_GRIDS.items() if name != "csflow"}


class CSFlowOptions(Settings):
    """What CSFlow is compared with, and on which screen."""

    in_full: bool = Field(True, description="recipe full: compare its grid with the uniform one")
    mix: float = Field(
        0.4, gt=0, le=1, description="a, the share of a density in its grid and in fine-tuning"
    )
    more_mixes: tuple[float, ...] = Field(
        (0.2, 0.7, 1.0), description="recipe csflow: further a, in (0, 1], of CSFlow's grid"
    )
    baselines: tuple[table.choice("time density", BASELINES), ...] = Field(
        ("minsnr", "p2"), description="recipe csflow: densities compared at the same a, as grids"
    )
    fine_tuned: tuple[table.choice("time density", BASELINES), ...] = Field(
        ("minsnr", "p2"),
        description="recipe csflow: densities compared at the same a and equal steps in "
        "fine-tuning, beside CSFlow and the density trained with",
    )
    display: Display = Field(Display(), description="the screen")
    num_seeds: int = Field(
        3, ge=1, le=100, description="recipe csflow: seeds, counted from the run's own"
    )
    extra_steps: int = Field(
        400, ge=1, le=10**8, description="recipe csflow: optimizer steps of fine-tuning"
    )
