"""MNIST and its relatives in the IDX format (LeCun et al. 1998), gzipped or not."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from stages.data.readers.source import InMemory, Part, Source, required
from stages.data.recognised import mnist_folder

UNSIGNED_BYTES = 0x08
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
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file")
    if data[2] != UNSIGNED_BYTES or data[3] != dimensions:
        raise ValueError(
            f"{path} holds type 0x{data[2]:02x} in {data[3]} dimensions; unsigned bytes (0x08) in "
            f"{dimensions} are expected"
        )
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(data) - header} bytes of data where its header says "
            f"{math.prod(shape)}; it is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
