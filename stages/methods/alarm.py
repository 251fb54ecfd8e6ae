"""The memorisation alarm: the step at which ICR was lowest, confirmed once ICR has risen since.

Source: ICR, arXiv 2606.09718: with little data ICR falls while the network learns what generalises
and rises again before it memorises. The test of the rise is ours.

A network is looked at again and again, and a training wiggles by more than the views tell: three
view errors alone alarm in most rich runs. Here the error is the larger of that of the views and of
the training's own jitter, and a rise must be large beside the fall too. `python -m
tests.bench.errors alarm` measures it: see there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stages.methods import given

NUM_ERRORS = 2.5  # that a fall and a rise must have
FIRST_LOOK = 5  # checkpoints: fewer have no jitter to speak of
LEAST_RISE = 0.5  # of the fall before it
DRAWS = 1000  # curves of the false-alarm rate


@dataclass(frozen=True)
class Alarm:
    """The minimum of ICR over checkpoints, and whether a later rise confirms it.

    step            training step of the lowest mean ICR, the one to stop at
    minimum         mean ICR there
    confirmed_step  the first later step whose rise is large enough; None while there is none
    fall            from the highest ICR before the minimum to it, >= 0
    rise            ICR at the last checkpoint minus the minimum, >= 0
    standard_error  of a rise between two checkpoints, the larger of the next two; nan for one
    view_error      of it over view seeds
    jitter          of it by the training's own wiggles; nan for fewer than three checkpoints
    false_alarms    share of as many looks at a curve that only falls, as this one did, with this
                    error, that confirm an alarm; nan before the first look that can
    """

    step: int
    minimum: float
    confirmed_step: int | None
    fall: float
    rise: float
    standard_error: float
    view_error: float
    jitter: float
    false_alarms: float

    @property
    def confirmed(self) -> bool:
        """Whether some later checkpoint rose far enough above the minimum."""
        return self.confirmed_step is not None

    @property
    def words(self) -> str:
        """What it says, in one sentence."""
        text = f"ICR lowest at step {self.step} ({self.minimum:.4f})"
        if not self.confirmed:
            return f"{text}, not confirmed by a rise"
        return (
            f"{text}, confirmed at step {self.confirmed_step}: memorisation may follow "
            f"(false alarms at this noise: {self.false_alarms:.1%} of runs)"
        )


def alarm(steps: Sequence[int], values: Tensor, num_standard_errors: float = NUM_ERRORS) -> Alarm:
    """Minimum of ICR over checkpoints; confirmed by a rise above it that is at least
    `num_standard_errors` errors and half the fall before it, itself at least as many errors, at the
    fifth checkpoint or later. Of every look the checkpoints until then decide.

    steps (K,) ascending; values (K, S): ICR at each checkpoint for S >= 2 view seeds, the same
    seeds, images and noise level at all of them. What a seed does alike to all checkpoints cancels
    in a difference, so the views' error comes from what is left of the values once the means of
    checkpoints and of seeds are taken out, pooled over the checkpoints: sqrt(2 residual variance /
    S). It covers the views drawn, not the choice of images; `jitter` covers the training.

    Called again as checkpoints arrive it serves a live run; a later, lower minimum takes the alarm
    back.

    Raises ValueError for shapes that do not fit, fewer than two view seeds, steps that do not
    ascend, and values that are not finite.
    """
    values = given.tensor(values, "values", torch.float64).cpu()
    _check(steps, values, num_standard_errors)
    curve = values.mean(dim=1)
    lowest = int(curve.argmin())
    looks = range(max(FIRST_LOOK, lowest + 2), len(steps) + 1)
    errors = {k: math.sqrt(2) * pooled_error(values[:k]) for k in looks}
    confirming = (
        k
        for k in looks
        if int(curve[:k].argmin()) == lowest
        and bool(_confirms(curve[None, :k], errors[k], num_standard_errors)[0])
    )
    first = next(confirming, None)
    view_error, wiggle = math.sqrt(2) * pooled_error(values), float(jitter(curve))
    return Alarm(
        step=int(steps[lowest]),
        minimum=curve[lowest].item(),
        confirmed_step=None if first is None else int(steps[first - 1]),
        fall=(curve[: lowest + 1].max() - curve[lowest]).item(),
        rise=(curve[-1] - curve[lowest]).item(),
        standard_error=view_error if math.isnan(wiggle) else max(view_error, wiggle),
        view_error=view_error,
        jitter=wiggle,
        false_alarms=false_alarm_rate(curve, view_error, num_standard_errors),
    )


def jitter(curve: Tensor) -> Tensor:
    """Standard error of a difference of two values of curves (..., K) by their own wiggles.

    Second differences of independent errors have sqrt(6) times their standard deviation. Of so few
    the root mean square is taken: their median, which a sharp bend moves less, is off by half its
    size at ten checkpoints, so that it misses rises and confirms chance. nan for K < 3.
    """
    if curve.shape[-1] < 3:
        return torch.full(curve.shape[:-1], math.nan, dtype=curve.dtype)
    return curve.diff(n=2, dim=-1).square().mean(dim=-1).mul(2 / 6).sqrt()


def _confirms(curves: Tensor, view_error: float, num_standard_errors: float) -> Tensor:
    """(B,) bool: whether the last value of each curve (B, k) confirms an alarm."""
    if curves.shape[1] < FIRST_LOOK:
        return torch.zeros(len(curves), dtype=torch.bool)
    least = num_standard_errors * jitter(curves).clamp_min(view_error)
    minimum, lowest = curves.min(dim=1)
    before = torch.arange(curves.shape[1]) <= lowest[:, None]
    fall = curves.masked_fill(~before, -math.inf).amax(1) - minimum
    rise = curves[:, -1] - minimum
    return (rise > 0) & (rise >= least) & (rise >= LEAST_RISE * fall) & (fall >= least)


def first_alarms(
    curves: Tensor, view_error: float, num_standard_errors: float = NUM_ERRORS
) -> Tensor:
    """(B,) long: the look, counted from 1, at which runs with these curves (B, K) are first
    alarmed; 0 for none."""
    first = torch.zeros(len(curves), dtype=torch.long)
    for k in range(FIRST_LOOK, curves.shape[1] + 1):
        now = _confirms(curves[:, :k], view_error, num_standard_errors) & (first == 0)
        first[now] = k
    return first


def false_alarm_rate(
    curve: Tensor, view_error: float, num_standard_errors: float = NUM_ERRORS
) -> float:
    """The share of runs that are alarmed at any of their looks though their curve only falls: as
    `curve` (K,) did down to each look, with independent normal errors of its size."""
    if len(curve) < FIRST_LOOK:
        return math.nan
    error = max(view_error, float(jitter(curve))) / math.sqrt(2)
    noise = torch.randn(
        DRAWS, len(curve), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    runs = curve.cummin(0).values + error * noise
    return (first_alarms(runs, view_error, num_standard_errors) > 0).double().mean().item()


def pooled_error(values: Tensor) -> float:
    """Standard error of a row's mean over view seeds, within its curve: sqrt(variance / S).

    values (K, S), S >= 2; the variance is that of the residuals once the means of rows and of seeds
    are taken out, pooled over the rows. nan for one row. A difference of two rows has sqrt(2) times
    this error.
    """
    num_checkpoints, num_seeds = values.shape
    if num_checkpoints < 2:
        return math.nan
    centred = values - values.mean(dim=1, keepdim=True)
    residual = centred - centred.mean(dim=0)
    variance = residual.square().sum() / ((num_checkpoints - 1) * (num_seeds - 1))
    return math.sqrt(variance.item() / num_seeds)


def _check(steps: Sequence[int], values: Tensor, num_standard_errors: float) -> None:
    if values.ndim != 2 or len(values) != len(steps) or not len(values):
        raise ValueError(
            f"values have shape {tuple(values.shape)} for {len(steps)} steps; give (checkpoints, "
            "view seeds), at least one checkpoint"
        )
    if values.shape[1] < 2:
        raise ValueError(
            "values hold one view seed, which gives no standard error; scan with at least two"
        )
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError("steps do not ascend; sort the checkpoints by training step")
    if not torch.isfinite(values).all():
        raise ValueError("values hold ICRs that are not finite; leave failed checkpoints out")
    if not num_standard_errors > 0:
        raise ValueError(f"num_standard_errors is {num_standard_errors}; it must be above 0")
