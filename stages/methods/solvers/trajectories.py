"""The one loop that runs every solver, and what solvers and corrections are to it.

EDM coordinates (path.py). Every step is a linear combination of the state and of current and
cached outputs, newest first,

    T(y) = r y + sum_j b_j D_j,   r = s_next / s,

so that corrections, fits and diagnostics can read the terms of a step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.methods import grids
from stages.methods.path import Denoiser

Output = Callable[[Tensor], Tensor]
"""A solver's output at one step as a function of the state there."""


class Solver(Protocol):
    """What `trajectory` needs of a solver. `levels` is a list of floats that ends with 0."""

    name: str
    memory: int  # outputs that a step reads, the current one included

    def evaluations(self, num_levels: int) -> int:
        """Denoiser calls over a grid of num_levels levels above 0."""

    def check(self, levels: Sequence[float]) -> None:
        """Raise ValueError when this solver cannot run on this grid."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        """The output D_k of step k at y, differentiable in y."""

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        """b_0, b_1, ... of step k."""

    def corrector(self, levels: Sequence[float], k: int) -> tuple[float, ...] | None:
        """Weights over (D_k, D_k-1, ...) that redo step k-1 from its own state, or None."""


@dataclass(frozen=True)
class Evaluation:
    """One output D_j with the point and level it was made at, which corrections read.

    divergence: an estimate of E div D_j at that point, where a correction asked for it.
    """

    point: Tensor
    level: float
    output: Tensor
    divergence: float | None = None


@dataclass(frozen=True)
class Step:
    """Step k of a trajectory: proposal = r state + sum_j weights_j outputs_j."""

    index: int
    level: float
    next_level: float
    state: Tensor
    weights: tuple[float, ...]
    outputs: tuple[Evaluation, ...]  # newest first
    proposal: Tensor

    @property
    def ratio(self) -> float:
        return self.next_level / self.level


class Rectifier(Protocol):
    """A correction during one trajectory."""

    def evaluate(self, output: Output, y: Tensor, level: float) -> Evaluation:
        """Record output(y), with what the correction needs beside it."""

    def gamma(self, step: Step) -> float:
        """The factor of the residual: next state = state - gamma (state - proposal)."""


class Correction(Protocol):
    """A correction of large steps; immutable, it starts one `Rectifier` per trajectory."""

    def begin(
        self, solver: Solver, levels: Sequence[float], generator: torch.Generator | None
    ) -> Rectifier:
        """Raise ValueError where this correction does not belong to this solver or grid."""


@dataclass(frozen=True)
class Advance:
    """What `trajectory` yields: the step, its gamma (1 without correction) and where it led."""

    step: Step
    gamma: float
    state: Tensor


class Vanilla:
    """No correction: gamma = 1."""

    def begin(self, solver, levels, generator) -> "Vanilla":
        return self

    def evaluate(self, output: Output, y: Tensor, level: float) -> Evaluation:
        return Evaluation(y, level, output(y))

    def gamma(self, step: Step) -> float:
        return 1.0


class Finite:
    """Whether what was made is finite: on the CPU told at once; a device, which every question
    makes wait, is asked by `tell`, once for all."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Exception]] = []

    def require(self, values: Tensor, error: Exception) -> None:
        """Raise the error, here or in `tell`, unless all values are finite."""
        good = torch.isfinite(values).all()
        if not values.is_cpu:
            self._asked.append((good, error))
        elif not good:
            raise error

    def tell(self) -> None:
        """Raise the error of the first that was not."""
        asked, self._asked = self._asked, []
        good = torch.stack([one for one, _ in asked]).tolist() if asked else ()
        for one, (_, error) in zip(good, asked, strict=True):
            if not one:
                raise error


def check_state(
    denoiser: Denoiser, y: Tensor, name: str = "y", finite: Finite | None = None
) -> None:
    """Raise ValueError unless these are a denoiser and a batch of states to start from; `finite`
    is who is to tell whether they are finite."""
    if not callable(denoiser):
        raise ValueError(
            f"denoiser is {type(denoiser).__name__}; give a function denoiser(y, s) -> E[x0 | y]"
        )
    if not isinstance(y, Tensor):
        raise ValueError(
            f"{name} is {type(y).__name__}; give a torch tensor, as torch.as_tensor({name}) is"
        )
    if not y.is_floating_point() or not y.ndim:
        raise ValueError(
            f"{name} is {y.dtype} of shape {tuple(y.shape)}; give floating-point states (B, ...)"
        )
    said = finite or Finite()
    said.require(y, ValueError(f"{name} holds NaN or infinity; give finite states"))
    if finite is None:
        said.tell()


