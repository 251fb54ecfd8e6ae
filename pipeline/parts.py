"""Parts of a payload's files: of those in an object store no more comes than is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.payload import Payload, read_at

if TYPE_CHECKING:
    import numpy as np

Read = Callable[[int, int], bytes]
"""`read(size, offset)` of a file."""


@contextmanager
def opened(folder: Path | Payload, name: str) -> Iterator[Read]:
    """A file that is read in parts; from a store without fetching all of it, if parts are few."""
    if isinstance(folder, Payload) and not folder.has(name):
        yield lambda size, offset: folder.part(name, offset, size)
        return
    descriptor = os.open(folder / name, os.O_RDONLY)
    try:
        yield lambda size, offset: read_at(descriptor, size, offset)
    finally:
        os.close(descriptor)


def header(read: Read) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of an .npy file's values, and where they begin; ValueError for another
    order than C's."""
    import numpy as np

    size = int.from_bytes(read(2, 8), "little")
    stream = io.BytesIO(read(10 + size, 0))
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:
        raise ValueError("the array lies in Fortran's order")
    return shape, dtype, stream.tell()


def rows(
    folder: Path | Payload, name: str, which: slice = slice(None), mode: str = "r"
) -> np.ndarray:
    """Rows of an .npy file, mapped; neighbours in a store without fetching all of it.

    mode: of numpy's mapping: "r", or "c" for an array that may be written to, in memory alone.
    """
    import numpy as np

    if not isinstance(folder, Payload) or folder.has(name) or which.step not in (None, 1):
        return np.load(folder / name, mmap_mode=mode)[which]
    with opened(folder, name) as read:
        shape, dtype, begin = header(read)
        start, stop, _ = which.indices(shape[0])
        if start == 0 and stop == shape[0]:
            return np.load(folder / name, mmap_mode=mode)
        size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        count = max(0, stop - start)
        data = read(size * count, begin + size * start)
    found = np.frombuffer(data if mode == "r" else bytearray(data), dtype)
    return found.reshape(count, *shape[1:])
