"""TensorFlow 1's bilinear resize, which the Inception of 2015 was published with."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 299  # of Inception's input


def sampling_points(size: int, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `side` places, the two pixels of `size` that it lies between, (side,) long, and
    the second one's weight, (side,) float64.

    The source of place i is i size / side: no shift by half a pixel, no antialiasing, the last
    pixel repeated beyond the edge.
    """
    at = torch.arange(side, dtype=torch.float64) * (size / side)
    first = at.floor().long().clamp(max=size - 1)
    return first, (first + 1).clamp(max=size - 1), at - first


def resized(images: Tensor, side: int = SIDE) -> Tensor:
    """(B, C, H, W) of any values -> (B, C, side, side), in the images' floating type."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give floats (B, C, H, W)"
        )
    for axis in (2, 3):
        first, second, weight = (
            part.to(images.device) for part in sampling_points(images.shape[axis], side)
        )
        shape = [1] * 4
        shape[axis] = side
        low, high = images.index_select(axis, first), images.index_select(axis, second)
        images = low + (high - low) * weight.to(images.dtype).view(shape)
    return images
