"""Shards written once: what a killed conversion has finished, its next attempt finds.

A shard is a file, arrays beside it, and facts with its hash that come last, so that a shard with
facts is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from stages.artifacts.storage import LatentScale, shard_file
from stages.methods.statistics import Moments

BLOCK_BYTES = 2**22  # read and converted at once
UNFINISHED = ("partial", "float32")  # what files end with until they are whole


@dataclass(frozen=True)
class Written:
    """A finished shard `folder/file` of `count` images. facts: what its writer found."""

    folder: Path
    file: str
    count: int
    size: int
    sha256: str
    facts: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / self.file

    def arrays(self) -> dict[str, np.ndarray]:
        """What its writer left beside it."""
        with np.load(self.folder / f"{self.file}.npz", allow_pickle=False) as arrays:
            return dict(arrays)


Beside = Callable[[], tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]


def sweep(folder: Path) -> None:
    """Remove what a killed attempt had begun and not finished, before tasks write there."""
    for suffix in UNFINISHED:
        for file in folder.glob(f"*.{suffix}"):
            file.unlink(missing_ok=True)


def find(folder: Path, file: str) -> Written | None:
    """A shard that is finished, or None."""
    try:
        facts = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
        size = (folder / file).stat().st_size
    except (OSError, ValueError):
        return None
    return Written(folder, **facts) if facts["size"] == size else None


def write_packed(
    folder: Path, file: str, images: Iterable[bytes], beside: Beside = lambda: ({}, {})
) -> Written:
    """Encoded images, one after another, unless they are there already: `images` is not begun
    then. beside: called after the last one, gives facts and arrays to keep. `offsets` (n + 1,)
    uint64 are among the arrays."""
    offsets = [0]

    def write(stream: IO[bytes]) -> int:
        for data in images:
            stream.write(data)
            offsets.append(offsets[-1] + len(data))
        return len(offsets) - 1

    def kept() -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        facts, arrays = beside()
        return facts, {"offsets": np.array(offsets, np.uint64), **arrays}

    return write_shard(folder, file, write, kept)


def write_shard(
    folder: Path, file: str, write: Callable[[IO[bytes]], int], beside: Beside
) -> Written:
    """A shard by `write`, which gives the number of its images, unless it is there already."""
    if (found := find(folder, file)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / file) as stream:
        hashed = _Hashed(stream)
        count = write(hashed)
    facts, arrays = beside()
    with _replacing(folder / f"{file}.npz") as stream:
        np.savez(stream, **arrays)
    made = Written(folder, file, count, hashed.size, hashed.digest.hexdigest(), dict(facts))
    described = asdict(made)
    del described["folder"]
    with _replacing(folder / f"{file}.json") as stream:
        stream.write(json.dumps(described).encode())
    return made


def write_latents(
    folder: Path,
    file: str,
    moments: Iterable[np.ndarray],
    scale: LatentScale,
    beside: Beside = lambda: ({}, {}),
) -> Written:
    """Means and standard deviations (k, 2, C, h, w), float32, in blocks that are not begun where
    the shard is there already.

    float16 where its spacing at every mean is below a tenth of the standard deviation there, else
    float32: `facts["dtype"]`. Among the arrays are those of the statistics of the scaled latents,
    the variance of the posterior included. ValueError for values that are not finite.
    """
    if (found := find(folder, file)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    raw = _own(folder / file, "float32")
    shape, fits, count = (), True, 0
    with raw.open("wb") as stream:
        for block in moments:
            block = np.ascontiguousarray(block, np.float32)
            if not np.isfinite(block).all() or (block[:, 1] < 0).any():
                raise ValueError(
                    f"latents {count} to {count + len(block) - 1} of {file} hold NaN, infinity or "
                    "a negative standard deviation"
                )
            fits = fits and _fits_float16(block)
            stream.write(block)
            shape, count = block.shape[1:], count + len(block)
    dtype = np.dtype(np.float16 if fits else np.float32)
    totals: list[Moments] = []

    def write(stream: IO[bytes]) -> int:
        write_header(stream, (count, *shape), dtype)
        mapped = np.memmap(raw, np.float32, "r", shape=(count, *shape))
        scaling, shift = (x.astype(np.float64) for x in scale.per_channel())
        rows = max(1, BLOCK_BYTES // mapped[0].nbytes)
        for start in range(0, count, rows):
            block = np.ascontiguousarray(mapped[start : start + rows], dtype)
            stream.write(block)
            mean, std = block[:, 0] - shift, block[:, 1] * scaling
            totals[:] = [sum_of([*totals, Moments.of(mean * scaling, std)])]
        return count

    def kept() -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        facts, arrays = beside()
        return {"dtype": dtype.name, **facts}, {**totals[0].arrays(), **arrays}

    made = write_shard(folder, file, write, kept)
    raw.unlink()
    return made


def write_arrays(
    folder: Path, name: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, Path]:
    """Arrays as .npy files, by name; `make` is called unless all of them are there already."""
    done = folder / f"{name}.json"
    if not done.is_file():
        arrays = make()
        folder.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            with _replacing(folder / f"{name}-{key}.npy") as stream:
                np.save(stream, array)
        with _replacing(done) as stream:
            stream.write(json.dumps(list(arrays)).encode())
    return {
        key: folder / f"{name}-{key}.npy" for key in json.loads(done.read_text(encoding="utf-8"))
    }


def join_arrays(files: Sequence[Path], target: Path) -> None:
    """One .npy file of several, one after another along the first axis, a block in memory at a
    time; the bytes are those of np.save."""
    first = np.load(files[0], mmap_mode="r")
    count = sum(len(np.load(file, mmap_mode="r")) for file in files)
    rows = max(1, BLOCK_BYTES // max(1, first[0].nbytes))
    with target.open("wb") as stream:
        write_header(stream, (count, *first.shape[1:]), first.dtype)
        for file in files:
            array = np.load(file, mmap_mode="r")
            for start in range(0, len(array), rows):
                stream.write(np.ascontiguousarray(array[start : start + rows]))


def sum_of(parts: Sequence[Any]) -> Any:
    """Their sum, in their order."""
    total, *others = parts
    for other in others:
        total = total + other
    return total


def place(shards: Sequence[Written], folder: Path, part: str, suffix: str) -> list[int]:
    """Finished shards as those of a part in a payload's folder, without copying; their counts.

    They stay in the work area too (as links), so that an attempt that dies now has them still.
    """
    for index, shard in enumerate(shards):
        link(shard.path, folder / shard_file(part, index, suffix))
    return [shard.count for shard in shards]


def link(source: Path, target: Path, otherwise: Callable[..., Any] = shutil.move) -> None:
    """Give a finished file a second place; on a file system without links it is moved there, or
    what `otherwise` does with the two."""
    try:
        os.link(source, target)
    except OSError:
        otherwise(source, target)


def place_packed(shards: Sequence[Written], folder: Path, part: str) -> list[int]:
    """The same of packed shards, with the offsets through all of them."""
    parts, end = [np.zeros(1, np.uint64)], np.uint64(0)
    for shard in shards:
        parts.append(shard.arrays()["offsets"][1:] + end)
        end = end + np.uint64(shard.size)
    np.save(folder / f"{part}_offsets.npy", np.concatenate(parts))
    return place(shards, folder, part, ".bin")


def _fits_float16(block: np.ndarray) -> bool:
    """Whether float16 keeps the means to a tenth of the standard deviations."""
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.spacing(np.abs(block[:, 0]).astype(np.float16)).astype(np.float32)
        return bool((spacing < block[:, 1] / 10).all()) and bool(
            np.isfinite(block.astype(np.float16)).all()
        )


def write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """The head of an .npy file, as np.save writes it."""
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)


def _own(path: Path, suffix: str) -> Path:
    """A name beside `path` that no other task has, on whatever machine: two may write one shard
    where the first is only thought to be lost, and containers share process numbers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{suffix}")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a file that takes its name when all of it is on the disk."""
    partial = _own(path, "partial")
    with partial.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


class _Hashed:
    """A stream that is written once, its size and its hash."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.size, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self.digest.update(view)
        self.size += len(view)
        return len(view)
