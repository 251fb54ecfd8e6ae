"""Solvers whose coefficients are fitted to one model on one grid (ours).

Offline, on a batch of noise, the model's own fine solution over each large step is the target, and
the step's coefficients are the least-squares ones. No data, no divergence, no derivative is
needed, and a fitted solver takes the evaluations of the plain one. The weights belong to the model
and the grid they were fitted on: another grid is refused here, another model by whoever stores
them. For methods.md section 3, "trajectory-fitted multistep".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import grids
from stages.methods.path import Denoiser
from stages.methods.solvers.multistep import Heun, first_order, ratio
from stages.methods.solvers.trajectories import check_state, checked, combine


def check_grid(levels: Sequence[float], fitted: Tensor, name: str) -> None:
    """Refuse a grid other than the one that something was made for (relative tolerance 1e-6)."""
    given = torch.as_tensor(levels, dtype=torch.float64)
    if given.shape != fitted.shape or not torch.allclose(given, fitted.double(), rtol=1e-6, atol=0):
        raise ValueError(
            f"{name} was made for another grid ({len(fitted) - 1} levels from {fitted[0]:.6g}, "
            f"not these {len(given) - 1} from {given[0]:.6g}); make it again for this one"
        )


@dataclass(frozen=True, eq=False)
class FittedMultistep:
    """T = r y + sum_(j<H) b_j D_(k-j) with fitted b; made by `fit`, taken by `solve`.

    levels: (N+1,) float64, the grid it was fitted on. coefficients: (N, H) float64, row k the
    b of step k, newest output first, zero where the history is shorter.
    """

    levels: Tensor
    coefficients: Tensor
    name: str = "fitted"

    @property
    def memory(self) -> int:
        return self.coefficients.shape[1]

    def evaluations(self, num_levels: int) -> int:
        return num_levels

    def check(self, levels: Sequence[float]) -> None:
        check_grid(levels, self.levels, f"solver '{self.name}'")

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        return denoiser(y, levels[k])

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return tuple(self.coefficients[k, : k + 1].tolist())

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


@dataclass(frozen=True, eq=False)
class FittedHeun:
    """Heun's step with its two weights fitted: T = r y + w_0 D(y, s) + w_1 D(y', s_next).

    y' is Euler's point, as in `Heun`; the last step is Euler's. Made by `fit_heun`.
    levels: (N+1,) float64. coefficients: (N, 2) float64; the last row is (1, 0).
    """

    levels: Tensor
    coefficients: Tensor
    name: str = "fitted-heun"
    memory: int = 1

    def evaluations(self, num_levels: int) -> int:
        return Heun().evaluations(num_levels)

    def check(self, levels: Sequence[float]) -> None:
        check_grid(levels, self.levels, f"solver '{self.name}'")

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        outputs = Heun().outputs(denoiser, y, levels, k)
        weights = self.coefficients[k].tolist()
        return combine(0, y, weights, outputs) / (1 - ratio(levels, k))

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return first_order(levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


def fine_solution(
    denoiser: Denoiser, y: Tensor, start: float, stop: float, substeps: int
) -> Tensor:
    """The model's own solution from level start to level stop > 0: Heun, log-spaced substeps."""
    logs = torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    levels = (start * (stop / start) ** logs).tolist()
    for k in range(substeps):
        output = Heun().evaluate(denoiser, y, levels, k)
        y = combine(ratio(levels, k), y, first_order(levels, k), [output])
    return y


def fit(
    denoiser: Denoiser, y: Tensor, levels: Tensor, memory: int = 4, substeps: int = 16
) -> FittedMultistep:
    """Fit a multistep solver of `memory` outputs to this model and this grid.

    y: (B, ...) noise states at levels[0], 256 to 1,000 of them. At each step the target is the
    fine solution from the current states over that step (`substeps` Heun substeps); b is fitted
    over all coordinates, and the states advance with the fitted step. The last step is D.
    Takes about 2 N substeps evaluations of the batch. Raises as `solve` does.
    """
    _check_counts(memory, substeps)

    def outputs(guarded: Denoiser, y: Tensor, grid: list[float], k: int, history: list[Tensor]):
        return [guarded(y, grid[k]), *history][:memory]

    grid = grids.check(levels)
    return FittedMultistep(grid, _fit_steps(denoiser, y, grid.tolist(), memory, substeps, outputs))


def fit_heun(denoiser: Denoiser, y: Tensor, levels: Tensor, substeps: int = 16) -> FittedHeun:
    """Fit the two weights of each of Heun's steps; arguments and errors as in `fit`."""
    _check_counts(1, substeps)

    def outputs(guarded: Denoiser, y: Tensor, grid: list[float], k: int, history: list[Tensor]):
        return Heun().outputs(guarded, y, grid, k)

    grid = grids.check(levels)
    return FittedHeun(grid, _fit_steps(denoiser, y, grid.tolist(), 2, substeps, outputs))


@torch.no_grad()
def _fit_steps(
    denoiser: Denoiser,
    y: Tensor,
    grid: list[float],
    width: int,
    substeps: int,
    outputs_at: Callable[..., list[Tensor]],
) -> Tensor:
    """Least-squares coefficients (N, width) of every step over the outputs of outputs_at."""
    check_state(denoiser, y)
    if not len(y):
        raise ValueError("y holds no states; give 256 to 1,000 to fit weights to")
    num_levels = len(grid) - 1
    coefficients = torch.zeros(num_levels, width, dtype=torch.float64)
    coefficients[-1, 0] = 1.0
    outputs: list[Tensor] = []
    for k in range(num_levels - 1):
        guarded = checked(denoiser, k, num_levels)
        r = ratio(grid, k)
        outputs = outputs_at(guarded, y, grid, k, outputs)
        target = fine_solution(guarded, y, grid[k], grid[k + 1], substeps)
        weights = _least_squares(outputs, target - r * y)
        coefficients[k, : len(weights)] = weights
        y = combine(r, y, weights.tolist(), outputs)
    return coefficients


def _least_squares(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """argmin_b |sum_j b_j outputs_j - target|^2, of least norm where outputs coincide."""
    columns = torch.stack([output.flatten().double() for output in outputs], dim=1)
    rcond = 10 * torch.finfo(target.dtype).eps
    solution = torch.linalg.lstsq(
        columns.cpu(), target.flatten().double().cpu()[:, None], rcond=rcond, driver="gelsd"
    )
    return solution.solution[:, 0]


def _check_counts(memory: int, substeps: int) -> None:
    if memory < 1:
        raise ValueError(f"memory is {memory}; a step needs at least 1 output")
    if substeps < 1:
        raise ValueError(f"substeps is {substeps}; the fine solution needs at least 1")
