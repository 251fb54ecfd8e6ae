"""How the images of a data set lie on disk, and how they are read from there.

A small set is one mapped array; a large one encoded image files, packed into shards; one of latents
shards of means and standard deviations. None keeps a file open between two readings but the mapped
array: all can be pickled, forked, and read from several threads.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.parts import Read, header, opened
from pipeline.payload import Payload

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Stored(Protocol):
    """Images as they lie on disk, read by index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of them."""

    def __len__(self) -> int: ...

    def take(self, which: slice | np.ndarray) -> np.ndarray:
        """(k, *shape), a copy; no more is read. which: a slice that goes up, or indices from
        0 to n - 1."""


def shard_file(part: str, index: int, suffix: str) -> str:
    """The name of a shard of a part: `train-00000.bin`."""
    return f"{part}-{index:05d}{suffix}"


@dataclass(frozen=True)
class Mapped:
    """One .npy file (n, C, H, W), mapped when it is first read."""

    folder: Path | Payload
    name: str

    @cached_property
    def array(self) -> np.ndarray:
        return np.load(self.folder / self.name, mmap_mode="r")

    def __reduce__(self):
        return Mapped, (self.folder, self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.array)

    def take(self, which: slice | np.ndarray) -> np.ndarray:
        # Indices have copied already; a slice is a view of the file.
        return np.array(self.array[which], copy=isinstance(which, slice) or None, subok=False)


@dataclass(frozen=True)
class _Shards:
    """folder, part: where the shards are. counts: how many images each holds, in their order."""

    folder: Path | Payload
    part: str
    counts: tuple[int, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,) the first image of each, and their number at the end."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.counts, np.int64))])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _places(self, which: slice | np.ndarray) -> np.ndarray:
        return np.arange(*which.indices(len(self))) if isinstance(which, slice) else which

    def _by_shard(self, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, which of `places` lie in it), so that each file is opened once; in their order
        there, so that what was read for one serves its neighbours."""
        shard = np.searchsorted(self.starts, places, side="right") - 1
        for index in np.unique(shard):
            chosen = np.flatnonzero(shard == index)
            yield int(index), chosen[np.argsort(places[chosen], kind="stable")]


@dataclass(frozen=True)
class Packed(_Shards):
    """Encoded image files one after another in shards `train-00000.bin`, decoded when read.

    `train_offsets.npy` (n + 1,) uint64 says where each begins, counted through all shards. shape:
    (C, H, W), C 1 or 3; what is grey has three equal channels where C is 3.
    """

    shape: tuple[int, int, int]

    def take(self, which: slice | np.ndarray) -> np.ndarray:
        places = self._places(which)
        images = np.empty((len(places), *self.shape), np.uint8)
        offsets = np.load(self.folder / f"{self.part}_offsets.npy", mmap_mode="r")
        for shard, chosen in self._by_shard(places):
            start = int(offsets[self.starts[shard]])
            with opened(self.folder, shard_file(self.part, shard, ".bin")) as read:
                for i in chosen:
                    first, last = map(int, offsets[places[i] : places[i] + 2])
                    data = read(last - first, first - start)
                    images[i] = unpacked(data, self.shape, f"image {places[i]} of {self.part}")
        return images


@dataclass(frozen=True)
class Latents(_Shards):
    """Means and standard deviations of latents, shards `train-00000.npy` (k, 2, C, h, w).

    A shard is float16 or float32; `dtype` is the wider of them all, and what `take` gives.
    """

    shape: tuple[int, int, int, int]
    dtype: str

    @cached_property
    def _heads(self) -> dict[int, tuple[np.dtype, int]]:
        """Type and begin of the values of those shards that were read."""
        return {}

    def _head(self, shard: int, file: str, read: Read) -> tuple[np.dtype, int]:
        if shard not in self._heads:
            found, *head = header(read)
            if found[1:] != self.shape:
                raise ValueError(f"{file} of the data set has shape {found}, not {self.shape}")
            self._heads[shard] = tuple(head)
        return self._heads[shard]

    def take(self, which: slice | np.ndarray) -> np.ndarray:
        places = self._places(which)
        latents = np.empty((len(places), *self.shape), self.dtype)
        for shard, chosen in self._by_shard(places):
            file = shard_file(self.part, shard, ".npy")
            rows = places[chosen] - self.starts[shard]
            ends = np.flatnonzero(np.diff(rows, append=-2) != 1) + 1  # of runs of neighbours
            with opened(self.folder, file) as read:
                dtype, begin = self._head(shard, file, read)
                size = dtype.itemsize * int(np.prod(self.shape))
                for first, last in zip([0, *ends[:-1]], ends, strict=True):
                    data = read(size * int(last - first), begin + size * int(rows[first]))
                    values = np.frombuffer(data, dtype).reshape(-1, *self.shape)
                    latents[chosen[first:last]] = values
        return latents


@dataclass(frozen=True)
class Mirrored:
    """Images and then all of them once more, mirrored left to right: n + i is i mirrored.

    count: n, the first ones of `stored`.
    """

    stored: Stored
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def __len__(self) -> int:
        return 2 * self.count

    def take(self, which: slice | np.ndarray) -> np.ndarray:
        if isinstance(which, slice):
            which = np.arange(*which.indices(len(self)))
        images = self.stored.take(which % self.count)
        mirrored = which >= self.count
        images[mirrored] = images[mirrored][..., ::-1]
        return images


@dataclass(frozen=True)
class LatentScale:
    """latents of the network = (z - shift) * scaling, of each channel or of all."""

    scaling: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def per_channel(self) -> tuple[np.ndarray, np.ndarray]:
        """Scaling and shift, each (1 or C, 1, 1) float32."""
        both = (np.atleast_1d(np.asarray(x, np.float32)) for x in (self.scaling, self.shift))
        return tuple(x[:, None, None] for x in both)

    @lru_cache(maxsize=8)  # noqa: B019 -- a handful of numbers
    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The same as tensors on a device, where they are kept: to copy them waits for it."""
        import torch

        return tuple(torch.from_numpy(x).to(device) for x in self.per_channel())


def unpacked(data: bytes | memoryview, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """(C, H, W) uint8 of an encoded image file; ValueError where it is not of that shape."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} of the data set does not decode: {error}") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != shape:
        raise ValueError(f"{name} of the data set has shape {pixels.shape} instead of {shape}")
    return pixels
