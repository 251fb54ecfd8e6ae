"""What SteinDiff's recipe and its part of the recipe full can be told."""

from __future__ import annotations

from pydantic import Field

from stages.methods import table
from stages.papers.stein.calibrate import CalibrationOptions
from stages.papers.stein.follow import FollowOptions
from stages.papers.stein.lipschitz import PowerIteration
from stages.papers.stein.trajectory import TrajectoryOptions
from stages.settings.solvers import NFE


class SteinOptions(CalibrationOptions, TrajectoryOptions, FollowOptions, PowerIteration):
    """Which solvers and corrections are compared, what they are calibrated on, contractivity."""

    in_full: bool = Field(
        True, description="recipe full: beside the plain solvers the calibrated and the fitted ones"
    )
    solvers: tuple[table.choice("solver", table.PLAIN_SOLVERS | table.NOISY_SOLVERS), ...] = Field(
        tuple(table.PLAIN_SOLVERS | table.NOISY_SOLVERS),
        min_length=1,
        description="recipe stein: solvers compared",
    )
    corrections: tuple[table.choice("correction", table.CORRECTIONS), ...] = Field(
        tuple(table.CORRECTIONS),
        min_length=1,
        description="recipe stein: corrections compared, with every solver they go with",
    )
    fitted: tuple[table.choice("solver", table.FITTED_SOLVERS), ...] = Field(
        ("whole",), description="recipe full: solvers whose weights are fitted to the model"
    )
    more_fitted: tuple[table.choice("solver", table.FITTED_SOLVERS), ...] = Field(
        ("fitted",), description="recipe stein: and these; fitted is step by step to fine solutions"
    )
    nfes: tuple[NFE, ...] = Field(
        (3, 5, 6, 8, 10, 20), min_length=1, description="recipe stein: network evaluations compared"
    )
    num_seeds: int = Field(
        3, ge=1, le=100, description="recipe stein: seeds of the noise, counted from the run's own"
    )
    lipschitz_solvers: tuple[table.choice("solver", table.PLAIN_SOLVERS), ...] = Field(
        ("dpmpp2m",), description="solvers whose steps' singular values are measured"
    )
    lipschitz_nfe: int = Field(6, ge=1, le=10_000, description="at this NFE, in every recipe")
    more_lipschitz_nfes: tuple[NFE, ...] = Field((100,), description="recipe stein: and at these")
