"""Samples made elsewhere: any files that a data set may come as, without a split."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError
from pipeline.stage import resolve
from stages.data.fitted import decode
from stages.data.readers.source import Listing, Pixels
from stages.data.recognised import recognised
from stages.methods import table

ALSO_FOLDERS = frozenset({"imagenet"})


@dataclass(frozen=True)
class Look:
    """What the first image is: (C, H, W), and the type of the values."""

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype


def kind_of(path: Path) -> str:
    """A key of table.SAMPLES; UsageError for what holds no samples that can be read."""
    kind = recognised(path, "evaluate.path")
    kind = "folder" if kind in ALSO_FOLDERS else kind
    if kind not in table.SAMPLES:
        raise UsageError(
            f"evaluate.path={path} holds a data set ({kind}); give samples as a folder of images, "
            f"or as {', '.join(sorted(table.SAMPLES.keys() - {'folder'}))}"
        )
    return kind


@contextmanager
def listed(path: Path, like: tuple[int, int, int]) -> Iterator[Listing]:
    """All images of a place. like: (C, H, W) of the data, for arrays whose axes could be either.

    Raises ValueError where they cannot be listed, or it is not certain what they mean.
    """
    kind = kind_of(path)
    pool = resolve(table.SAMPLES[kind])
    listing = pool(path, like) if kind == "npz" else pool(path)
    try:
        yield listing
    finally:
        if listing.scratch is not None:
            shutil.rmtree(listing.scratch, ignore_errors=True)


def read_images(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """All images of a place as (n, 3, H, W), uint8 or float32 in [-1, 1], and their names; for so
    few that they fit the memory. ValueError as `listed` and `taken` raise."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder of images, or a file that is read")
    with listed(path, (3, 0, 0)) as listing:
        images, _ = taken(listing, np.arange(len(listing.images)), 3)
        return images, list(listing.names)


def look(listing: Listing, channels: int) -> Look:
    """At the first image, which all others must be like."""
    first, _ = taken(listing, np.array([0]), channels)
    return Look(listing.names[0], first.shape[1:], first.dtype)


def taken(
    listing: Listing, which: np.ndarray, channels: int, like: Look | None = None
) -> tuple[np.ndarray, Counter[str]]:
    """Images (k, channels, H, W), uint8 or float32 in [-1, 1], and how many were in which mode.

    Raises ValueError for files that do not decode, that are not of the size of `like`, and for
    colours where one channel is asked for.
    """
    if isinstance(listing.images, Pixels):
        return with_channels(listing.images.take(which), channels), Counter()
    notes: Counter[str] = Counter()
    images = []
    for index in which:
        name = listing.names[index]
        picture = decode(listing.images.read(index), name)
        notes.update(picture.notes)
        pixels = picture.pixels
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        like = like or Look(name, (channels, *pixels.shape[1:]), pixels.dtype)
        if pixels.shape[1:] != like.shape[1:]:
            sizes = [f"{shape[2]}x{shape[1]}" for shape in (like.shape, pixels.shape)]
            raise ValueError(
                f"images have more than one size: {like.name} is {sizes[0]} and {name} is "
                f"{sizes[1]}; resize them to one size first"
            )
        images.append(with_channels(pixels[None], channels)[0])
    return np.stack(images), notes


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images for grey data, coloured for coloured; ValueError where colour would be lost."""
    if images.shape[1] < channels:
        images = images.repeat(channels, axis=1)
    elif images.shape[1] > channels:
        if (images != images[:, :1]).any():
            raise ValueError(
                "the samples are in colour and the data set is grey; convert them to grey, or "
                "choose the data set that they are samples of"
            )
        images = images[:, :1]
    return np.ascontiguousarray(images)
