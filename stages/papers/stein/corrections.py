"""SteinDiff's corrections, each made from what a sample stage gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.methods import stein

if TYPE_CHECKING:
    from stages.sampling.corrections import Corrected, Given


def calibrated(given: Given) -> Corrected:
    stored = given.schedule
    return given.solver, stein.calibrated(stored.load(), stored.levels, given.settings.solver)


def online(given: Given) -> Corrected:
    spectrum, mean = given.data.load(), given.problem.state_of(given.data.load().mu)
    more = {"num_probes": given.settings.num_probes, "coordinates": given.problem.coordinates}
    return given.solver, stein.online(mean, spectrum.V, **more)


def literal(given: Given) -> Corrected:
    settings = given.settings
    made = stein.literal(settings.gamma_min, settings.num_probes, given.problem.coordinates)
    return given.solver, made
