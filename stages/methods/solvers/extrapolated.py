"""Solvers that extrapolate the noise eps = (y - D) / s, of which dy/ds = eps: DEIS and iPNDM.

A step is y_next = y + sum_j c_j eps_(k-j), the c_j summing to s_next - s. Written in outputs D, as
the loop's steps are, it reads all outputs so far, since every eps holds the state it was found at:
with y_0 and D_0, ..., D_k as unknowns each state is a known linear combination, and y_0 drops out
through the state at hand. After a correction, which moves states, that combination is kept, so
that the solver goes on from the corrected state by the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from stages.methods.path import Denoiser
from stages.methods.solvers.multistep import ratio

ORDER = 4  # noises that a step reads
EVERY = 10_000  # outputs kept: more than there are steps
NODES, QUADRATURE = np.polynomial.legendre.leggauss(32)

# Adams-Bashforth's weights of equal steps, newest first.
ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """Weights c of eps, newest first: Adams-Bashforth's of equal steps on any grid (improved PNDM;
    Liu et al. 2022, eq. 12, without Runge-Kutta steps, as in Zhang & Chen 2023, appendix).

    Of order 4 on levels evenly spaced in s, of order 2 on others. First order to s=0.
    """
    step = levels[k + 1] - levels[k]
    order = 1 if levels[k + 1] == 0 else min(ORDER, k + 1)
    return tuple(step * weight for weight in ADAMS[order - 1])


def deis(levels: Sequence[float], k: int) -> tuple[float, ...]:
    """Weights c of eps, newest first: tAB3 (Zhang & Chen 2023, eq. 15), the integral over s of the
    polynomial in t through the last four noises.

    t is the time of the linear path, t = s / (1 + s), which our networks know; the original takes
    that of its own networks, the VP-SDE's. Fewer noises in the first steps; first order to s=0.
    """
    if levels[k + 1] == 0:
        return (levels[k + 1] - levels[k],)
    known = np.array([levels[k - j] for j in range(min(ORDER, k + 1))])
    # In u = ln(1 + s) the integrand is smooth over the largest step.
    first, last = np.log1p(levels[k]), np.log1p(levels[k + 1])
    u = (first + last) / 2 + (last - first) / 2 * NODES
    measure = (last - first) / 2 * QUADRATURE * np.exp(u)
    times, at = known / (1 + known), -np.expm1(-u)
    weights = []
    for j, own in enumerate(times):
        others = np.delete(times, j)
        basis = np.prod([(at - other) / (own - other) for other in others], axis=0)
        weights.append(float((measure * basis).sum()))
    return tuple(weights)


FORMULAS = {"deis": deis, "ipndm": ipndm}


@lru_cache(maxsize=64)
def output_weights(name: str, levels: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Of every step the weights b of D_k, D_(k-1), ..., D_0 in y_next = r y + sum_j b_j D_(k-j)."""
    num_levels = len(levels) - 1
    # Rows are the states, columns y_0 and the outputs; so are those of the noises.
    states = np.zeros((num_levels + 1, num_levels + 1))
    noises = np.zeros((num_levels, num_levels + 1))
    states[0, 0] = 1
    found = []
    for k in range(num_levels):
        noises[k] = states[k] / levels[k]
        noises[k, 1 + k] -= 1 / levels[k]
        states[k + 1] = states[k]
        for j, weight in enumerate(FORMULAS[name](levels, k)):
            states[k + 1] += weight * noises[k - j]
        added = states[k + 1] - ratio(levels, k) * states[k]
        found.append(tuple(added[k + 1 : 0 : -1].tolist()))
    return tuple(found)


@dataclass(frozen=True)
class Extrapolated:
    """A solver of one evaluation a step by a formula of this module."""

    name: str
    memory: int = EVERY

    def evaluations(self, num_levels: int) -> int:
        return num_levels

    def check(self, levels: Sequence[float]) -> None:
        """Any grid will do."""

    def evaluate(self, denoiser: Denoiser, y: Tensor, levels: Sequence[float], k: int) -> Tensor:
        return denoiser(y, levels[k])

    def weights(self, levels: Sequence[float], k: int) -> tuple[float, ...]:
        return output_weights(self.name, tuple(levels))[k]

    def corrector(self, levels: Sequence[float], k: int) -> None:
        return None


DEIS = Extrapolated("deis")
IPNDM = Extrapolated("ipndm")
