"""A few-step solver fitted to a model's whole trajectory, with levels of its own (ours).

Offline, one fine trajectory of the model, from one batch of noise, is kept at all its levels. Each
step of the few-step solver combines its own state and its outputs so far, at **its own states**, so
that it lands where the teacher is next, from the same noise; the last step does so too, where
multistep solvers take the denoiser alone. From there weights and levels move together towards the
teacher's end (refined.py). No gradient through the network is needed. What is found belongs to the
model and the guidance it was fitted to. For methods.md section 9.

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
from stages.methods.solvers.divergence import Coordinates, chosen
from stages.methods.solvers.fitted import FittedMultistep
from stages.methods.solvers.multistep import Heun
from stages.methods.solvers.refined import Passed, Steps, passed, refined, root_mean_square
from stages.methods.solvers.trajectories import check_state, checked, combine, trajectory

RIDGE = 1e-7  # of the mean diagonal of the normal equations
LARGEST_NOISE = 3.0  # root mean square of what may be noise of variance 1
SMALLEST = 0.02  # of the levels that further starts are drawn from
STARTS = ((3.0, 0.3), (3.0, 0.05), (7.0, 0.1), (7.0, 0.02), (12.0, 0.05))  # rho, smallest level


@dataclass(frozen=True, eq=False)
class WholeMultistep(FittedMultistep):
    """A `FittedMultistep` fitted to the model's whole trajectory; made by `fit_whole`, taken by
    `solve` with its own `levels`.

    told: (N,) float64, the level that the network is told at each step; None for the step's own.
    The state's noise need not be what the network does best with. rms: root mean square error per
    coordinate at level 0 on the noise it was fitted to.
    """

    name: str = "whole"
    told: Tensor | None = None
    rms: float = math.nan

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        return denoiser(y, levels[k] if self.told is None else self.told[k].item())


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


@torch.no_grad()
def teacher(denoiser: Denoiser, noise: Tensor, s_max: float, steps: int = 100) -> Teacher:
    """Heun on `steps` levels, uniform in t = s / (1 + s), from s_max noise down to 0.

    noise: (B, ...), z ~ N(0, I). Takes 2 steps - 1 evaluations of the batch and keeps steps + 1
    copies of it. Raises ValueError for an empty batch, noise that s_max was applied to already, a
    level that is not above 0, fewer than 2 steps, and as `solve` does.
    """
    check_state(denoiser, noise, "noise")
    if not len(noise):
        raise ValueError("noise holds no states; give 256 to 1,000 to fit weights to")
    if not 0 < s_max < math.inf:
        raise ValueError(f"s_max is {s_max}; it must be above 0 and finite")
    if steps < 2:
        raise ValueError(f"steps is {steps}; a teacher needs at least 2")
    if (size := noise.square().mean().sqrt().item()) > LARGEST_NOISE:
        raise ValueError(
            f"noise has a root mean square of {size:.3g}; give z of variance 1, which is scaled "
            f"to s_max={s_max:.6g} here"
        )
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
    coordinates: Coordinates = None,
) -> WholeMultistep:
    """Fit a solver of `num_levels` steps to the model's whole trajectory.

    denoiser: as for `solve`; under guidance the guided one. noise: (B, ...), z ~ N(0, I), 128 to
    1,000 of them. s_max: the level that sampling starts at. levels: (N+1,), the grid to keep, whose
    weights alone are then fitted, step by step; None finds weights and levels together. memory:
    outputs that a step reads. tries: N evaluations each, which finding them takes at most, but for
    the last round; it mostly ends far earlier. generator: draws further levels to start from, as
    many as there are usual grids; None starts from the best of these. of: the model's trajectory
    from this noise, where `teacher` has made it. coordinates: the leading ones, in which distances
    are taken; None for all.

    Takes the teacher's evaluations of the batch and the tries. Raises ValueError for counts below
    1, a grid of another length or start, and as `solve` does.
    """
    for name, count in (("num_levels", num_levels), ("memory", memory), ("tries", tries)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    of = of or teacher(denoiser, noise, s_max)
    if levels is not None:
        grid = grids.check(levels)
        if len(grid) != num_levels + 1 or not math.isclose(grid[0].item(), s_max, rel_tol=1e-6):
            raise ValueError(
                f"levels are {len(grid) - 1} from {grid[0].item():.6g}; give num_levels="
                f"{num_levels} from s_max={s_max:.6g}"
            )
        reached, steps = by_step(denoiser, of, grid.tolist(), memory, coordinates)
        return _solver(steps, memory, root_mean_square(reached - of.states[-1], coordinates))
    first, end = of.states[0], of.states[-1]
    starts = _starts(num_levels, s_max, generator)[:tries]
    fits = [by_step(denoiser, of, grid, memory, coordinates) for grid in starts]
    _, steps = min(fits, key=lambda fit: root_mean_square(fit[0] - end, coordinates))
    left = num_levels * (tries - len(starts))
    steps = refined(denoiser, steps, first, end, left, coordinates)
    with torch.no_grad():
        reached = passed(denoiser, steps, Passed((first,), ())).end
    return _solver(steps, memory, root_mean_square(reached - end, coordinates))


def _solver(steps: Steps, memory: int, rms: float) -> WholeMultistep:
    """To nine digits, without the last bits in which libraries differ from call to call."""

    def rounded(numbers: Sequence[float]) -> list[float]:
        return [float(f"{number:.9g}") for number in numbers]

    top = steps.levels[0]
    levels = torch.tensor([top, *rounded(steps.levels[1:])], dtype=torch.float64)
    told = torch.tensor([top, *rounded(steps.told[1:])], dtype=torch.float64)
    rows = [(*rounded(of), *[0.0] * (memory - len(of))) for of in steps.weights]
    coefficients = torch.tensor(rows, dtype=torch.float64)
    return WholeMultistep(levels, coefficients, told=told, rms=rounded([rms])[0])


@torch.no_grad()
def by_step(
    denoiser: Denoiser, of: Teacher, grid: list[float], memory: int, coordinates: Coordinates
) -> tuple[Tensor, Steps]:
    """Every step fitted to the teacher's next states, one after the other, and where they end."""
    num_levels, y = len(grid) - 1, of.states[0]
    every: list[tuple[float, ...]] = []
    outputs: list[Tensor] = []
    for k in range(num_levels):
        guarded = checked(denoiser, k, num_levels)
        outputs = [guarded(y, grid[k]), *outputs][:memory]
        r = grid[k + 1] / grid[k]
        every.append(_ridge(outputs, of.at(grid[k + 1]) - r * y, coordinates))
        y = combine(r, y, every[-1], outputs)
    return y, Steps(tuple(grid), tuple(grid[:-1]), tuple(every))


