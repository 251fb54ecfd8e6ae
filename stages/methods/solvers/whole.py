"""A few-step solver fitted to a model's whole trajectory, with levels of its own (ours).

Offline, one fine trajectory of the model, from one batch of noise, is kept at all its levels. Each
step of the few-step solver then combines its own state and its outputs so far, at **its own
states**, so that it lands where the teacher is next, from the same noise; the last step does so
too, where multistep solvers take the denoiser alone. The inner levels are searched by the error at
level 0. No gradient through the network is needed: a fit costs as many evaluations of the batch as
the solver has steps, a search that times its tries. The weights and levels belong to the model and
the guidance they were fitted to. For methods.md section 9.

Its kin are learned solvers (S4S, LD3, Bespoke, DPM-Solver-v3, AMED), which go by gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import grids
from stages.methods.path import Denoiser, level_from_time, time_from_level
from stages.methods.solvers.fitted import FittedMultistep
from stages.methods.solvers.multistep import Heun, ratio
from stages.methods.solvers.trajectories import check_state, checked, combine, trajectory

RIDGE = 1e-7  # of the mean diagonal of the normal equations
SEARCHED = 256  # states that the search runs on, at most
GLOBAL = 0.4  # of the tries are not moves of the best grid so far
SMALLEST = 0.02  # of the levels that grids are drawn from
SPREAD, SHRINK = 0.6, 0.96  # of a move in ln s, and what every further try leaves of it
STARTS = ((3.0, 0.3), (3.0, 0.05), (7.0, 0.1), (7.0, 0.02), (12.0, 0.05))  # rho, smallest level


@dataclass(frozen=True, eq=False)
class WholeMultistep(FittedMultistep):
    """A `FittedMultistep` fitted to the model's whole trajectory; made by `fit_whole`, taken by
    `solve` with its own `levels`.

    rms: root mean square error per coordinate at level 0 on the noise it was fitted to.
    """

    name: str = "whole"
    rms: float = math.nan


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model's fine trajectory: states[i] (B, ...) at levels[i], descending, the last 0.

    Between its levels states are interpolated: x_t = alpha y linearly in t.
    """

    levels: Tensor
    states: tuple[Tensor, ...]

    def at(self, level: float) -> Tensor:
        """The states (B, ...) at a level within its range."""
        t, times = float(time_from_level(level)), time_from_level(self.levels)
        below = int(torch.searchsorted(-times, torch.tensor(-t, dtype=times.dtype)).item())
        below = min(max(below, 1), len(times) - 1)
        high, low = times[below - 1].item(), times[below].item()
        weight = (t - low) / (high - low)
        upper, lower = (
            (1 - s) * y for s, y in ((high, self.states[below - 1]), (low, self.states[below]))
        )
        return (weight * upper + (1 - weight) * lower) / (1 - t)

    def first(self, count: int) -> Teacher:
        """The first `count` of its states."""
        return Teacher(self.levels, tuple(states[:count] for states in self.states))


@torch.no_grad()
def teacher(denoiser: Denoiser, noise: Tensor, s_max: float, steps: int = 100) -> Teacher:
    """Heun on `steps` levels, uniform in t = s / (1 + s), from s_max noise down to 0.

    noise: (B, ...), z ~ N(0, I). Takes 2 steps - 1 evaluations of the batch and keeps steps + 1
    copies of it. Raises ValueError for an empty batch, a level that is not above 0, fewer than 2
    steps, and as `solve` does.
    """
    check_state(denoiser, noise, "noise")
    if not len(noise):
        raise ValueError("noise holds no states; give 256 to 1,000 to fit weights to")
    if not 0 < s_max < math.inf:
        raise ValueError(f"s_max is {s_max}; it must be above 0 and finite")
    if steps < 2:
        raise ValueError(f"steps is {steps}; a teacher needs at least 2")
    top = float(time_from_level(s_max))
    levels = level_from_time(torch.linspace(top, 0, steps + 1, dtype=torch.float64))
    start = s_max * noise
    steps_made = trajectory(denoiser, start, levels, Heun())
    return Teacher(levels, (start, *(advance.state for advance in steps_made)))


