"""Contractivity of solver steps: the largest singular value of a step's Jacobian.

Values above 1 say that a step drives neighbouring states apart (SteinDiff, arXiv 2606.07835).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stages.methods import grids
from stages.methods.path import Denoiser
from stages.methods.solvers import named
from stages.methods.solvers.trajectories import Solver, check_state, checked, trajectory


class StepNorms(NamedTuple):
    """Per step, over the batch: mean and maximum of the largest singular value, (num_steps,)."""

    mean: Tensor
    maximum: Tensor


def step_norms(
    denoiser: Denoiser,
    y: Tensor,
    levels: Tensor,
    solver: str | Solver = "dpmpp2m",
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> StepNorms:
    """Largest singular value of every step's Jacobian along the solver's own trajectories.

    For a solver of one evaluation a step this is the **one-step map with its history held
    constant**, J = r I + b_0 dD/dy at the point of the evaluation; for Heun J runs through both
    evaluations. With a look-ahead corrector (UniPC) the state that the step starts from is the
    redone one, r' y_prev + c_0 D + ..., of which D alone moves with the point: J = (r c_0 + b_0)
    dD/dy, from one predicted state to the next (**ours**: r I + b_0 dD/dy there is the map of no
    step). Samples must not interact in the denoiser (no batch statistics).
    y: (B, ...) at levels[0]. iterations: of the power method; 20 serve the mean, 40 the maximum.
    The estimate is a lower bound that rises with the iterations. Errors as `solvers.solve`.
    generator: draws the first vectors; None is a fresh one with seed 0.
    Attention runs in its plain (math) form, since the fused one has no second derivative.
    FloatingPointError, naming step and level, where the Jacobian holds NaN or infinity.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; the power method needs at least 1")
    check_state(denoiser, y)
    if not len(y):
        raise ValueError("y holds no states; give at least one to measure steps at")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    solver = named(solver)
    grid = grids.check(levels).tolist()
    norms = []
    with sdpa_kernel(SDPBackend.MATH):
        for advance in trajectory(denoiser, y, levels, solver):
            step = advance.step
            redo = solver.corrector(grid, step.index)

            def one_step(point: Tensor, step=step, redo=redo) -> Tensor:
                guarded = checked(denoiser, step.index, len(grid) - 1)
                output = solver.evaluate(guarded, point, grid, step.index)
                start = point if redo is None else redo[0] * output
                return step.ratio * start + step.weights[0] * output

            largest = largest_singular(one_step, step.outputs[0].point, iterations, generator)
            if not torch.isfinite(largest).all():
                raise FloatingPointError(
                    f"the step's Jacobian holds NaN or infinity at step {step.index + 1} of "
                    f"{len(grid) - 1}, level s={step.level:.6g}"
                )
            norms.append(largest)
    stacked = torch.stack(norms)
    return StepNorms(stacked.mean(1), stacked.amax(1))


def largest_singular(
    function: Callable[[Tensor], Tensor], y: Tensor, iterations: int, generator: torch.Generator
) -> Tensor:
    """Largest singular value of d function / dy at every sample of y (B, ...): (B,).

    Power iteration on J^T J. J^T w is one reverse pass; being linear in w, its own derivative in w
    gives J v as another, over a graph that is built once.
    """
    direction = torch.randn(
        y.shape, generator=generator, device=generator.device, dtype=torch.float64
    ).to(y)
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        value = function(point)
        w = torch.zeros_like(value, requires_grad=True)
        (transposed,) = torch.autograd.grad(value, point, w, create_graph=True)
    product = torch.zeros_like(direction)
    for _ in range(iterations):
        (product,) = torch.autograd.grad(transposed, w, _unit(direction), retain_graph=True)
        (direction,) = torch.autograd.grad(value, point, product, retain_graph=True)
    return product.flatten(1).norm(dim=1)


def _unit(x: Tensor) -> Tensor:
    """Every sample of x (B, ...) scaled to length 1."""
    norm = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return x / norm.reshape(-1, *[1] * (x.ndim - 1))
