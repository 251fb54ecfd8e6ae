"""SteinDiff's corrections, each made from what a sample stage gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.methods import stein

if TYPE_CHECKING:
    from stages.sampling.corrections import Corrected, Given


def calibrated(given: Given) -> Corrected:
    stored, solver = given.schedule, given.settings.solver
    if (gammas := stored.load()).ndim > 1:
        raise ValueError(
            f"the schedule holds weights of solver '{solver}' and no gammas; connect gammas that "
            "were calibrated around them, or set correction=none"
        )
    return given.solver, stein.calibrated(gammas, stored.levels, solver)


def online(given: Given) -> Corrected:
    spectrum, mean = given.data.load(), given.problem.state_of(given.data.load().mu)
    more = {"num_probes": given.settings.num_probes, "coordinates": given.problem.coordinates}
    return given.solver, stein.online(mean, spectrum.V, **more)


def literal(given: Given) -> Corrected:
    settings = given.settings
    made = stein.literal(settings.gamma_min, settings.num_probes, given.problem.coordinates)
    return given.solver, made
