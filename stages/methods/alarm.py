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


@dataclass(frozen=True)
class Alarm:
    """The minimum of ICR over checkpoints, and whether a later rise confirms it.

    step            training step of the lowest mean ICR, the one to stop at
    minimum         mean ICR there
    confirmed_step  the first later step whose rise is large enough; None while there is none
    rise            ICR at the last checkpoint minus the minimum, >= 0
    standard_error  of `rise`, over view seeds; 0 at the minimum itself
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


def alarm(steps: Sequence[int], values: Tensor, num_standard_errors: float = 3.0) -> Alarm:
    """Minimum of ICR over checkpoints; confirmed by a rise of `num_standard_errors` above it.

    steps (K,) ascending; values (K, S): ICR at each checkpoint for S >= 2 view seeds, the same
    seeds, images and noise level at all of them. The rise from the minimum to a checkpoint is the
    mean over seeds of the paired difference, and its standard error that of those differences: what
    a seed does alike to all checkpoints cancels. The error covers the views drawn, not the choice
    of images. Looking at every new checkpoint is many looks: with S below about 8 the 3 errors of
    the default are a weaker test than they read (Student's t with S - 1 degrees of freedom).

    Called again as checkpoints arrive it serves a live run; a later, lower minimum takes the alarm
    back. Raises ValueError for shapes that do not fit, fewer than two view seeds, steps that do not
    ascend, and values that are not finite.
    """
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    _check(steps, values, num_standard_errors)
    lowest = int(values.mean(dim=1).argmin())
    rises = values[lowest:] - values[lowest]
    means, errors = rises.mean(dim=1), rises.std(dim=1) / math.sqrt(values.shape[1])
    confirming = ((means > 0) & (means >= num_standard_errors * errors)).nonzero()
    first = lowest + int(confirming[0]) if len(confirming) else None
    return Alarm(
        step=int(steps[lowest]),
        minimum=values[lowest].mean().item(),
        confirmed_step=None if first is None else int(steps[first]),
        rise=means[-1].item(),
        standard_error=errors[-1].item(),
    )


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
