"""What every reader returns, and what readers share: checks, splits, resizing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """images: (n, C, H, W), uint8 in 0..white or float32 in [-1, 1]; labels: (n,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which) -> ImageSet:
        return ImageSet(self.images[which], self.labels[which])


@dataclass(frozen=True)
class Source:
    """A data set as read. white: the uint8 value that becomes 1 (0 becomes -1)."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    white: int = 255


def split(pool: ImageSet, num_held_out: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images of a data set without a split of its own.

    The order is numpy's RandomState(0).permutation, whatever the run's seed; the last
    `num_held_out` are held out.
    """
    if not 1 <= num_held_out < len(pool):
        raise ValueError(
            f"held_out is {num_held_out}, but there are {len(pool)} images; hold out at least 1 "
            "and fewer than all"
        )
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pool))
    cut = len(pool) - num_held_out
    return pool[order[:cut]], pool[order[cut:]]


def required(path: str | None, dataset: str, kind: str) -> Path:
    """The path that the settings give, or ValueError: it is not set, or not there."""
    if path is None:
        raise ValueError(f"data set '{dataset}' needs data.path, the {kind}")
    location = Path(path).expanduser()
    if not location.exists():
        raise ValueError(f"data.path {location} does not exist; it must be the {kind}")
    return location


def check(source: Source, latent: bool = False) -> Source:
    """The source itself, or ValueError for counts, labels, types or values that do not fit.

    Latents may have any number of channels and any finite values.
    """
    num_classes = len(source.class_names)
    for name, part in (("training", source.train), ("held-out", source.test)):
        if len(part) == 0:
            raise ValueError(f"there are no {name} images; check data.path")
        if len(part.images) != len(part.labels):
            raise ValueError(f"{len(part.images)} {name} images have {len(part.labels)} labels")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} labels run from {low} to {high}; with {num_classes} classes they must "
                f"lie in 0..{num_classes - 1}"
            )
        _check_values(part.images, name, source.white, latent)
    if source.train.images.shape[1:] != source.test.images.shape[1:]:
        raise ValueError(
            f"training images have shape {source.train.images.shape[1:]} and held-out images "
            f"{source.test.images.shape[1:]} (C, H, W); set data.size to bring them to one"
        )
    return source


def _check_values(images: np.ndarray, name: str, white: int, latent: bool) -> None:
    if images.ndim != 4 or not (latent or images.shape[1] in (1, 3)):
        raise ValueError(
            f"{name} images have shape {images.shape}; they must be (n, C, H, W) with 1 or 3 "
            "channels; set data.latent=true if they are latents"
        )
    if latent and images.dtype != np.float32:
        raise ValueError(f"{name} latents have type {images.dtype}; give floating-point numbers")
    if images.dtype == np.uint8:
        if images.max() > white:
            raise ValueError(f"{name} images reach {images.max()}, above their white of {white}")
    elif images.dtype == np.float32:
        if not np.isfinite(images).all():
            raise ValueError(f"{name} images hold NaN or infinity")
        if not latent and np.abs(images).max() > 1.0001:
            raise ValueError(
                f"{name} images reach {np.abs(images).max():.4g}; floating-point images must lie "
                "in [-1, 1], others be uint8"
            )
    else:
        raise ValueError(f"{name} images have type {images.dtype}; give uint8 or float32")


def to_float(images: np.ndarray, white: int) -> np.ndarray:
    """uint8 in 0..white -> float32 in [-1, 1]; float32 images as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(white / 2) - np.float32(1)
    return images


def resized(images: np.ndarray, size: int, white: int) -> np.ndarray:
    """Images brought to size x size: bicubic with antialiasing to the shorter side, then the
    centre; float32, clamped to [-1, 1]."""
    import torch
    from torch.nn import functional as F

    height, width = images.shape[2:]
    if height == width == size:
        return images
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    parts = []
    for start in range(0, len(images), 1024):
        batch = torch.from_numpy(to_float(images[start : start + 1024], white))
        batch = F.interpolate(batch, target, mode="bicubic", antialias=True, align_corners=False)
        parts.append(batch[:, :, top : top + size, left : left + size].clamp(-1, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))
