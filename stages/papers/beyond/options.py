"""What the recipe beyond can be told."""

from __future__ import annotations

from pydantic import Field

from stages.methods import table
from stages.papers.beyond.compared import GridOptions
from stages.settings.solvers import NFE


class BeyondOptions(GridOptions):
    """Which evaluations, solvers and grids."""

    nfes: tuple[NFE, ...] = Field(
        (3, 5, 8), min_length=1, description="recipe beyond: network evaluations compared"
    )
    solvers: tuple[table.choice("solver", table.PLAIN_SOLVERS), ...] = Field(
        ("dpmpp2m", "unipc"), min_length=1, description="recipe beyond: solvers compared with"
    )
    grid_nfes: tuple[NFE, ...] = Field(
        (5,), description="recipe beyond: evaluations at which CSFlow's grids meet the best one"
    )
    num_seeds: int = Field(
        3, ge=1, le=100, description="recipe beyond: seeds of the noise, from the run's own on"
    )
