"""Exact truths to test against: Gaussians and Gaussian mixtures with closed-form denoisers."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance): mean (d,), covariance (d, d), states (B, d)."""

    mean: Tensor
    covariance: Tensor

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num_samples, len(self.mean), dtype=self.mean.dtype, generator=generator)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).T

    def jacobian(self, s: float) -> Tensor:
        """dD/dy = C (C + s^2 I)^-1, the same everywhere."""
        identity = torch.eye(len(self.mean), dtype=self.mean.dtype)
        return torch.linalg.solve(self.covariance + s**2 * identity, self.covariance)

    def denoiser(self, y: Tensor, s: float) -> Tensor:
        """E[x0 | y], y = x0 + s eps."""
        return self.mean + (y - self.mean) @ self.jacobian(s).T

    def score(self, y: Tensor, s: float) -> Tensor:
        return (self.denoiser(y, s) - y) / s**2

    def divergence(self, y: Tensor, s: float) -> Tensor:
        """div D at every y: (B,)."""
        return self.jacobian(s).trace().expand(len(y))

    def flow(self, y: Tensor, s: float, s_next: float) -> Tensor:
        """The exact end of the probability-flow ODE from level s at level s_next."""
        values, vectors = torch.linalg.eigh(self.covariance)
        scale = ((values + s_next**2) / (values + s**2)).sqrt()
        return self.mean + ((y - self.mean) @ vectors * scale) @ vectors.T


@dataclass(frozen=True)
class Mixture:
    """sum_k weights_k N(means_k, stds_k^2 I): weights (K,), means (K, d), stds (K,).

    sharpness: 1 is the truth; above 1 the denoiser is wrong on purpose, being too sure which
    component a state belongs to (logits times sharpness). Samples are the truth's.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    sharpness: float = 1.0

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        noise = torch.randn(
            num_samples, self.means.shape[1], dtype=self.means.dtype, generator=generator
        )
        return self.means[chosen] + self.stds[chosen, None] * noise

    def _posterior(self, y: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Responsibilities (B, K) and gains (K,): a component's posterior mean is
        (1 - gain) mean_k + gain y, its posterior variance gain s^2 per coordinate."""
        total = self.stds**2 + s**2
        squares = y.square().sum(1, keepdim=True) - 2 * y @ self.means.T
        squares = squares + self.means.square().sum(1)
        log_likelihood = -0.5 * squares / total - 0.5 * y.shape[1] * total.log()
        logits = self.sharpness * (log_likelihood + self.weights.log())
        return logits.softmax(-1), self.stds**2 / total

    def denoiser(self, y: Tensor, s: float) -> Tensor:
        """E[x0 | y], y = x0 + s eps."""
        responsibility, gain = self._posterior(y, s)
        return (responsibility * (1 - gain)) @ self.means + (responsibility @ gain)[:, None] * y

    def score(self, y: Tensor, s: float) -> Tensor:
        return (self.denoiser(y, s) - y) / s**2

    def divergence(self, y: Tensor, s: float) -> Tensor:
        """div D = tr Cov[x0 | y] / s^2 at every y: (B,)."""
        responsibility, gain = self._posterior(y, s)
        squares = (1 - gain) ** 2 * self.means.square().sum(1)
        squares = squares + 2 * gain * (1 - gain) * (y @ self.means.T)
        squares = squares + gain**2 * y.square().sum(1, keepdim=True)
        second = (responsibility * (squares + y.shape[1] * gain * s**2)).sum(1)
        return (second - self.denoiser(y, s).square().sum(1)) / s**2


def runge_kutta(denoiser, y: Tensor, s: float, s_next: float, num_steps: int = 2000) -> Tensor:
    """The end of the probability-flow ODE from level s at level s_next: classical Runge-Kutta on
    equal steps of log s, in which dy / d log s = y - D."""
    step = math.log(s_next / s) / num_steps

    def slope(state: Tensor, at: float) -> Tensor:
        return state - denoiser(state, s * math.exp(at * step))

    for k in range(num_steps):
        first = slope(y, k)
        second = slope(y + step / 2 * first, k + 0.5)
        third = slope(y + step / 2 * second, k + 0.5)
        fourth = slope(y + step * third, k + 1)
        y = y + step / 6 * (first + 2 * second + 2 * third + fourth)
    return y


def bench_mixture(seed: int, dimension: int = 16, components: int = 10) -> Mixture:
    """The mixture of the analytic bench (methods.md section 3), float64."""
    generator = np.random.default_rng(seed)
    means = torch.from_numpy(generator.standard_normal((components, dimension)) + 0.3)
    stds = torch.from_numpy(0.25 * (0.5 + generator.random(components)))
    weights = torch.from_numpy(generator.random(components) + 0.3)
    return Mixture(weights / weights.sum(), means, stds)


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms(difference: Tensor) -> float:
    """Root mean square over all coordinates."""
    return float(difference.square().mean().sqrt())


def sliced_wasserstein(a: Tensor, b: Tensor, num_projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two samples of equal size, (n, d) each.

    Root of the mean, over random directions, of the squared one-dimensional distance.
    """
    if len(a) != len(b):
        raise ValueError(f"samples have sizes {len(a)} and {len(b)}; give equal sizes")
    directions = noise((a.shape[1], num_projections), seed).to(a)
    directions = directions / directions.norm(dim=0)
    gap = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return math.sqrt(float(gap.square().mean()))
