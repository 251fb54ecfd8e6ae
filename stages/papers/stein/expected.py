"""What calibrations, trajectories, fits and Lipschitz norms take: for plans, as
`stages.settings.costs` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.settings.costs import evaluated

if TYPE_CHECKING:
    from stages.papers.stein.calibrate import CalibrationSettings
    from stages.papers.stein.follow import FollowSettings
    from stages.papers.stein.lipschitz import LipschitzSettings
    from stages.papers.stein.trajectory import TrajectorySettings
    from stages.settings.costs import Estimate

# Evaluations that an iteration of the power method takes as long as: a product with the Jacobian
# and one with its transpose, through a graph that is kept.
ITERATION = 4


def calibrate(settings: CalibrationSettings, given: Mapping[str, Estimate]) -> Estimate:
    """Every step of the solver on all images; of trajectories, Heun's fine steps within it."""
    if settings.target == "matched":
        return evaluated(settings, given["model"], settings.num_images, settings.nfe)
    evaluations = settings.nfe * (2 * settings.substeps + 1)
    return evaluated(settings, given["model"], settings.num_states, evaluations)


def trajectory(settings: TrajectorySettings, given: Mapping[str, Estimate]) -> Estimate:
    """Heun's two evaluations a step."""
    count = settings.teacher_states
    return evaluated(settings, given["model"], count, 2 * settings.teacher_steps) | {
        "states": count
    }


def follow(settings: FollowSettings, given: Mapping[str, Estimate]) -> Estimate:
    """As many evaluations of the trajectories' states as the search may take."""
    states = given["trajectories"].get("states", 0)
    return evaluated(settings, given["model"], states, settings.tries * settings.nfe)


def lipschitz(settings: LipschitzSettings, given: Mapping[str, Estimate]) -> Estimate:
    """The power method at every step of every trajectory."""
    evaluations = settings.nfe * (1 + ITERATION * settings.iterations)
    return evaluated(settings, given["model"], settings.num_trajectories, evaluations)
