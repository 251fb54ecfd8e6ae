"""Diffusion ODE solvers in EDM coordinates: y = x0 + s eps, denoiser D(y, s) = E[x0 | y].

The front door: solvers by name, their true number of function evaluations (NFE, the number of
denoiser calls), and `solve`. Deterministic; no noise is added. The formulas are in multistep.py,
the loop in trajectories.py, solvers fitted to a model in fitted.py and whole.py, names in table.py.
"""

import difflib
from importlib import import_module

import torch
from torch import Tensor

from stages.methods import table
from stages.methods.path import Denoiser
from stages.methods.solvers.fitted import fit, fit_heun
from stages.methods.solvers.multistep import Heun, LookAhead, Multistep
from stages.methods.solvers.trajectories import Correction, Solver, trajectory
from stages.methods.solvers.whole import fit_whole

__all__ = [
    "Heun",
    "LookAhead",
    "Multistep",
    "evaluations",
    "fit",
    "fit_heun",
    "fit_whole",
    "levels_for_evaluations",
    "named",
    "solve",
]


def named(solver: str | Solver) -> Solver:
    """The solver of this name, or the solver object itself. Raises ValueError."""
    known = table.PLAIN_SOLVERS
    if hasattr(solver, "weights"):
        return solver
    if not isinstance(solver, str):
        raise ValueError(
            f"solver is {type(solver).__name__}; give a name ({', '.join(known)}) or a solver, as "
            "fit_whole returns"
        )
    if solver not in known:
        close = difflib.get_close_matches(solver, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"solver '{solver}' is unknown; {hint}known solvers: {', '.join(known)}")
    module, _, attribute = known[solver].place.partition(":")
    return getattr(import_module(module), attribute)


def evaluations(solver: str | Solver, num_levels: int) -> int:
    """NFE of a solver over a grid of num_levels levels above 0. Raises ValueError below 1."""
    if num_levels < 1:
        raise ValueError(f"num_levels is {num_levels}; a grid needs at least 1 level above 0")
    return named(solver).evaluations(num_levels)


def levels_for_evaluations(solver: str | Solver, nfe: int) -> int:
    """The number of levels above 0 that takes exactly `nfe` denoiser calls.

    Raises ValueError, naming the nearest, for an NFE that the solver cannot make.
    """
    num_levels = 1
    while evaluations(solver, num_levels) < nfe:
        num_levels += 1
    made = evaluations(solver, num_levels)
    if made == nfe:
        return num_levels
    nearest = [made] if num_levels == 1 else [evaluations(solver, num_levels - 1), made]
    raise ValueError(
        f"solver '{named(solver).name}' cannot make {nfe} evaluations; the nearest it can make: "
        + " and ".join(map(str, nearest))
    )


def solve(
    denoiser: Denoiser,
    y: Tensor,
    levels: Tensor,
    solver: str | Solver = "dpmpp2m",
    correction: Correction | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Integrate the probability-flow ODE from y at levels[0] to level 0; returns the end points.

    denoiser: denoiser(y, s) -> E[x0 | y] of y's shape, s a float. Guidance, velocity networks and
        class tokens come in as denoisers, see path.py.
    y: (B, ...), x0 + levels[0] eps; for noise z ~ N(0, I) pass levels[0] * z.
    levels: 1-D, descending to 0; see grids.py.
    solver: one of `table.PLAIN_SOLVERS`, or a solver object such as `fit` returns.
    correction: one of stein.py's.
    generator: randomness of corrections that draw probes; the solvers draw nothing.

    Raises ValueError for levels that do not descend to 0, an unknown solver, a correction or a
    fitted solver made for another grid; FloatingPointError, naming step and level, when the
    denoiser returns NaN or infinity.
    """
    for advance in trajectory(denoiser, y, levels, named(solver), correction, generator):
        y = advance.state
    return y