def checked(denoiser: Denoiser, k: int, num_levels: int, finite: Finite | None = None) -> Denoiser:
    """The denoiser with outputs of the state's type; raises where they are of another kind or
    shape, or not finite, which `finite` tells where it is given."""

    def call(y: Tensor, s: float) -> Tensor:
        version = None if y.is_inference() else y._version
        clean = denoiser(y, s)
        if version is not None and y._version != version:
            raise ValueError(
                "denoiser changed the state that it was given, as y *= c and y.mul_(c) do; let it "
                "return a new tensor, as y * c is"
            )
        if not isinstance(clean, Tensor):
            raise ValueError(
                f"denoiser returned {type(clean).__name__}; it must return one torch tensor, "
                "E[x0 | y] of the state's shape: wrap it in a function that picks that one"
            )
        if clean.shape != y.shape:
            raise ValueError(
                f"denoiser returned shape {tuple(clean.shape)} for a state of shape "
                f"{tuple(y.shape)}; it must return E[x0 | y] of the state's shape"
            )
        if clean.device != y.device or clean.is_complex() or clean.dtype == torch.bool:
            raise ValueError(
                f"denoiser returned {clean.dtype} on {clean.device} for a state of {y.dtype} on "
                f"{y.device}; it must return real numbers on the state's device"
            )
        where = f"step {k + 1} of {num_levels}, level s={s:.6g}"
        said = finite or Finite()
        said.require(clean, FloatingPointError(f"denoiser returned NaN or infinity at {where}"))
        if finite is None:
            said.tell()
        return clean.to(y.dtype)

    return call


def combine(r: float, y: Tensor, weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    """r y + sum_j weights_j outputs_j, over as many outputs as there are weights."""
    result = r * y
    for weight, output in zip(weights, outputs, strict=False):
        result = result + weight * output
    return result


@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    y: Tensor,
    levels: Tensor,
    solver: Solver,
    correction: Correction | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Advance]:
    """Run a solver and yield every step, with what corrections and diagnostics read.

    Arguments and errors as in `solvers.solve`, which names solvers; this takes the object.
    """
    finite = Finite()
    check_state(denoiser, y, finite=finite)
    grid = grids.check(levels).tolist()
    solver.check(grid)
    if not hasattr(correction := Vanilla() if correction is None else correction, "begin"):
        raise ValueError(
            f"correction is {type(correction).__name__}; give one of stein.py's, as "
            "calibrated(gammas) is"
        )
    rectifier = correction.begin(solver, grid, generator)
    num_levels = len(grid) - 1
    history: tuple[Evaluation, ...] = ()
    previous = y
    for k in range(num_levels):
        guarded = checked(denoiser, k, num_levels, finite)
        current = rectifier.evaluate(
            lambda point, k=k, guarded=guarded: solver.evaluate(guarded, point, grid, k), y, grid[k]
        )
        history = (current, *history)[: solver.memory]
        outputs = [past.output for past in history]
        redo = solver.corrector(grid, k)
        if redo is not None:
            y = combine(grid[k] / grid[k - 1], previous, redo, outputs)
        weights = solver.weights(grid, k)
        proposal = combine(grid[k + 1] / grid[k], y, weights, outputs)
        step = Step(k, grid[k], grid[k + 1], y, weights, history, proposal)
        gamma = rectifier.gamma(step)
        if not math.isfinite(gamma):
            finite.tell()
            raise FloatingPointError(
                f"gamma is {gamma} at step {k + 1} of {num_levels}, level s={grid[k]:.6g}: the "
                "denoiser's derivative is NaN or infinite there, or the states are too large"
            )
        previous = y
        y = proposal if gamma == 1 else y - gamma * (y - proposal)
        if k == num_levels - 1:
            finite.tell()
        yield Advance(step, gamma, y)
