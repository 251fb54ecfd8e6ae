"""Samplers that add noise on a grid of levels: Euler ancestral and EDM's stochastic churn.

EDM coordinates, y = x0 + s eps, levels descending to 0, as for `solve`; like the SDE of sde.py they
take their noise from `Draws`, whose step k + 1 belongs to step k of the grid, so that a sample's
noise depends on its seed and index alone and `draws.at(0)` is left to the initial state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import grids
from stages.methods.draws import Draws
from stages.methods.path import Denoiser
from stages.methods.solvers.trajectories import Finite, check_state, checked

__all__ = ["Churn", "ancestral", "ancestral_step", "churned"]


@dataclass(frozen=True)
class Churn:
    """EDM's parameters. amount: S_churn, shared by all steps; noise is added at levels from
    `lowest` (S_min) to `highest` (S_max), of standard deviation `noise` (S_noise). Those of Karras
    et al. 2022, Table 5, for ImageNet-64."""

    amount: float = 40.0
    lowest: float = 0.05
    highest: float = 50.0
    noise: float = 1.003

    def gamma(self, level: float, num_levels: int) -> float:
        """By how much of itself a level is raised: at most 2^(1/2) - 1."""
        if not self.lowest <= level <= self.highest:
            return 0.0
        return min(self.amount / num_levels, math.sqrt(2) - 1)


PUBLISHED = Churn()


def ancestral_step(s: float, s_next: float) -> tuple[float, float]:
    """(s_down, s_up), s_down^2 + s_up^2 = s_next^2: the level that a step goes down to, and the
    noise added there. s_up is the standard deviation of q(y_next | y, x0) of the forward chain (Ho
    et al. 2020, eq. 7, in EDM coordinates; eta = 1 in Song et al. 2021a, eq. 16)."""
    up = min(s_next, math.sqrt(s_next**2 * (s**2 - s_next**2)) / s)
    return math.sqrt(max(s_next**2 - up**2, 0.0)), up


@torch.no_grad()
def ancestral(denoiser: Denoiser, y: Tensor, levels: Tensor, draws: Draws) -> Tensor:
    """Euler's step down to s_down, then noise of s_up: one evaluation a step.

    y: (B, ...) at levels[0]. Raises as `solve` does.
    """
    finite = Finite()
    check_state(denoiser, y, finite=finite)
    grid = grids.check(levels).tolist()
    num_levels = len(grid) - 1
    for k in range(num_levels):
        clean = checked(denoiser, k, num_levels, finite)(y, grid[k])
        down, up = ancestral_step(grid[k], grid[k + 1])
        y = clean + (down / grid[k]) * (y - clean)
        if up > 0:
            y = y + up * draws.at(k + 1).noise(y.shape[1:]).to(y)
    finite.tell()
    return y


@torch.no_grad()
def churned(
    denoiser: Denoiser, y: Tensor, levels: Tensor, draws: Draws, churn: Churn = PUBLISHED
) -> Tensor:
    """Karras et al. 2022, Algorithm 2: noise up to a higher level, then Heun's step from there;
    2N - 1 evaluations of N levels above 0.

    y: (B, ...) at levels[0]. With churn.amount 0 it is Heun. Raises as `solve` does.
    """
    finite = Finite()
    check_state(denoiser, y, finite=finite)
    grid = grids.check(levels).tolist()
    num_levels = len(grid) - 1
    for k in range(num_levels):
        call = checked(denoiser, k, num_levels, finite)
        s, s_next = grid[k], grid[k + 1]
        raised = s * (1 + churn.gamma(s, num_levels))
        if raised > s:
            xi = churn.noise * draws.at(k + 1).noise(y.shape[1:]).to(y)
            y = y + math.sqrt(raised**2 - s**2) * xi
        slope = (y - call(y, raised)) / raised
        ahead = y + (s_next - raised) * slope
        if s_next > 0:
            after = (ahead - call(ahead, s_next)) / s_next
            ahead = y + (s_next - raised) * (slope + after) / 2
        y = ahead
    finite.tell()
    return y
