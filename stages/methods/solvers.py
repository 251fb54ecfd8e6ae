"""Diffusion ODE solvers in EDM coordinates: y = x0 + s eps, denoiser D(y, s) = E[x0 | y].

Every solver's step is a linear combination of the state and of current and cached outputs,

    T(y) = r y + sum_j b_j D_j,   r = s_next / s,   sum_j b_j = 1 - r,

newest output first, so that one loop (`trajectory`) runs them all and corrections (`stein.py`),
fits and diagnostics can read the terms. Deterministic; no noise is added.

The number of function evaluations (NFE) is the true number of denoiser calls: `evaluations`.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.methods import grids, multistep
from stages.methods.path import Denoiser


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
class Multistep:
    """Linear multistep solver of one evaluation a step, order 1 (DDIM) to 3, by multistep.py."""

    name: str
    order: int

    @property
    def memory(self) -> int:
        return self.order

    def evaluations(self, num_levels: int) -> int:
        return num_levels

    def check(self, levels: Sequence[float]) -> None:
        """Any grid will do."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        return denoiser(y, levels[k])

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        formulas = (multistep.first_order, multistep.dpmpp_2m, multistep.dpmpp_3m)
        return formulas[self.order - 1](levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


@dataclass(frozen=True)
class Heun:
    """Karras et al. 2022, Algorithm 1: Heun's step, Euler's to level 0; 2N - 1 evaluations.

    With y' = r y + (1-r) D(y, s), the step is r y + (1-r) M, M = a D(y, s) + (1-a) D(y', s_next)
    and a = 1 - 1/(2r). M is this solver's output: what corrections differentiate and cache is the
    product through both evaluations.
    """

    name: str = "heun"
    memory: int = 1

    def evaluations(self, num_levels: int) -> int:
        return 2 * num_levels - 1

    def check(self, levels: Sequence[float]) -> None:
        """Any grid will do."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        first = denoiser(y, levels[k])
        if levels[k + 1] == 0:
            return first
        r = multistep.ratio(levels, k)
        second = denoiser(r * y + (1 - r) * first, levels[k + 1])
        return (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return multistep.first_order(levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


@dataclass(frozen=True)
class LookAhead:
    """The look-ahead corrector around a multistep solver of order p: UniC-p (Zhao et al. 2023).

    When D_k is known, step k-1 is done again from its own state with D_k among the outputs; the
    evaluation at the predicted state is kept, so no evaluation is added. Around DPM-Solver++ 2M
    this is UniPC-2 (bh2), whose predictor is the same formula. It helps from about 10 evaluations
    on. A correction's gamma rectifies the predicted state, before the corrector reads the output
    there; the redone step itself is not rectified.
    """

    base: Multistep
    name: str

    @property
    def memory(self) -> int:
        return self.base.order + 1

    def evaluations(self, num_levels: int) -> int:
        return self.base.evaluations(num_levels)

    def check(self, levels: Sequence[float]) -> None:
        self.base.check(levels)

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        return self.base.evaluate(denoiser, y, levels, k)

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return self.base.weights(levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> tuple[float, ...] | None:
        return multistep.unic(levels, k - 1, self.base.order) if k > 0 else None


SOLVERS: dict[str, Solver] = {
    "euler": Multistep("euler", 1),
    "heun": Heun(),
    "dpmpp2m": Multistep("dpmpp2m", 2),
    "dpmpp3m": Multistep("dpmpp3m", 3),
    "unipc": LookAhead(Multistep("dpmpp2m", 2), "unipc"),
}


def named(solver: str | Solver) -> Solver:
    """The solver of this name, or the solver object itself. Raises ValueError."""
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        close = difflib.get_close_matches(solver, SOLVERS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"solver '{solver}' is unknown; {hint}known solvers: {', '.join(SOLVERS)}")
    return SOLVERS[solver]


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

    def evaluate(self, output, y: Tensor, level: float) -> Evaluation:
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

    def evaluate(self, output, y: Tensor, level: float) -> Evaluation:
        return Evaluation(y, level, output(y))

    def gamma(self, step: Step) -> float:
        return 1.0


def checked(denoiser: Denoiser, k: int, num_levels: int) -> Denoiser:
    """The denoiser, raising where its output has the wrong shape or is not finite."""

    def call(y: Tensor, s: float) -> Tensor:
        clean = denoiser(y, s)
        if clean.shape != y.shape:
            raise ValueError(
                f"denoiser returned shape {tuple(clean.shape)} for a state of shape "
                f"{tuple(y.shape)}; it must return E[x0 | y] of the state's shape"
            )
        if not torch.isfinite(clean).all():
            raise FloatingPointError(
                f"denoiser returned NaN or infinity at step {k + 1} of {num_levels}, "
                f"level s={s:.6g}"
            )
        return clean

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
    solver: str | Solver = "dpmpp2m",
    correction: Correction | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Advance]:
    """Run a solver and yield every step, with what corrections and diagnostics read.

    Arguments and errors as in `solve`.
    """
    grid = grids.check(levels).tolist()
    solver = named(solver)
    solver.check(grid)
    rectifier = (correction or Vanilla()).begin(solver, grid, generator)
    num_levels = len(grid) - 1
    history: tuple[Evaluation, ...] = ()
    previous = y
    for k in range(num_levels):
        guarded = checked(denoiser, k, num_levels)
        current = rectifier.evaluate(
            lambda point, k=k, guarded=guarded: solver.evaluate(guarded, point, grid, k), y, grid[k]
        )
        history = (current, *history)[: solver.memory]
        outputs = [past.output for past in history]
        redo = solver.corrector(grid, k)
        if redo is not None:
            y = combine(multistep.ratio(grid, k - 1), previous, redo, outputs)
        weights = solver.weights(grid, k)
        proposal = combine(multistep.ratio(grid, k), y, weights, outputs)
        step = Step(k, grid[k], grid[k + 1], y, weights, history, proposal)
        gamma = rectifier.gamma(step)
        previous = y
        y = proposal if gamma == 1 else y - gamma * (y - proposal)
        yield Advance(step, gamma, y)


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
    solver: one of `SOLVERS`, or a solver object such as `fit` returns.
    correction: one of stein.py's.
    generator: randomness of corrections that draw probes; the solvers draw nothing.

    Raises ValueError for levels that do not descend to 0, an unknown solver, a correction or a
    fitted solver made for another grid; FloatingPointError, naming step and level, when the
    denoiser returns NaN or infinity.
    """
    for advance in trajectory(denoiser, y, levels, solver, correction, generator):
        y = advance.state
    return y
