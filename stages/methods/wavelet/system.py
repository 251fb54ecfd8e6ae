"""The linear systems of the wavelet score at one noise level, and its exact risk.

Clean moments become the moments G and b under noise (`hermite`), block by block of
groups so that memory stays bounded; one batched Cholesky solve serves all groups of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.methods.wavelet.hermite import affine, powers
from stages.methods.wavelet.model import SOLVE_BYTES, Layout


class NoisyMoments:
    """Moments under noise of standard deviation sigma.

    scale: (num_coefficients,), clean scale of every coefficient; moments: (groups, p, p), sums of
    psi(u) psi(u)^T over `count` images. tau: (num_coefficients,), sqrt(scale^2 + sigma^2).
    """

    def __init__(
        self, layout: Layout, scale: Tensor, moments: Tensor, count: int, sigma: float
    ) -> None:
        self.layout, self.moments, self.count, self.sigma = layout, moments, count, sigma
        noise = sigma**2 * layout.noise_variance.to(scale)
        self.tau = (scale**2 + noise).sqrt()
        self.kappa, self.rho2 = scale / self.tau, noise / self.tau**2
        self.derivatives = layout.features.derivatives(layout.num_targets)
        self.blocks = layout.blocks(8 * len(layout.features) ** 2, SOLVE_BYTES)

    def assemble(self, block: slice) -> tuple[Tensor, Tensor]:
        """G (g, p, p) and b (g, targets, p); a missing variable has 1 on the diagonal, else 0."""
        features = self.layout.features
        kappa = self._products(self.kappa, block)
        scaled = self.moments[block] / self.count
        scaled.mul_(kappa[:, :, None]).mul_(kappa[:, None, :])
        gram = features.noisy_gram(scaled, self._products(self.rho2, block))
        tau = self._tau(block)
        if self.layout.noise is not None:
            off = self.layout.noise - self.layout.noise.diagonal().diag()
            gram[:, 1:, 1:] += self.sigma**2 * off.to(gram) / (tau[:, :, None] * tau[:, None, :])
        present = self._products(torch.ones_like(self.tau), block)
        gram.diagonal(dim1=1, dim2=2).add_(1 - present)
        target, feature, lower, root = (index.to(gram.device) for index in self.derivatives)
        slopes = gram.new_zeros(len(gram), self.layout.num_targets, len(features))
        slopes[:, target, feature] = root * scaled[:, lower, 0] / tau[:, target]
        return gram, slopes

    def penalty(self, block: slice, kind: str) -> Tensor:
        """P, (g, p) when it is diagonal, else (g, p, p); the intercept is free."""
        tau = self._tau(block)
        size = len(self.layout.features)
        if kind == "pixel" and self.layout.noise is not None:
            matrix = tau.new_zeros(len(tau), size, size)
            matrix[:, 1:, 1:] = self.layout.noise.to(tau) / (tau[:, :, None] * tau[:, None, :])
            return matrix
        diagonal = tau.new_ones(len(tau), size)
        diagonal[:, 0] = 0
        if kind != "scaled":
            diagonal[:, 1:] = 1 / tau**2
        return diagonal

    def wiener(self, block: slice, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the diagonal Wiener score -y_i / tau_i, and these times G; both
        (g, targets, p)."""
        num_targets = self.layout.num_targets
        target = torch.arange(num_targets, device=gram.device)
        linear = 1 + target * self.layout.features.degree
        slope = -1 / self._tau(block)[:, :num_targets]
        pull = gram[:, linear] * slope[..., None]
        prior = torch.zeros_like(pull)
        prior[:, target, linear] = slope
        return prior, pull

    def risk(self, gram: Tensor, slopes: Tensor, beta: Tensor) -> Tensor:
        """R = sigma^2 + sigma^4 (beta^T G beta + 2 b^T beta) of every target, (g, targets).

        For a basis that is not orthonormal, the diagonal of B B^T times the same matrix, whose
        trace is the risk in pixels.
        """
        if self.layout.noise is None:
            inner = ((beta @ gram + 2 * slopes) * beta).sum(-1)
            return self.sigma**2 + self.sigma**4 * inner
        inner = beta @ gram @ beta.mT + 2 * beta @ slopes.mT
        return self.sigma**2 + self.sigma**4 * (self.layout.noise.to(gram) * inner).sum(-1)

    def _tau(self, block: slice) -> Tensor:
        """tau of the variables, (g, m), 1 where missing."""
        return self.layout.gather(self.tau, block) + ~self.layout.present[block].to(self.tau.device)

    def _products(self, values: Tensor, block: slice) -> Tensor:
        """Powers values^a of every feature, (g, p), zero where a variable is missing."""
        single = powers(self.layout.gather(values, block), self.layout.features.degree)
        return self.layout.features.products(single[..., None])[..., 0]


def change_reference(layout: Layout, moments: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Moments of psi(c u + d) from those of psi(u), exactly; c, d: (num_coefficients,)."""
    degree, size = layout.features.degree, len(layout.features)
    parts = []
    for block in layout.blocks(8 * size**2, SOLVE_BYTES):
        missing = ~layout.present[block].to(c.device)  # stays as it is: c = 1, d = 0
        single = affine(layout.gather(c, block) + missing, layout.gather(d, block), degree)
        change = layout.features.substitution(single)
        parts.append(change @ moments[block] @ change.mT)
    return torch.cat(parts)


def solve(
    gram: Tensor, slopes: Tensor, penalty: Tensor, ridge: float, prior: tuple[Tensor, Tensor] | None
) -> Tensor:
    """beta of (G + ridge P)(beta - prior) = -b - G prior, (g, targets, p).

    prior: the centre and G times it, as `NoisyMoments.wiener` gives them, or None for zero.
    Raises ValueError when the system is singular, which only a vanishing ridge allows.
    """
    if penalty.ndim == 3:
        system = gram + ridge * penalty
    else:
        system = gram.clone()
        system.diagonal(dim1=1, dim2=2).add_(ridge * penalty)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed.any():
        raise ValueError(
            f"ridge {ridge:g} is too small: the moments are singular at this sigma; use a larger "
            "ridge, for example 1e-6, or more images."
        )
    if prior is None:
        return -torch.cholesky_solve(slopes.mT, factor).mT
    centre, pull = prior
    return centre - torch.cholesky_solve((slopes + pull).mT, factor).mT


def checked_level(sigma: float) -> float:
    """sigma as a number. Raises ValueError unless it is above 0 and finite."""
    sigma = float(sigma)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(
            f"sigma must be above 0 and finite, got {sigma:g}: it is the noise's standard "
            "deviation in the units of the images."
        )
    return sigma


def checked_levels(s: float | Tensor, num_images: int) -> list[float]:
    """The levels of a denoiser(y, s): one, or one an image. Raises ValueError for another count."""
    levels = torch.as_tensor(s, dtype=torch.float64).flatten().tolist()
    if len(levels) not in (1, num_images):
        raise ValueError(
            f"{len(levels)} noise levels were given for {num_images} images: give one level, or "
            "one for each image."
        )
    return levels


def checked_ridge(ridge: float) -> float:
    """ridge as a number. Raises ValueError unless it is 0 or above and finite."""
    ridge = float(ridge)
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be 0 or above and finite, got {ridge:g}.")
    return ridge
