"""The nodes of what goes beyond the papers: one network, few-step solvers against the solver of its
whole trajectory, gammas around all of them, and CSFlow's grids beside the best one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.graph import Node
from stages.methods.table import SOLVERS
from stages.papers.beyond import compared
from stages.papers.beyond.compared import CSFLOW, GridSettings
from stages.papers.stein.recipe import CALIBRATED, PLAIN, Solved
from stages.recipes.given import model_node, model_nodes
from stages.recipes.nodes import extractor_nodes, prepare_nodes, settings_of
from stages.settings.densities import Screen
from stages.settings.solvers import UNIFORM, runnable

if TYPE_CHECKING:
    from stages.bench import Bench

WHOLE = "whole"


def compared_nodes(bench: Bench) -> Iterator[Node]:
    """Fits and calibrations, samples and scores of every seed, and grids."""
    options, made = bench.beyond, Solved(bench, model_node(bench).name)
    solvers = list(dict.fromkeys(options.solvers))
    yield from made.fits(WHOLE, options.nfes)
    curves = [(solver, PLAIN) for solver in (*solvers, WHOLE)]
    if bench.stein.target == "matched":
        curves += [(solver, CALIBRATED) for solver in (*solvers, WHOLE)]
        for solver in (*solvers, WHOLE):
            yield from (made.calibration(solver, nfe) for nfe in runnable(solver, options.nfes))
    for seed in range(bench.seed, bench.seed + options.num_seeds):
        yield made.referred(seed)
        for solver, correction in curves:
            yield from made.curve(solver, correction, options.nfes, seed)
    # A latent's frequencies are no picture's, so that CSFlow has no grid for it.
    seen = not bench.is_latent or bench.spectrum.allow_latent
    for nfe in options.grid_nfes if seen else ():
        yield _grids(bench, made, nfe)


def _grids(bench: Bench, made: Solved, nfe: int) -> Node:
    solving = made.solving(_at_equal_nfe(bench.beyond.solvers), nfe, grid=UNIFORM)
    sampled = CSFLOW in bench.sample.grids_in_use
    display = bench.sample.density.display if sampled else bench.csflow.display
    screen = Screen(**display.shared_with(Screen))
    more = {"memory": bench.stein.memory, "screen": screen}
    return Node(
        f"grids/{made.name}-nfe{nfe}",
        compared.STAGE,
        settings_of(GridSettings, bench.beyond, solving, **more),
        {"model": made.model, "trajectories": made.trajectory().name, "spectrum": "spectrum"},
        bench.resources.grids,
        {"method": made.name},
    )


def _at_equal_nfe(solvers: Sequence[str]) -> str:
    """The first solver whose steps take one evaluation, as those of the fitted weights do."""
    single = (solver for solver in solvers if SOLVERS[solver].per_step == 1)
    return next(single, GridSettings.model_fields["solver"].default)


def recipe(bench: Bench) -> list[Node]:
    """Beyond the papers: the solver of a whole trajectory, what corrections gain, the best grid."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench), *model_nodes(bench)]
    return [*base, *compared_nodes(bench)]
