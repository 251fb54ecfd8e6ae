"""The weights and levels of a few-step solver, moved together towards the model's own end states.

Levenberg and Marquardt's method on everything that the solver has: the weights of every step, its
inner levels, and the level that the network is told at each (ours). What is made least is the
distance at level 0 to the model's fine solution from the same noise. Derivatives are differences:
the solver runs again from the step on that a change reaches, so that none through the network is
needed. For methods.md section 9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from stages.methods.path import Denoiser
from stages.methods.solvers.divergence import Coordinates, chosen
from stages.methods.solvers.trajectories import checked, combine

CHANGE = 0.01  # of a weight, in units of what its output moves; twice that in ln of a level
FARTHEST = 0.5  # that a round moves the logarithm of a level
DAMPING, LOOSER, TIGHTER, TRIALS = 1e-3, 0.2, 5.0, 6
ENOUGH = 5e-3  # relative gain of a round below which the search ends
NEAREST = 1e-3  # of two levels, in ln s


@dataclass(frozen=True)
class Steps:
    """All that a solver has. levels: (N+1), descending to 0. told: (N), what the network is told of
    them. weights: of every step, newest output first."""

    levels: tuple[float, ...]
    told: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def ratio(self, k: int) -> float:
        return self.levels[k + 1] / self.levels[k]

    @property
    def descend(self) -> bool:
        """Whether the levels fall, by steps that are no rounding."""
        logs = [math.log(level) for level in self.levels[:-1]]
        return all(b < a - NEAREST for a, b in pairwise(logs))


@dataclass(frozen=True)
class Passed:
    """States (N+1) and outputs (N) on the way of a batch."""

    states: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def end(self) -> Tensor:
        return self.states[-1]


def passed(denoiser: Denoiser, steps: Steps, so_far: Passed, k: int = 0) -> Passed:
    """The way on from step k, whose state and what was before it `so_far` has."""
    states, outputs = list(so_far.states[: k + 1]), list(so_far.outputs[:k])
    num_levels = len(steps.told)
    for j in range(k, num_levels):
        outputs.append(checked(denoiser, j, num_levels)(states[j], steps.told[j]))
        states.append(combine(steps.ratio(j), states[j], steps.weights[j], outputs[::-1]))
    return Passed(tuple(states), tuple(outputs))


def root_mean_square(difference: Tensor, coordinates: Coordinates = None) -> float:
    """Over the batch and the chosen coordinates."""
    return chosen(difference, coordinates).square().mean().sqrt().item()


@torch.no_grad()
def refined(
    denoiser: Denoiser,
    steps: Steps,
    start: Tensor,
    end: Tensor,
    evaluations: int,
    coordinates: Coordinates = None,
) -> Steps:
    """The steps nearest to `end` that are found from `steps`.

    start: (B, ...) at the first level. end: the model's own states at level 0 from there.
    evaluations: of the batch, at most, but for the round that passes them. coordinates: in which
    the distance is taken; None for all.
    """
    counted = Counted(denoiser)
    way = passed(counted, steps, Passed((start,), ()))
    missing = chosen(way.end - end, coordinates).flatten()
    num_weights = sum(map(len, steps.weights))
    damping, columns, fresh = DAMPING, None, False
    while counted.calls < evaluations and missing.any():
        if columns is None:
            derived = _derivatives(counted, steps, way, coordinates)
            columns = torch.stack([chosen(d, coordinates).flatten() for d in derived])
            fresh = True
        products, slope, before = columns @ columns.T, columns @ missing, missing.norm().item()
        for _ in range(TRIALS if fresh else 1):
            move = _damped(products, slope, damping)
            move[num_weights:].clamp_(-FARTHEST, FARTHEST)
            moved = _moved(steps, move)
            if moved.descend:
                tried = passed(counted, moved, Passed((start,), ()))
                left = chosen(tried.end - end, coordinates).flatten()
                if left.norm().item() < before:
                    columns = _broyden(columns, products.diagonal(), move, left - missing)
                    steps, way, missing, damping = moved, tried, left, damping * LOOSER
                    break
            damping *= TIGHTER
        if missing.norm().item() > (1 - ENOUGH) * before:
            if fresh:
                break
            columns = None
        fresh = False
    return steps


@dataclass
class Counted:
    """A denoiser that counts its calls."""

    denoiser: Denoiser
    calls: int = 0

    def __call__(self, y: Tensor, s: float) -> Tensor:
        self.calls += 1
        return self.denoiser(y, s)


def _derivatives(
    denoiser: Denoiser, steps: Steps, way: Passed, coordinates: Coordinates
) -> Iterator[Tensor]:
    """Of the end by every weight, step by step, and by ln of every inner level and of what is told
    there."""
    last = len(steps.told) - 1
    for k, weights in enumerate(steps.weights):
        for output in way.outputs[k::-1][: len(weights)]:
            if k == last:
                yield output
                continue
            # A change that moves the next state by a share of its level, or of the data.
            size = max(1e-6, root_mean_square(output, coordinates))
            change = CHANGE * min(1.0, max(0.05, steps.levels[k + 1])) / size
            states = (*way.states[: k + 1], way.states[k + 1] + change * output)
            further = passed(denoiser, steps, Passed(states, way.outputs), k + 1)
            yield (further.end - way.end) / change
    change = 2 * CHANGE
    for k in range(1, last + 1):
        for name, first in (("levels", k - 1), ("told", k)):
            values = list(getattr(steps, name))
            values[k] *= math.exp(change)
            further = passed(denoiser, replace(steps, **{name: tuple(values)}), way, first)
            yield (further.end - way.end) / change


def _damped(products: Tensor, slope: Tensor, damping: float) -> Tensor:
    """The damped move of least squares (P,)."""
    diagonal = products.diagonal()
    damped = products + damping * torch.diag(diagonal + 1e-12 * diagonal.max())
    return torch.linalg.lstsq(damped.cpu(), -slope[:, None].cpu()).solution[:, 0]


def _broyden(columns: Tensor, squares: Tensor, move: Tensor, change: Tensor) -> Tensor:
    """Derivatives (P, M) that tell what a move changed, otherwise as near to the old as can be
    (Broyden 1965), in units in which all of them are of one size."""
    move = move.to(columns)
    scaled = squares * move
    return columns + torch.outer(scaled / (scaled @ move), change - move @ columns)


def _moved(steps: Steps, move: Tensor) -> Steps:
    moves = iter(move.tolist())
    weights = tuple(tuple(w + next(moves) for w in of_step) for of_step in steps.weights)
    levels, told = list(steps.levels), list(steps.told)
    for k in range(1, len(told)):
        for values in (levels, told):
            values[k] *= math.exp(next(moves))
    return Steps(tuple(levels), tuple(told), weights)
