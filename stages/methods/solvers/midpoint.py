"""DPM-Solver-2: a step by the noise at its middle in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.path import Denoiser
from stages.methods.solvers.multistep import ROUNDINGS, first_order, ratio


@dataclass(frozen=True)
class Midpoint:
    """Lu et al. 2022a, Algorithm 1 with r_1 = 1/2: y_next = y + (s_next - s) eps(u, s_m).

    s_m = (s s_next)^(1/2), u Euler's point there; Euler's step to level 0; 2N - 1 evaluations. In
    outputs it is r y + (1 - r) M with M = D_0 + (D_m - D_0) / r^(1/2), which is this solver's
    output. As with `Heun`, the step is Euler's where rounding would decide it (ours).
    """

    name: str = "dpm2"
    memory: int = 1

    def evaluations(self, num_levels: int) -> int:
        return 2 * num_levels - 1

    def check(self, levels: Sequence[float]) -> None:
        """Any grid will do."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        first = denoiser(y, levels[k])
        if levels[k + 1] == 0:
            return first
        half = math.sqrt(ratio(levels, k))
        middle = denoiser(half * y + (1 - half) * first, half * levels[k])
        if half < ROUNDINGS * torch.finfo(y.dtype).eps:
            return first
        return first + (middle - first) / half

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return first_order(levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


DPM2 = Midpoint()
