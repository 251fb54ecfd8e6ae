"""What is read from images for the wavelet score: two passes, each a map over shards.

The first pass gives mean and scale of every clean wavelet coefficient, the second the sums of
products of the Hermite features about that reference. Both work in float64 through blocks that
fit the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.wavelet.hermite import hermite
from stages.methods.wavelet.model import CHUNK_BYTES, SHARD_IMAGES, Layout, WaveletModel

SCALE_FLOOR = 1e-4  # least clean scale of a coefficient, as a share of the root mean variance
ALIKE = "images do not vary: all {count} are the same; a score needs at least two different images."


@dataclass(frozen=True, eq=False)
class CoefficientMoments:
    """Result of the first pass, mergeable by `+`: count, mean and summed squares about the mean
    of each clean coefficient, (num_coefficients,), float64."""

    count: int
    mean: Tensor
    squares: Tensor

    def __add__(self, other: CoefficientMoments) -> CoefficientMoments:
        """Pairwise update of Chan, Golub and LeVeque 1979."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        squares = self.squares + other.squares + step**2 * (self.count * other.count / count)
        return CoefficientMoments(count, mean, squares)

    @property
    def scale(self) -> Tensor:
        """Clean standard deviation of each coefficient, at least `SCALE_FLOOR` of their root mean
        square, so that coefficients that never vary in training are harmless; 1 where nothing
        varies, as in a shard of one image."""
        variance = self.squares / self.count
        if not varies(variance, self.mean):
            return torch.ones_like(variance)
        return variance.clamp(min=float(variance.mean()) * SCALE_FLOOR**2).sqrt()

    def check_varies(self) -> None:
        """Raise ValueError when nothing varies, of which no score can be made."""
        if not varies(self.squares / self.count, self.mean):
            raise ValueError(ALIKE.format(count=self.count))


def varies(variance: Tensor, mean: Tensor) -> bool:
    """Whether coefficients vary by more than what rounding leaves of a constant."""
    return float(variance.mean()) > 1e-20 * float((mean**2).mean())


def coefficient_moments(images: Tensor, model: WaveletModel) -> CoefficientMoments:
    """Map over a shard of images (B, C, H, W): mean and spread of every clean coefficient."""
    images = checked_images(images)
    basis = model.layout(tuple(images.shape[1:])).basis
    total = None
    for shard in images.split(SHARD_IMAGES):
        w = basis.analyse(shard.double())
        mean = w.mean(0)
        moments = CoefficientMoments(len(w), mean, ((w - mean) ** 2).sum(0))
        total = moments if total is None else total + moments
    return total


def hermite_moments(images: Tensor, layout: Layout, mean: Tensor, scale: Tensor) -> Tensor:
    """Sum over images (B, C, H, W) of psi(u) psi(u)^T, u = (w0 - mean) / scale: (groups, p, p)."""
    moments = None
    for shard in images.split(SHARD_IMAGES):
        w = layout.basis.analyse(shard.double())
        moments = coefficient_products(w, layout, mean, scale, moments)
    return moments


def coefficient_products(
    w: Tensor, layout: Layout, mean: Tensor, scale: Tensor, onto: Tensor | None = None
) -> Tensor:
    """`hermite_moments` of clean coefficients w (B, num_coefficients), added onto others."""
    p = len(layout.features)
    if onto is None:
        onto = torch.zeros(layout.num_groups, p, p, dtype=torch.float64, device=w.device)
    single = hermite(((w - mean) / scale).T.contiguous(), layout.features.degree)
    for block in layout.blocks(8 * p * len(w), CHUNK_BYTES):
        psi = layout.features.products(layout.gather(single, block))
        onto[block].baddbmm_(psi, psi.mT)
    return onto


def checked_images(images: Tensor) -> Tensor:
    """images as a tensor. Raises ValueError unless they are finite floats (B, C, H, W)."""
    images = given.tensor(images, "images")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images must be (B, C, H, W) with no empty side, got {tuple(images.shape)}."
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating point, got {images.dtype}: convert them first, for example "
            "images / 127.5 - 1."
        )
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite: remove them first.")
    return images


def check_shape(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless images are (B, *shape)."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not fit statistics of (B, "
            f"{', '.join(map(str, shape))}) images: give images of that size."
        )
