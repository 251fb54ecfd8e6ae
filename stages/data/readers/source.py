"""What every reader returns, and what readers share: checks and splits.

A reader lists; it decodes nothing. What it gives is pickled to the tasks that convert it, so it
holds places and small tables, never the pixels of a large set.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class LatentFacts:
    """What is known of latents that a reader gives.

    The network sees (z - shift) * scaling, each a number or one a channel. autoencoder: its name
    and the values of the pixels that it encoded, in words.
    """

    autoencoder: str = "unknown"
    pixel_range: str = "unknown"
    scaling: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0


@dataclass(frozen=True)
class Source:
    """A data set as read.

    white: the uint8 value that becomes 1 (0 becomes -1). said: what was read and what was passed
    over, in words, for the log. latents: set where the images are means and standard deviations of
    an autoencoder's latents, whose `take` gives (k, 2, C, h, w). scratch: a folder of copies, to be
    removed when the images are no longer read.
    """

    train: Part
    test: Part
    class_names: tuple[str, ...]
    white: int = 255
    said: str = ""
    latents: LatentFacts | None = None
    scratch: str | None = None


@dataclass(frozen=True)
class Listing:
    """Images without a split, as samples come. names: of each. said: what was passed over."""

    images: Pixels | Encoded
    names: Sequence[str]
    said: str = ""
    scratch: str | None = None


LARGEST_HELD_OUT = 10_000
ASKED_FROM = 1_000_000


def number_held_out(settings, count: int) -> int:
    """How many of `count` images to hold out of data without a split of its own: as
    `settings.held_out` says, else a sixth, at most 10,000.

    Raises ValueError where it is unset and there are a million or more, of which none is taken from
    training without being asked for.
    """
    if settings.held_out is not None:
        return settings.held_out
    if count >= ASKED_FROM:
        raise ValueError(
            f"the data hold {count:,} images and no held-out ones, and none is taken from training "
            "unasked; set data.held_out, such as data.held_out=10000"
        )
    return min(count // 6, LARGEST_HELD_OUT)


def refuse_held_out(settings, what: str) -> None:
    """Raise ValueError where a number to hold out is set of data with a split of their own."""
    if settings.held_out is not None:
        raise ValueError(
            f"data.held_out is {settings.held_out}, but {settings.path} has {what}; leave "
            "data.held_out unset"
        )


def untrained(labels: np.ndarray, num_classes: int) -> list[int]:
    """Classes without an image among these."""
    count = np.bincount(labels, minlength=num_classes)
    return np.flatnonzero(count == 0).tolist() if num_classes > 1 else []


def split(pool: Part, num_held_out: int) -> tuple[Part, Part]:
    """Training and held-out images of a data set without a split of its own.

    The order is numpy's RandomState(0).permutation, whatever the run's seed; the last
    `num_held_out` are held out. Raises ValueError where a class is left without a training image.
    """
    if not 1 <= num_held_out < len(pool):
        raise ValueError(
            f"held_out is {num_held_out}, but there are {len(pool)} images; hold out at least 1 "
            "and fewer than all"
        )
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pool))
    cut = len(pool) - num_held_out
    train, test = pool[order[:cut]], pool[order[cut:]]
    lost = set(test.labels.tolist()) - set(train.labels.tolist())
    if lost:
        label = min(lost)
        count = int((test.labels == label).sum())
        raise ValueError(
            f"class number {label} has {count} images and all are among the held-out ones: it "
            "would be sampled, never trained; leave the class out, or set another data.held_out"
        )
    return train, test


def required(path: str | None, dataset: str, kind: str) -> Path:
    """The path that the settings give, or ValueError: it is not set, or not there."""
    if path is None:
        raise ValueError(f"data set '{dataset}' needs data.path, the {kind}")
    location = Path(path).expanduser()
    if not location.exists():
        raise ValueError(f"data.path {location} does not exist; it must be the {kind}")
    return location
