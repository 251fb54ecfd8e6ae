"""MNIST and its relatives in the IDX format (LeCun et al. 1998), gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from stages.data.readers.source import InMemory, Part, Source, required
from stages.data.recognised import mnist_folder

UNSIGNED_BYTES = 0x08
LARGEST = 2**32  # bytes of an array, which is held in memory
STEMS = {"train": "train", "test": "t10k"}


def read(settings) -> Source:
    """`settings.path`: the folder with train-images-idx3-ubyte and its three companions."""
    folder = required(settings.path, "mnist", "folder of the IDX files")
    folder = mnist_folder(folder) or folder
    train, test = (
        Part(
            InMemory(read_idx(_file(folder, f"{stem}-images-idx3-ubyte"), 3)[:, None]),
            read_idx(_file(folder, f"{stem}-labels-idx1-ubyte"), 1).astype(np.int64),
        )
        for stem in STEMS.values()
    )
    return Source(train, test, tuple(str(digit) for digit in range(10)))


def _file(folder: Path, name: str) -> Path:
    names = (name, name.replace("-idx", ".idx"))  # torchvision's, and as some archives unpack
    for candidate in (folder / f"{n}{end}" for n in names for end in ("", ".gz")):
        if candidate.is_file():
            return candidate
    raise ValueError(f"{name} (or {name}.gz) is not in {folder}; place MNIST's four files there")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic number, sizes (big-endian), data.

    Raises ValueError for another type, another number of dimensions, or a wrong length.
    """
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(header)
            shape = _shape(head, dimensions, path)
            # What is packed may grow without bounds: no more is taken than was announced.
            data = _at_most(stream, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(data) != math.prod(shape):
        more = "more than " if len(data) > math.prod(shape) else ""
        raise ValueError(
            f"{path} holds {more}{min(len(data), math.prod(shape))} bytes of data where its header "
            f"says {math.prod(shape)}; it is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(head: bytes, dimensions: int, path: Path) -> list[int]:
    if len(head) < 4 + 4 * dimensions or head[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file")
    if head[2] != UNSIGNED_BYTES or head[3] != dimensions:
        raise ValueError(
            f"{path} holds type 0x{head[2]:02x} in {head[3]} dimensions; unsigned bytes (0x08) in "
            f"{dimensions} are expected"
        )
    shape = np.frombuffer(head, ">u4", dimensions, offset=4).tolist()
    if math.prod(shape) > LARGEST:
        raise ValueError(f"{path} announces {math.prod(shape)} bytes, more than {LARGEST} are read")
    return shape


def _at_most(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count and (part := stream.read(min(2**20, count - len(data)))):
        data += part
    return data
