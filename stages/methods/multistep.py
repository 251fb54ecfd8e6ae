"""Coefficients of the multistep formulas, as plain numbers.

In EDM coordinates, with r = s_next / s and the half log-SNR lambda = -ln s, a step over
h = lambda_next - lambda solves dy/dlambda = D - y exactly when D is a polynomial in lambda:

    y_next = r y + int_0^h exp(tau - h) D(lambda + tau) dtau.

Each function returns the coefficients b_j of y_next = r y + sum_j b_j D_j, newest output first;
they sum to 1 - r. `levels` is a sequence of floats, the step goes from levels[k] to levels[k+1].
"""

import math
from collections.abc import Sequence

import numpy as np


def ratio(levels: Sequence[float], k: int) -> float:
    """r = s_next / s of step k."""
    return levels[k + 1] / levels[k]


def _span(levels: Sequence[float], k: int) -> float:
    """h, the step in lambda; infinite on a step to 0."""
    return math.log(levels[k] / levels[k + 1]) if levels[k + 1] > 0 else math.inf


def first_order(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DDIM (Song et al. 2021), equal to Euler's step and to DPM-Solver++ 1: D held constant."""
    return (1 - ratio(levels, k),)


def dpmpp_2m(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DPM-Solver++ 2M (Lu et al. 2022b, Algorithm 2); first order on the first step and to s=0."""
    if k == 0 or levels[k + 1] == 0:
        return first_order(levels, k)
    phi = 1 - ratio(levels, k)
    ahead = phi * _span(levels, k) / (2 * _span(levels, k - 1))
    return phi + ahead, -ahead


def dpmpp_3m(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """DPM-Solver++ 3M (Lu et al. 2022b, appendix; multistep order 3).

    Second order on the second step, first order on the first step and to s=0.
    """
    if k < 2 or levels[k + 1] == 0:
        return dpmpp_2m(levels, k)
    h, r0, r1 = _span(levels, k), *(_span(levels, k - j) / _span(levels, k) for j in (1, 2))
    phi = 1 - ratio(levels, k)
    phi_slope, phi_curve = 1 - phi / h, 0.5 - (h - phi) / h**2
    # The divided differences of D over the last three levels, as rows over (D_k, D_k-1, D_k-2).
    near = np.array([1, -1, 0]) / r0
    far = np.array([0, 1, -1]) / r1
    slope = near + r0 / (r0 + r1) * (near - far)
    curve = (near - far) / (r0 + r1)
    weights = phi * np.array([1, 0, 0]) + phi_slope * slope + phi_curve * curve
    return tuple(float(w) for w in weights)


def unic(levels: Sequence[float], k: int, order: int) -> tuple[float, ...]:
    """UniC with B(h) = e^h - 1 ("bh2"; Zhao et al. 2023, eq. 4 and Algorithm 1): redo step k.

    Coefficients over (D_next, D_k, D_k-1, ...), where D_next was evaluated at the predicted state;
    `order` outputs at levels up to s_k are used, fewer where the history is shorter.
    """
    order = min(order, k + 1)
    h, phi = _span(levels, k), 1 - ratio(levels, k)
    nodes = [-sum(_span(levels, k - i) for i in range(1, j + 1)) / h for j in range(1, order)]
    nodes.append(1.0)
    if order == 1:
        rho = np.array([0.5])
    else:
        matrix = np.vander(nodes, order, increasing=True).T
        z, moments = -h, []
        tail = math.expm1(z) / z - 1  # the exponential's series at z without its first terms
        for i in range(1, order + 1):
            moments.append(tail * math.factorial(i) / math.expm1(z))
            tail = tail / z - 1 / math.factorial(i + 1)
        rho = np.linalg.solve(matrix, moments)
    scaled = phi * rho / np.array(nodes)
    return float(scaled[-1]), float(phi - scaled.sum()), *(float(w) for w in scaled[:-1])
