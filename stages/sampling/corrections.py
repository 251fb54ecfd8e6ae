"""Corrections of large steps: what they read, which solvers they go with, what makes them.

The place of a correction is a function of a `Given` that returns the solver and the correction to
sample with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.methods import table

if TYPE_CHECKING:
    from stages.artifacts.data import Data
    from stages.artifacts.schedule import Schedule
    from stages.methods.solvers.trajectories import Correction, Solver
    from stages.sampling.problem import Problem
    from stages.sampling.sample import SampleSettings

    Corrected = tuple[Solver, Correction | None]


@dataclass(frozen=True)
class Given:
    """What a correction is made from; of the inputs, those that it names. problem: has no
    network."""

    settings: SampleSettings
    solver: Solver
    problem: Problem
    data: Data | None
    schedule: Schedule | None


def none(given: Given) -> Corrected:
    return given.solver, None


def lookahead(given: Given) -> Corrected:
    from stages.methods.solvers.multistep import LookAhead

    return LookAhead(given.solver, f"{given.settings.solver}-lookahead"), None


def inputs(correction: str, solver: str) -> list[str]:
    """The optional inputs that samples by a solver with a correction cannot do without."""
    stored = ["schedule"] if solver in table.FITTED_SOLVERS else []
    return list(dict.fromkeys([*stored, *table.CORRECTIONS[correction].inputs]))


def refusal(correction: str, solver: str) -> str:
    """Why a correction does not go with a solver, and what to choose; empty where it does."""
    chosen, known = table.CORRECTIONS[correction], table.SOLVERS
    if correction != "none" and known[solver].stochastic:
        return "corrections are of the ODE's steps; set correction=none"
    if chosen.looks_ahead and not known[solver].multistep:
        multistep = ", ".join(sorted(name for name, entry in known.items() if entry.multistep))
        return f"it goes around a plain multistep solver; choose one of {multistep}"
    if chosen.over_batch and (base := known[solver].around):
        return (
            "an estimate on the running batch does not combine with the look-ahead corrector; "
            f"choose solver={base}, or correction=calibrated"
        )
    if correction == "calibrated" and known[solver].own_levels:
        return ""
    if correction != "none" and known[solver].counted_as:
        return "its weights are fitted without one; set correction=none"
    return ""
