"""SteinDiff: corrected large steps of diffusion ODE solvers (arXiv 2606.07835, ICML 2026).

A solver proposes T(y) from level s to s_next, r = s_next / s. With the residual u = y - T(y) the
rectified update is y - gamma u; gamma = 1 is the solver's own step. Two targets:

- literal (the paper): gamma = E<u, y - x0> / E|u|^2, the best jump to the clean image;
- matched (**ours**): gamma = (1-r) E<u, y - x0> / E|u|^2, the best jump to the same path's next
  point r y + (1-r) x0. The literal gamma leaves the noise level: with a perfect denoiser and a
  DDIM step it is 1/(1-r). The matched one is 1 there, and equals the literal one where r = 0.

Two ways to E<u, y - x0>: from clean samples, offline, on the straight path y_k = x0 + s_k eps
(`calibrate`; exact, **ours**, the default), or without them, on the running batch, by Stein's
identity (`online`, `literal`). For T = r y + sum_j b_j D_j, each output D_j made at its own y_j
and s_j,

    E<D_j, x0> = E<D_j, y_j> - s_j^2 E[div D_j],

so every output needs one divergence, cached with it (**ours**: differentiating the solver with its
history held constant is biased). This is exact when all y_j share x0 and eps; along a solver's own
trajectory it is an approximation.

gamma is one number for the batch, never per sample, and 1 where a step does not move. Where a
state packs a class token beside the image (path.Packing), `coordinates` restricts inner products,
divergence and dimension to the image, for which the identity holds by itself; the same gamma moves
both parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.methods import given, grids
from stages.methods.path import Denoiser
from stages.methods.solvers import named
from stages.methods.solvers.divergence import (
    Coordinates,
    check_probes,
    chosen,
    mean_inner,
    output_and_divergence,
    residual,
)
from stages.methods.solvers.fitted import check_grid, fine_solution
from stages.methods.solvers.multistep import LookAhead
from stages.methods.solvers.trajectories import (
    Correction,
    Evaluation,
    Output,
    Rectifier,
    Solver,
    Step,
    check_state,
    checked,
    combine,
    trajectory,
)

DEFAULT_SEED = 2606_07835
"""Seed where no generator is given; no common one, see the warning at `calibrate`."""

CLIPS = {"multistep": (0.5, 1.5), "heun": (0.2, 3.0), "online": (0.8, 1.2)}


def _seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator given, or a fresh one with `DEFAULT_SEED`."""
    return generator if generator is not None else torch.Generator().manual_seed(DEFAULT_SEED)


# ---------------------------------------------------------------- calibration, offline


def residual_products(
    denoiser: Denoiser,
    clean: Tensor,
    levels: Tensor,
    solver: str | Solver,
    generator: torch.Generator | None = None,
    coordinates: Coordinates = None,
) -> Tensor:
    """Sums over the batch of <u, y - x0>, |u|^2 and |y - x0|^2 at every step: (num_steps, 3)
    float64.

    Taken on the straight path y_k = x0 + s_k eps with one eps per sample at all levels. Products
    of several batches add up, so a calibration can be sharded; `gammas_from_products` ends it, and
    rectified.py tells what it gains.
    """
    return products_of_each(denoiser, clean, levels, solver, generator, coordinates).sum(0)


def products_of_each(
    denoiser: Denoiser,
    clean: Tensor,
    levels: Tensor,
    solver: str | Solver,
    generator: torch.Generator | None = None,
    coordinates: Coordinates = None,
) -> Tensor:
    """The same of every sample: (B, num_steps, 3) float64. Raises ValueError for no samples."""
    if isinstance(clean, Tensor) and clean.ndim and not len(clean):
        raise ValueError("the batch holds no samples; give at least one to average over")
    products = []
    for step in straight_path(denoiser, clean, levels, named(solver), generator):
        u, away = (chosen(x, coordinates) for x in (residual(step), step.state - clean))
        pairs = ((u, away), (u, u), (away, away))
        products.append(torch.stack([(a * b).sum(1) for a, b in pairs], dim=1))
    return torch.stack(products, dim=1).cpu()


