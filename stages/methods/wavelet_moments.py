"""What is read from images for the wavelet score: two passes, each a map over shards.

The first pass gives mean and scale of every clean wavelet coefficient, the second the sums of
products of the Hermite features about that reference. Both work in float64 through blocks that
fit the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.hermite import hermite
from stages.methods.wavelet_model import CHUNK_BYTES, SHARD_IMAGES, Layout, WaveletModel

SCALE_FLOOR = 1e-4  # least clean scale of a coefficient, as a share of the root mean variance


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
        square, so that coefficients that never vary in training are harmless. Raises ValueError
        when nothing varies."""
        variance = self.squares / self.count
        total = float(variance.mean())
        if not total > 1e-20 * float((self.mean**2).mean()):  # what rounding leaves of a constant
            raise ValueError(
                f"images do not vary: all {self.count} are the same; a score needs at least two "
                "different images."
            )
        return variance.clamp(min=total * SCALE_FLOOR**2).sqrt()


def first_pass(images: Tensor, model: WaveletModel) -> CoefficientMoments:
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
    p = len(layout.features)
    moments = torch.zeros(layout.num_groups, p, p, dtype=torch.float64, device=images.device)
    for shard in images.split(SHARD_IMAGES):
        u = (layout.basis.analyse(shard.double()) - mean) / scale
        single = hermite(u.T.contiguous(), layout.features.degree)
        for block in layout.blocks(8 * p * len(shard), CHUNK_BYTES):
            psi = layout.features.products(layout.gather(single, block))
            moments[block].baddbmm_(psi, psi.mT)
    return moments


def checked_images(images: Tensor) -> Tensor:
    """images as a tensor. Raises ValueError unless they are finite floats (B, C, H, W)."""
    images = torch.as_tensor(images)
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
