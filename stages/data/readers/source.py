"""What every reader returns, and what readers share: checks and splits.

A reader lists; it decodes nothing. What it gives is pickled to the tasks that convert it, so it
holds places and small tables, never the pixels of a large set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

SPLIT_SEED = 0


@runtime_checkable
class Pixels(Protocol):
    """Images of one shape, read by index as they are stored."""

    shape: tuple[int, int, int]  # (C, H, W)
    dtype: np.dtype  # uint8 in 0..white, or floating point in [-1, 1]; of latents any values

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(k, C, H, W) of these indices, in their order; no more is read."""


@runtime_checkable
class Encoded(Protocol):
    """Image files (PNG, JPEG, ...), wherever their bytes lie; each may have its own size."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of one file."""

    def name(self, index: int) -> str:
        """What messages call it."""


@dataclass(frozen=True)
class InMemory:
    """Pixels of an array (n, C, H, W), in memory or mapped."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self.array[indices]


@dataclass(frozen=True)
class Part:
    """One side of a split: images, and a label each.

    labels: (n,) int64, of `images[order[i]]`. order: (n,) which images, in the order that they are
    kept in; None for all as they lie.
    """

    images: Pixels | Encoded
    labels: np.ndarray
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.order is None and len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | np.ndarray) -> Part:
        order = np.arange(len(self.images)) if self.order is None else self.order
        return replace(self, labels=self.labels[which], order=order[which])

    def places(self, first: int, last: int) -> np.ndarray:
        """The indices into `images` of the kept images first..last-1."""
        return np.arange(first, last) if self.order is None else self.order[first:last]


@dataclass(frozen=True)
class Source:
    """A data set as read. white: the uint8 value that becomes 1 (0 becomes -1). said: what was
    read and what was passed over, in words, for the log."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
    white: int = 255
    said: str = ""


def split(pool: Part, num_held_out: int) -> tuple[Part, Part]:
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