def gammas_from_products(
    products: Tensor,
    levels: Tensor,
    solver: str | Solver,
    target: str = "matched",
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """gamma of every step from `residual_products`; arguments as in `calibrate`."""
    low, high = bounds(solver, target, clip)
    levels = grids.check(levels)
    scale = 1 - levels[1:] / levels[:-1] if target == "matched" else 1.0
    gammas = scale * products[:, 0] / products[:, 1]
    return gammas.where(products[:, 1] > 0, 1.0).clamp(low, high)


def bounds(
    solver: str | Solver, target: str, clip: tuple[float, float] | None
) -> tuple[float, float]:
    """(low, high) of gamma; arguments as in `calibrate`.

    Raises ValueError for an unknown target, and a clip that leaves out 1.
    """
    if target not in ("matched", "literal"):
        raise ValueError(f"target is '{target}'; it must be 'matched' or 'literal'")
    if clip is None:
        return CLIPS.get(named(solver).name, CLIPS["multistep"])
    return _clip(clip)


def calibrate(
    denoiser: Denoiser,
    clean: Tensor,
    levels: Tensor,
    solver: str | Solver = "dpmpp2m",
    target: str = "matched",
    clip: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    coordinates: Coordinates = None,
) -> Tensor:
    """gamma of every step, computed once from clean samples (ours): (num_steps,) float64.

    clean: (B, ...) data, or the model's own many-step samples (reference-free). The inner product
    with x0 is exact, on the straight path y_k = x0 + s_k eps, never on a solver's trajectory.
    target: "matched" (ours) or "literal" (the paper's).
    clip: bounds of gamma; None is the solver's default, (0.2, 3) for Heun, (0.5, 1.5) else.
    generator: draws eps; None is a fresh one with `DEFAULT_SEED`. Where clean are the model's own
        samples, it must not repeat the noise they were made from.
    For UniPC the predictor's step is measured. Raises as `solvers.solve` does, and ValueError for
    another target, a clip that leaves out 1, and no samples.
    """
    bounds(solver, target, clip)
    products = residual_products(denoiser, clean, levels, solver, generator, coordinates)
    return gammas_from_products(products, levels, solver, target, clip)


@torch.no_grad()
def straight_path(
    denoiser: Denoiser,
    clean: Tensor,
    levels: Tensor,
    solver: Solver,
    generator: torch.Generator | None = None,
    rectifier: Rectifier | None = None,
) -> list[Step]:
    """The solver's step at every point of y_k = x0 + s_k eps, history from the same path.

    rectifier: records the outputs, with divergences for instance, where one is given.
    """
    check_state(denoiser, clean, "clean")
    grid = grids.check(levels).tolist()
    solver.check(grid)
    generator = _seeded(generator)
    eps = torch.randn(
        clean.shape, generator=generator, device=generator.device, dtype=clean.dtype
    ).to(clean.device)
    steps, history = [], ()
    for k in range(len(grid) - 1):
        guarded = checked(denoiser, k, len(grid) - 1)
        y = clean + grid[k] * eps

        def output(point: Tensor, guarded=guarded, k=k) -> Tensor:
            return solver.evaluate(guarded, point, grid, k)

        record = rectifier.evaluate(output, y, grid[k]) if rectifier else None
        history = (record or Evaluation(y, grid[k], output(y)), *history)[: solver.memory]
        weights = solver.weights(grid, k)
        outputs = [past.output for past in history]
        proposal = combine(grid[k + 1] / grid[k], y, weights, outputs)
        steps.append(Step(k, grid[k], grid[k + 1], y, weights, history, proposal))
    return steps


def fit_gammas(
    denoiser: Denoiser,
    y: Tensor,
    levels: Tensor,
    solver: str | Solver = "dpmpp2m",
    substeps: int = 16,
    coordinates: Coordinates = None,
) -> Tensor:
    """gamma of every step that comes nearest to the model's own fine solution (ours).

    The fit of fitted.py with one coefficient a step: target and noise states `y` as in
    `solvers.fit`, not clipped; the last gamma is 1. Use as `calibrated(gammas)`: (num_steps,).
    Raises as `solvers.fit` does.
    """
    fitting = _FitGamma(denoiser, substeps, coordinates)
    steps = trajectory(denoiser, y, levels, named(solver), fitting)
    return torch.tensor([advance.gamma for advance in steps], dtype=torch.float64)


@dataclass(frozen=True)
class _FitGamma:
    """A correction towards the fine solution, which it computes."""

    denoiser: Denoiser
    substeps: int
    coordinates: Coordinates
    num_levels: int = 0  # of the grid of the trajectory begun

    def begin(self, solver, levels, generator) -> Rectifier:
        return replace(self, num_levels=len(levels) - 1)

    def evaluate(self, output: Output, y: Tensor, level: float) -> Evaluation:
        return Evaluation(y, level, output(y))

    def gamma(self, step: Step) -> float:
        if step.next_level == 0:
            return 1.0
        guarded = checked(self.denoiser, step.index, self.num_levels)
        target = fine_solution(guarded, step.state, step.level, step.next_level, self.substeps)
        u = residual(step)
        wanted = mean_inner(u, step.state - target, self.coordinates)
        square = mean_inner(u, u, self.coordinates)
        return wanted / square if square > 0 else 1.0


# ---------------------------------------------------------------- corrections for solve


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A stored schedule of gammas; made by `calibrated`."""

    gammas: Tensor
    levels: Tensor | None = None
    solver: str | None = None

    def begin(self, solver: Solver, levels: Sequence[float], generator) -> Rectifier:
        if len(self.gammas) != len(levels) - 1:
            raise ValueError(
                f"gammas has {len(self.gammas)} entries for a grid of {len(levels) - 1} steps; "
                "calibrate again on this grid"
            )
        if self.levels is not None:
            check_grid(levels, self.levels, "the calibration")
        if self.solver is not None and self.solver != solver.name:
            raise ValueError(
                f"the calibration was made for solver '{self.solver}', not '{solver.name}'; "
                "calibrate again for this one"
            )
        return self

    def evaluate(self, output: Output, y: Tensor, level: float) -> Evaluation:
        return Evaluation(y, level, output(y))

    def gamma(self, step: Step) -> float:
        return float(self.gammas[step.index])


def calibrated(
    gammas: Tensor, levels: Tensor | None = None, solver: str | None = None
) -> Correction:
    """Sample with a stored schedule; costs nothing over the plain solver.

    gammas: (num_steps,) from `calibrate` or `fit_gammas`. With `levels` and `solver`, the grid and
    the solver's name it was made for, any other is refused with ValueError; a wrong number of
    steps always is.
    """
    gammas = given.tensor(gammas, "gammas", torch.float64)
    if gammas.ndim != 1 or not torch.isfinite(gammas).all():
        raise ValueError("gammas must be a 1-D tensor of finite numbers, one per step")
    return Calibrated(gammas, None if levels is None else grids.check(levels), solver)


@dataclass(frozen=True, eq=False)
class SteinCorrection:
    """gamma estimated on the running batch by Stein's identity; see `online` and `literal`.

    moments: mean (broadcasts against one state) and total variance of the training data, from
    which the state's true noise level is estimated; None trusts the nominal level.
    """

    target: str
    clip: tuple[float, float]
    moments: tuple[Tensor | float, float] | None = None
    num_probes: int = 1
    coordinates: Coordinates = None

    def begin(
        self, solver: Solver, levels: Sequence[float], generator: torch.Generator | None
    ) -> Rectifier:
        if isinstance(solver, LookAhead):
            raise ValueError(
                f"solver '{solver.name}' looks ahead, which does not combine with an estimate on "
                "the running batch; choose its plain solver, or a calibrated correction"
            )
        return _Stein(self, _seeded(generator))

    def effective_level(self, y: Tensor, level: float) -> float:
        """s_eff^2 = (E|y - mu|^2 - V) / d, clamped to [1/4, 4] s^2 (ours)."""
        if self.moments is None:
            return level
        mean, variance = self.moments
        offset = y - torch.as_tensor(mean).to(y)
        estimate = (mean_inner(offset, offset, self.coordinates) - variance) / self.dimension(y)
        return min(max(estimate, level**2 / 4), 4 * level**2) ** 0.5

    def dimension(self, y: Tensor) -> int:
        return chosen(y[:1], self.coordinates).shape[1]

    def inner(self, step: Step) -> float:
        """E<u, y - x0> by the identity of the module's docstring."""
        y, coordinates = step.state, self.coordinates
        s = self.effective_level(y, step.level)
        with_clean = (1 - step.ratio) * (mean_inner(y, y, coordinates) - s**2 * self.dimension(y))
        for weight, past in zip(step.weights, step.outputs, strict=False):
            product = mean_inner(past.output, past.point, coordinates)
            with_clean -= weight * (product - past.level**2 * past.divergence)
        return mean_inner(y - step.proposal, y, coordinates) - with_clean

    def gamma(self, step: Step) -> float:
        if self.moments is not None:
            data_std = (self.moments[1] / self.dimension(step.state)) ** 0.5
            if step.level < 0.3 * data_std:
                return 1.0
        u = residual(step)
        square = mean_inner(u, u, self.coordinates)
        if square == 0:
            return 1.0
        scale = 1 - step.ratio if self.target == "matched" else 1.0
        estimate = scale * self.inner(step) / square
        low, high = self.clip
        return min(max(estimate, low), high)


@dataclass(frozen=True, eq=False)
class _Stein:
    """A SteinCorrection during one trajectory, with its generator of probes."""

    correction: SteinCorrection
    generator: torch.Generator

    def evaluate(self, output: Output, y: Tensor, level: float) -> Evaluation:
        value, divergence = output_and_divergence(
            output, y, self.generator, self.correction.coordinates, self.correction.num_probes
        )
        return Evaluation(y, self.correction.effective_level(y, level), value, divergence)

    def gamma(self, step: Step) -> float:
        return self.correction.gamma(step)


def online(
    mean: Tensor | float,
    variance: float,
    clip: tuple[float, float] = CLIPS["online"],
    num_probes: int = 1,
    coordinates: Coordinates = None,
) -> Correction:
    """The matched gamma, estimated on the running batch (ours); one divergence an evaluation.

    mean: mu of the training data, of one state's shape (anything outside `coordinates` is
        ignored), or a number. variance: V = E|x0 - mu|^2, summed over the chosen coordinates.
    The state's own noise level s_eff is estimated from them and replaces s in every term, each
    cached output keeping its own; without it the feedback is unstable, an error in the noise level
    growing by (2-r)/r a step. gamma = 1 where s < 0.3 sqrt(V/d), where the estimate says nothing.
    Not to be combined with the look-ahead corrector, which `solve` refuses. The identity holds for
    fitted solvers too, though their weights were fitted to steps without a correction.
    Raises ValueError for a mean or variance that is not finite, a variance not above 0, a clip that
    leaves out 1, and no probes.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance is {variance}; give E|x0 - mean|^2 of the training data")
    if not torch.isfinite(given.tensor(mean, "mean")).all():
        raise ValueError("mean holds NaN or infinity; give the mean of the training data")
    check_probes(num_probes)
    return SteinCorrection("matched", _clip(clip), (mean, variance), num_probes, coordinates)


def literal(
    gamma_min: float = 0.0, num_probes: int = 1, coordinates: Coordinates = None
) -> Correction:
    """The paper's gamma on the running batch, s^2 E[div u] / E|u|^2, clipped below only.

    Kept for comparison: it leaves the noise level and diverges (see the module's docstring). Cached
    outputs enter through their own divergences (ours), which is the identity the paper starts from.
    Goes with the solvers that `online` goes with. Raises ValueError for a gamma_min that is no
    finite number, and no probes.
    """
    if not math.isfinite(gamma_min):
        raise ValueError(f"gamma_min is {gamma_min}; give a finite number, 0 for the paper's bound")
    check_probes(num_probes)
    return SteinCorrection("literal", (gamma_min, float("inf")), None, num_probes, coordinates)


def _clip(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = clip
    if not low <= 1 <= high:
        raise ValueError(f"clip is {clip}; give (low, high) around 1")
    return clip