def fit_whole(
    denoiser: Denoiser,
    noise: Tensor,
    num_levels: int,
    s_max: float,
    levels: Tensor | None = None,
    memory: int = 4,
    tries: int = 120,
    generator: torch.Generator | None = None,
    of: Teacher | None = None,
) -> WholeMultistep:
    """Fit a solver of `num_levels` steps to the model's whole trajectory.

    denoiser: as for `solve`; under guidance the guided one. noise: (B, ...), z ~ N(0, I), 256 to
    1,000 of them. s_max: the level that sampling starts at. levels: (N+1,), the grid to keep; None
    searches the inner ones over `tries` grids, on 256 of the states at most. memory: outputs that a
    step reads. generator: of the search's moves; None is a fixed one. of: the model's trajectory
    from this noise, where `teacher` has made it for another number of steps.

    Takes the teacher's evaluations, N of the batch, and N tries of the searched states. Raises
    ValueError for counts below 1, a grid of another length or start, and as `solve` does.
    """
    for name, count in (("num_levels", num_levels), ("memory", memory), ("tries", tries)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    of = of or teacher(denoiser, noise, s_max)
    if levels is None:
        generator = generator or torch.Generator().manual_seed(0)
        levels = _searched(
            denoiser, of.first(SEARCHED), num_levels, s_max, memory, tries, generator
        )
    levels = grids.check(levels)
    if len(levels) != num_levels + 1 or not math.isclose(levels[0].item(), s_max, rel_tol=1e-6):
        raise ValueError(
            f"levels are {len(levels) - 1} from {levels[0].item():.6g}; give num_levels="
            f"{num_levels} from s_max={s_max:.6g}"
        )
    coefficients, rms = _fitted(denoiser, of, levels.tolist(), memory)
    return WholeMultistep(levels, coefficients, rms=rms)


@torch.no_grad()
def _fitted(
    denoiser: Denoiser, of: Teacher, grid: list[float], memory: int
) -> tuple[Tensor, float]:
    """Coefficients (N, H) of every step, and the error at level 0."""
    num_levels, y = len(grid) - 1, of.states[0]
    coefficients = torch.zeros(num_levels, memory, dtype=torch.float64)
    outputs: list[Tensor] = []
    for k in range(num_levels):
        guarded = checked(denoiser, k, num_levels)
        outputs = [guarded(y, grid[k]), *outputs][:memory]
        r = ratio(grid, k)
        weights = _ridge(outputs, of.at(grid[k + 1]) - r * y)
        coefficients[k, : len(weights)] = weights
        y = combine(r, y, weights.tolist(), outputs)
    return coefficients, (y - of.states[-1]).double().square().mean().sqrt().item()


def _ridge(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """argmin_b |sum_j b_j outputs_j - target|^2 + a small |b|^2, by the normal equations."""
    rows = torch.stack([output.flatten() for output in outputs]).double()
    products = rows @ rows.T
    ridge = RIDGE * products.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    products = products + ridge * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return torch.linalg.solve(products, rows @ target.flatten().double()).cpu()


def _searched(
    denoiser: Denoiser,
    of: Teacher,
    num_levels: int,
    s_max: float,
    memory: int,
    tries: int,
    generator: torch.Generator,
) -> Tensor:
    """Levels (N+1,) of least error at level 0.

    Usual grids first, then for two fifths of the tries grids drawn anew, log-uniform in s, since
    the error has several minima; then moves of one or of all inner levels of the best, by spreads
    that shrink, kept where they help.
    """
    if num_levels == 1:
        return torch.tensor([s_max, 0.0], dtype=torch.float64)
    top, bottom = math.log(s_max), math.log(min(SMALLEST, s_max / 2))

    def error(inner: Tensor) -> float:
        grid = [s_max, *inner.exp().tolist(), 0.0]
        return _fitted(denoiser, of, grid, memory)[1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    candidates = [_inner(grid) for grid in _starts(num_levels, s_max)]
    while len(candidates) < GLOBAL * tries:
        drawn = bottom + (top - bottom) * uniform(num_levels - 1)
        candidates.append(drawn.sort(descending=True).values)
    candidates = [inner for inner in candidates[:tries] if _descends(inner, top)]
    errors = [error(inner) for inner in candidates]
    least = min(errors)
    inner, spread = candidates[errors.index(least)], SPREAD
    for attempt in range(tries - len(candidates)):
        moved = inner.clone()
        if attempt % 3 == 0:
            moved += spread * normal(len(inner))
        else:
            moved[int(len(inner) * uniform(1))] += spread * normal(1)[0]
        spread *= SHRINK
        if _descends(moved, top) and (found := error(moved)) < least:
            inner, least = moved, found
    return torch.tensor([s_max, *inner.exp().tolist(), 0.0], dtype=torch.float64)


def _descends(inner: Tensor, top: float) -> bool:
    """Whether ln s falls from the top on, by steps that are no rounding."""
    ends = torch.tensor([top], dtype=inner.dtype)
    return bool((torch.cat([ends, inner]).diff() < -1e-3).all())


def _starts(num_levels: int, s_max: float) -> list[Tensor]:
    uniform = grids.uniform_t(num_levels, float(time_from_level(s_max)))
    usual = [grids.edm(num_levels, s_max, s_min, rho) for rho, s_min in STARTS if s_min < s_max]
    return [uniform, *usual]


def _inner(levels: Tensor) -> Tensor:
    return levels[1:-1].log()