def _ridge(
    outputs: Sequence[Tensor], target: Tensor, coordinates: Coordinates
) -> tuple[float, ...]:
    """argmin_b |sum_j b_j outputs_j - target|^2 + a small |b|^2, by the normal equations."""
    rows = torch.stack([chosen(output, coordinates).flatten() for output in outputs])
    products = rows @ rows.T
    ridge = RIDGE * products.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    products = products + ridge * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    wanted = rows @ chosen(target, coordinates).flatten()
    return tuple(torch.linalg.solve(products, wanted).tolist())


def _starts(num_levels: int, s_max: float, generator: torch.Generator | None) -> list[list[float]]:
    """Grids to start from: the usual ones, and as many log-uniform ones of a generator."""
    top = float(time_from_level(s_max))
    usual = [grids.uniform_t(num_levels, top)]
    usual += [grids.edm(num_levels, s_max, s_min, rho) for rho, s_min in STARTS if s_min < s_max]
    inner = [grid[1:-1].tolist() for grid in usual[: 1 if num_levels == 1 else None]]
    starts = [[s_max, *of, 0.0] for of in inner]
    if generator is None or num_levels == 1:
        return starts
    low, high = math.log(min(SMALLEST, s_max / 2)), math.log(s_max)
    shape = (len(starts), num_levels - 1)
    drawn = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    inner = drawn.sort(dim=1, descending=True).values.exp().tolist()
    return starts + [[s_max, *of, 0.0] for of in inner]
