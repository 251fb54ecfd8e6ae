"""Denoisers to compare a score with: closed forms, and a classic threshold.

All take noisy images y = x0 + sigma z (B, C, H, W) and sigma, in the units of the images they
were made from, and return an estimate of x0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.methods.memorization import Rows

BLOCK_BYTES = 2**26  # of images in float64 at once


@dataclass(frozen=True)
class Identity:
    """D = y; risk sigma^2."""

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        _check_sigma(sigma)
        return y

    def risk(self, images: Tensor, sigma: float) -> float:
        """Exact mean squared error per coordinate on clean images."""
        _check_sigma(sigma)
        return float(sigma) ** 2


@dataclass(frozen=True, eq=False)
class PixelMean:
    """D = the mean training image (1, C, H, W); its risk does not depend on sigma."""

    mean: Tensor = field(repr=False)

    @staticmethod
    def fit(images: Tensor) -> PixelMean:
        return PixelMean(_checked(images).double().mean(0, keepdim=True))

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        _check_sigma(sigma)
        return self.mean.to(y).expand_as(y)

    def risk(self, images: Tensor, sigma: float) -> float:
        """Exact mean squared error per coordinate on clean images."""
        _check_sigma(sigma)
        return float(((images.double() - self.mean) ** 2).mean())


@dataclass(frozen=True, eq=False)
class FullWiener:
    """Best affine denoiser of a Gaussian with the training mean m and full covariance C,
    D = m + C (C + sigma^2 I)^-1 (y - m).

    mean: (d,); directions: (d, r) orthonormal eigenvectors of C; variances: (r,) eigenvalues,
    the sums of squares divided by the number of images. Float64.
    """

    mean: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    variances: Tensor = field(repr=False)

    @staticmethod
    def fit(images: Rows) -> FullWiener:
        """images: (B, C, H, W), read in blocks. Costs min(B, d)^2 max(B, d), and d^2 of memory."""
        count, rows = len(images), _rows(images)
        mean = sum(x.sum(0) for x in _blocks(images, rows)) / count
        if count < len(mean):
            x = torch.cat(list(_blocks(images, rows))) - mean
            _, singular, transposed = torch.linalg.svd(x, full_matrices=False)
            return FullWiener(mean, transposed.T, singular**2 / count)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for x in _blocks(images, rows):
            x = x - mean
            covariance.addmm_(x.T, x)
        variances, directions = torch.linalg.eigh(covariance / count)
        return FullWiener(mean, directions, variances.clamp(min=0))

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        _check_sigma(sigma)
        gain = self.variances / (self.variances + sigma**2)
        directions, mean = self.directions.to(y), self.mean.to(y)
        along = (y.flatten(1) - mean) @ directions * gain.to(y)
        return (mean + along @ directions.T).reshape(y.shape)

    def risk(self, images: Tensor, sigma: float) -> float:
        """Exact mean squared error per coordinate on clean images, training or held out."""
        _check_sigma(sigma)
        x = images.double().flatten(1) - self.mean
        along = x @ self.directions
        gain = self.variances / (self.variances + sigma**2)
        outside = ((x - along @ self.directions.T) ** 2).sum(1)
        bias = outside + (along**2 * (1 - gain) ** 2).sum(1)
        return float((bias.mean() + sigma**2 * (gain**2).sum()) / x.shape[1])


@dataclass(frozen=True, eq=False)
class EmpiricalBayes:
    """Exact posterior mean under the empirical distribution of the training images,
    sum_i softmax_i(-|y - x_i|^2 / (2 sigma^2)) x_i: what a perfectly trained network that
    memorises would give. images: (N, C, H, W); block: noisy images at once."""

    images: Tensor = field(repr=False)
    block: int = 256

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        _check_sigma(sigma)
        x = self.images.to(y).flatten(1)
        mean = x.mean(0)  # distances about it lose no digits to an offset of the images
        x = x - mean
        half_norms = (x**2).sum(1) / 2
        parts = []
        for rows in y.flatten(1).split(self.block):
            # |y|^2 is the same for every image and leaves the softmax.
            weights = torch.softmax(((rows - mean) @ x.T - half_norms) / sigma**2, dim=1)
            parts.append(mean + weights @ x)
        return torch.cat(parts).reshape(y.shape)


@dataclass(frozen=True)
class BayesShrink:
    """Soft thresholding with BayesShrink's threshold per band (Chang, Yu and Vetterli 2000), as
    scikit-image has it. It knows no training data. levels: None
    for scikit-image's own choice. Not differentiable; runs on the CPU, image by image."""

    wavelet: str = "db2"
    levels: int | None = None

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        _check_sigma(sigma)
        from skimage.restoration import denoise_wavelet

        images = [
            denoise_wavelet(
                image,
                sigma=float(sigma),
                wavelet=self.wavelet,
                mode="soft",
                method="BayesShrink",
                wavelet_levels=self.levels,
                channel_axis=0,
                rescale_sigma=False,
            )
            for image in y.detach().cpu().double().numpy()
        ]
        return torch.stack([torch.from_numpy(image) for image in images]).to(y)


def _rows(images: Rows) -> int:
    """Images of a block."""
    return max(1, BLOCK_BYTES // (8 * math.prod(_checked(images[:1]).shape[1:])))


def _blocks(images: Rows, rows: int) -> Iterator[Tensor]:
    """(B, d) float64 of all images, so many at once."""
    for start in range(0, len(images), rows):
        yield images[start : start + rows].double().flatten(1)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point (B, C, H, W), got {images.dtype} "
            f"{tuple(images.shape)}: convert or reshape them first."
        )
    return images


def _check_sigma(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(
            f"sigma must be above 0, got {sigma}: it is the noise's standard deviation in the "
            "units of the images."
        )
