"""Which grid of levels is best for a model: how far from its own samples each leaves a solver.

So that grids alone are compared, every grid gets the weights that are best on it, fitted step by
step to the model's trajectory (whole.py); the best grid is searched by Gauss and Newton's method on
the logarithms of its inner levels, derivatives by differences. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stages.methods.path import Denoiser
from stages.methods.solvers.divergence import Coordinates, chosen
from stages.methods.solvers.refined import DAMPING, FARTHEST, LOOSER, TIGHTER, TRIALS, Steps
from stages.methods.solvers.trajectories import Solver
from stages.methods.solvers.whole import Teacher, by_step

CHANGE = 0.03  # of ln of a level, by which derivatives are taken
ENOUGH = 5e-3  # relative gain of a round below which the search ends


@torch.no_grad()
def left_by(
    denoiser: Denoiser,
    of: Teacher,
    levels: Sequence[float],
    memory: int = 4,
    solver: Solver | None = None,
    coordinates: Coordinates = None,
) -> Tensor:
    """What a grid leaves at level 0 to the model's own end: (B, n), difference by difference.

    solver: a plain one; None fits weights to the grid.
    """
    from stages.methods.solvers import solve

    if solver is None:
        end, _ = by_step(denoiser, of, list(levels), memory, coordinates)
    else:
        grid = torch.tensor(list(levels), dtype=torch.float64)
        end = solve(denoiser, of.states[0], grid, solver)
    return chosen(end - of.states[-1], coordinates)


def best_levels(
    denoiser: Denoiser,
    of: Teacher,
    start: Sequence[float],
    memory: int = 4,
    rounds: int = 12,
    coordinates: Coordinates = None,
) -> tuple[float, ...]:
    """The grid of least error that is found from `start`, whose ends stay.

    A round takes N - 1 fits of N evaluations of the states, and one more or few.
    """

    def missing(levels: Sequence[float]) -> Tensor:
        return left_by(denoiser, of, levels, memory, None, coordinates).flatten()

    levels, damping = tuple(start), DAMPING
    left = missing(levels)
    for _ in range(rounds if len(levels) > 2 else 0):
        columns = []
        for k in range(1, len(levels) - 1):
            change = min(CHANGE, 0.3 * math.log(levels[k - 1] / levels[k]))
            columns.append((missing(_scaled(levels, {k: change})) - left) / change)
        derived, before = torch.stack(columns), left.norm().item()
        products = derived @ derived.T
        for _ in range(TRIALS):
            damped = products + damping * torch.diag(products.diagonal().clamp_min(1e-300))
            move = torch.linalg.lstsq(damped, -(derived @ left)[:, None]).solution[:, 0]
            moves = dict(enumerate(move.clamp(-FARTHEST, FARTHEST).tolist(), start=1))
            moved = _scaled(levels, moves)
            if Steps(moved, moved[:-1], ()).descend:
                tried = missing(moved)
                if tried.norm().item() < before:
                    levels, left, damping = moved, tried, damping * LOOSER
                    break
            damping *= TIGHTER
        if left.norm().item() > (1 - ENOUGH) * before:
            break
    return levels


def _scaled(levels: Sequence[float], logs: dict[int, float]) -> tuple[float, ...]:
    return tuple(level * math.exp(logs.get(k, 0.0)) for k, level in enumerate(levels))


def change_of_rms(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """ln of the ratio of two root mean squares over the same states, (B, n) each, with one standard
    error by their influence values, state by state."""
    a, b = (left.square().mean(1) for left in (ours, theirs))
    influence = (a / a.mean() - b / b.mean()) / 2
    error = influence.std().item() / math.sqrt(len(a))
    return 0.5 * math.log((a.mean() / b.mean()).item()), error
