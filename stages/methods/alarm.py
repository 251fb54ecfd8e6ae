"""The memorisation alarm: the step at which ICR was lowest, confirmed once ICR has risen since.

Source: ICR, arXiv 2606.09718: with little data ICR falls while the network learns what generalises
and rises again before it memorises. The test of the rise is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stages.methods import given


@dataclass(frozen=True)
class Alarm:
    """The minimum of ICR over checkpoints, and whether a later rise confirms it.

    step            training step of the lowest mean ICR, the one to stop at
    minimum         mean ICR there
    confirmed_step  the first later step whose rise is large enough; None while there is none
    rise            ICR at the last checkpoint minus the minimum, >= 0
    standard_error  of a rise between two checkpoints, over view seeds; nan for one checkpoint
    """

    step: int
    minimum: float
    confirmed_step: int | None
    rise: float
    standard_error: float

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
        return f"{text}, confirmed at step {self.confirmed_step}: memorisation may follow"


def alarm(steps: Sequence[int], values: Tensor, num_standard_errors: float = 3.0) -> Alarm:
    """Minimum of ICR over checkpoints; confirmed by a rise of `num_standard_errors` above it.

    steps (K,) ascending; values (K, S): ICR at each checkpoint for S >= 2 view seeds, the same
    seeds, images and noise level at all of them. What a seed does alike to all checkpoints cancels
    in a difference, so the error comes from what is left of the values once the means of
    checkpoints and of seeds are taken out, pooled over the checkpoints: sqrt(2 residual variance /
    S). At two checkpoints that is the paired error. It covers the views drawn, not the choice of
    images.

    Why pooled: the minimum is chosen and every new checkpoint is another look, and an error from S
    differences alone is itself uncertain. On a curve that falls and stays flat, 13 checkpoints,
    3 errors, a live run raises a false alarm in 19, 5 and 3 % of runs with S = 2, 4 and 8; with the
    single errors it is 78, 32 and 12 %.

    Called again as checkpoints arrive it serves a live run; a later, lower minimum takes the alarm
    back. The error does not cover the training's own wiggles: on digits (tests/bench/icr.py) one
    rich run of three rose by .016 from step 71 to 141, was alarmed, and fell below by step 283.
    A first confirmation is therefore a reason to watch, not yet one to stop.

    Raises ValueError for shapes that do not fit, fewer than two view seeds, steps that do not
    ascend, and values that are not finite.
    """
    values = given.tensor(values, "values", torch.float64).cpu()
    _check(steps, values, num_standard_errors)
    lowest = int(values.mean(dim=1).argmin())
    rises = (values[lowest:] - values[lowest]).mean(dim=1)
    error = math.sqrt(2) * pooled_error(values)
    confirming = ((rises > 0) & (rises >= num_standard_errors * error)).nonzero()
    first = lowest + int(confirming[0]) if len(confirming) else None
    return Alarm(
        step=int(steps[lowest]),
        minimum=values[lowest].mean().item(),
        confirmed_step=None if first is None else int(steps[first]),
        rise=rises[-1].item(),
        standard_error=error,
    )


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
