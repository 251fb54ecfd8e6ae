"""What a comparison of grids takes: for plans, as `stages.settings.costs` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.settings.costs import evaluated

if TYPE_CHECKING:
    from stages.papers.beyond.compared import GridSettings
    from stages.settings.costs import Estimate


def grids(settings: GridSettings, given: Mapping[str, Estimate]) -> Estimate:
    """On half of the states two searches, a fit for each inner level a round; every grid there,
    and on the other half with its own weights and with the plain solver's."""
    states = given["trajectories"].get("states", 0) / 2
    searches = 2 * settings.grid_rounds * settings.nfe
    compared = 3 * (1 + len(settings.grid_mixes) * len(settings.grid_displays))
    return evaluated(settings, given["model"], states, (searches + compared) * settings.nfe)
