"""The solvers: coefficients of the multistep formulas as plain numbers, and the solver classes.

In EDM coordinates, with r = s_next / s and the half log-SNR lambda = -ln s, a step over
h = lambda_next - lambda solves dy/dlambda = D - y exactly when D is a polynomial in lambda:

    y_next = r y + int_0^h exp(tau - h) D(lambda + tau) dtau.

Each function returns the coefficients b_j of y_next = r y + sum_j b_j D_j, newest output first;
they sum to 1 - r. `levels` is a sequence of floats, the step goes from levels[k] to levels[k+1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.methods.path import Denoiser

ROUNDINGS = 8
"""Ratios below so many roundings of the state leave nothing of the difference of Heun's outputs."""


def ratio(levels: Sequence[float], k: int) -> float:
    """r = s_next / s of step k."""
    return levels[k + 1] / levels[k]


def _span(levels: Sequence[float], k: int) -> float:
    """h, the step in lambda; infinite on a step to 0."""
    return math.log(levels[k] / levels[k + 1]) if levels[k + 1] > 0 else math.inf


def phi(order: int, z: float) -> float:
    """phi_j(z) = sum_m z^m / (m + j)!, order j >= 1: (e^z - 1) / z and what follows it in exact
    integrals of polynomials against an exponential. By the series where the closed form cancels."""
    if abs(z) < 1:
        return sum(z**m / math.factorial(m + order) for m in range(20))
    value = math.expm1(z) / z
    for j in range(1, order):
        value = (value - 1 / math.factorial(j)) / z
    return value


def first_order(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DDIM (Song et al. 2021), equal to Euler's step and to DPM-Solver++ 1: D held constant."""
    return (1 - ratio(levels, k),)


def dpmpp_2m(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DPM-Solver++ 2M (Lu et al. 2022b, Algorithm 2); first order on the first step and to s=0."""
    if k == 0 or levels[k + 1] == 0:
        return first_order(levels, k)
    share = 1 - ratio(levels, k)
    ahead = share * _span(levels, k) / (2 * _span(levels, k - 1))
    return share + ahead, -ahead


def dpmpp_3m(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DPM-Solver++ 3M (Lu et al. 2022b; the multistep third-order update of its released code).

    2M on the second step, first order on the first step and to s=0. The released update, kept here
    because it is what "3M" names everywhere, gives the second difference half its Taylor weight:
    it converges with order 2, with about a third of 2M's error. With the full weight the order is
    3, but results at 5 to 10 steps are worse.
    """
    if k < 2 or levels[k + 1] == 0:
        return dpmpp_2m(levels, k)
    h, r0, r1 = _span(levels, k), *(_span(levels, k - j) / _span(levels, k) for j in (1, 2))
    # The divided differences of D over the last three levels, as rows over (D_k, D_k-1, D_k-2).
    near = np.array([1, -1, 0]) / r0
    far = np.array([0, 1, -1]) / r1
    slope = near + r0 / (r0 + r1) * (near - far)
    curve = (near - far) / (r0 + r1)
    constant = (1 - ratio(levels, k)) * np.array([1, 0, 0])
    weights = constant + h * phi(2, -h) * slope + h * phi(3, -h) * curve
    return tuple(float(w) for w in weights)


def unic(levels: Sequence[float], k: int, order: int) -> tuple[float, ...]:
    """UniC with B(h) = e^h - 1 ("bh2"; Zhao et al. 2023, eq. 4 and Algorithm 1): redo step k.

    Coefficients over (D_next, D_k, D_k-1, ...), where D_next was evaluated at the predicted state;
    `order` outputs at levels up to s_k are used, fewer where the history is shorter.
    """
    order = min(order, k + 1)
    h, share = _span(levels, k), 1 - ratio(levels, k)
    nodes = [-sum(_span(levels, k - i) for i in range(1, j + 1)) / h for j in range(1, order)]
    nodes.append(1.0)
    if order == 1:
        rho = np.array([0.5])
    else:
        matrix = np.vander(nodes, order, increasing=True).T
        moments = [math.factorial(i) * phi(i + 1, -h) / phi(1, -h) for i in range(1, order + 1)]
        rho = np.linalg.solve(matrix, moments)
    scaled = share * rho / np.array(nodes)
    return float(scaled[-1]), float(share - scaled.sum()), *(float(w) for w in scaled[:-1])


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
        formulas = (first_order, dpmpp_2m, dpmpp_3m)
        return formulas[self.order - 1](levels, k)

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


@dataclass(frozen=True)
class Heun:
    """Karras et al. 2022, Algorithm 1: Heun's step, Euler's to level 0; 2N - 1 evaluations.

    With y' = r y + (1-r) D(y, s), the step is r y + (1-r) M, M = D_0 + a (D_1 - D_0) of
    D_0 = D(y, s), D_1 = D(y', s_next) and a = 1/(2r). M is this solver's output: what corrections
    differentiate and cache is the product through both evaluations. Towards a tiny level a grows
    without bounds; where D_1 - D_0 is no more than y' was rounded by, the step is Euler's (ours).
    """

    name: str = "heun"
    memory: int = 1

    def evaluations(self, num_levels: int) -> int:
        return 2 * num_levels - 1

    def check(self, levels: Sequence[float]) -> None:
        """Any grid will do."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        outputs = self.outputs(denoiser, y, levels, k)
        if len(outputs) == 1:
            return outputs[0]
        first, second = outputs
        r = ratio(levels, k)
        if r < ROUNDINGS * torch.finfo(y.dtype).eps:
            return first
        return first + (second - first) / (2 * r)

    def outputs(
        self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int
    ) -> list[Tensor]:
        """D(y, s) and, unless the step goes to 0, D(y', s_next)."""
        first = denoiser(y, levels[k])
        if levels[k + 1] == 0:
            return [first]
        r = ratio(levels, k)
        return [first, denoiser(r * y + (1 - r) * first, levels[k + 1])]

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return first_order(levels, k)

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
        return unic(levels, k - 1, self.base.order) if k > 0 else None


EULER = Multistep("euler", 1)
HEUN = Heun()
DPMPP2M = Multistep("dpmpp2m", 2)
DPMPP3M = Multistep("dpmpp3m", 3)
UNIPC = LookAhead(DPMPP2M, "unipc")
