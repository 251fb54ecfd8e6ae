"""Arrays of .npy and .npz files, mapped: no more of them is in memory than is taken."""

from __future__ import annotations

import math
import mmap
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

# What NumPy and zipfile raise on archives that are cut short, changed or encrypted.
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RuntimeError, OverflowError),
    *(
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
        MemoryError,
        tokenize.TokenError,
    ),
)
BLOCK = 2**24  # bytes that are copied at once
CHECKED = 2**28  # bytes of a stored member whose check sum is compared


@dataclass(frozen=True)
class FileArray:
    """An array of a file. member: its name in an .npz, or None for an .npy.

    What is pickled is the place alone; every process maps the file itself.
    """

    path: str
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def array(self) -> np.ndarray:
        """The array, read-only and mapped. Raises ValueError where it does not open."""
        status = Path(self.path).stat()
        return _mapped(self.path, self.member, status.st_mtime_ns, status.st_size)


def release(array: np.ndarray) -> None:
    """Let go of the pages of a mapped array that were read: they stay in the system's cache and no
    longer count as this process's memory."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def open_npy(path: Path) -> FileArray:
    """The array of an .npy file; ValueError for one that is damaged or holds Python objects."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    except UNREADABLE as error:
        raise _refusal(path, error) from None
    return FileArray(str(path), None, array.shape, array.dtype)


def open_npz(path: Path) -> dict[str, FileArray]:
    """The arrays of an .npz file by name; ValueError for one damaged or of Python objects."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a readable .npz file: it is no archive, or is cut short; write it with "
            "numpy.savez, or copy it again"
        )
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    shape, _, dtype = _header(stream)
                arrays[name.removesuffix(".npy")] = FileArray(str(path), name, shape, dtype)
    except UNREADABLE as error:
        raise _refusal(path, error) from None
    return arrays


def _header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of an .npy stream, which then stands at the
    data."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"its format is of version {version}")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("allow_pickle: it holds Python objects")
    return shape, fortran, dtype


@lru_cache(maxsize=16)
def _mapped(path: str, member: str | None, *state: int) -> np.ndarray:
    try:
        if member is None:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(member)
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                if info.file_size <= CHECKED:
                    _check_sum(archive, member)
                return _stored(path, info.header_offset)
            return _unpacked(archive, member)
    except UNREADABLE as error:
        raise _refusal(Path(path), error) from None


def _check_sum(archive: zipfile.ZipFile, member: str) -> None:
    """Read a member to its end, at which zipfile compares the check sum."""
    with archive.open(member) as stream:
        while stream.read(BLOCK):
            pass


def _stored(path: str, offset: int) -> np.ndarray:
    """A member that lies in the archive as it is, mapped at its place."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        local = stream.read(30)
        if local[:4] != b"PK\x03\x04":
            raise ValueError("a member does not begin where the archive says")
        name, extra = struct.unpack("<HH", local[26:30])
        stream.seek(offset + 30 + name + extra)
        shape, fortran, dtype = _header(stream)
        return _map(path, dtype, stream.tell(), shape, fortran)


def _unpacked(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """A compressed member, unpacked into a file that is gone when the process ends."""
    with archive.open(member) as stream, tempfile.TemporaryFile() as unpacked:
        shape, fortran, dtype = _header(stream)
        size = math.prod(shape) * dtype.itemsize
        if size > shutil.disk_usage(tempfile.gettempdir()).free:
            raise ValueError(f"it announces {size} bytes, for which there is no room")
        while block := stream.read(BLOCK):
            unpacked.write(block)
            if unpacked.tell() > size:  # it may grow without bounds
                raise ValueError(f"it holds more than the {size} bytes that it announces")
        unpacked.flush()
        return _map(unpacked, dtype, 0, shape, fortran)


def _map(file, dtype: np.dtype, offset: int, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    order = "F" if fortran else "C"
    if 0 in shape:
        return np.empty(shape, dtype, order)
    return np.memmap(file, dtype, "r", offset, shape, order)


def _refusal(path: Path, error: Exception) -> ValueError:
    kind = path.suffix.lower() or ".npy"
    if "allow_pickle" in str(error):
        writer = "numpy.savez" if kind == ".npz" else "numpy.save"
        return ValueError(
            f"{path} holds Python objects, which are not unpickled; write plain arrays "
            f"with {writer}"
        )
    return ValueError(
        f"{path} is not a readable {kind} file ({error}); it is damaged: copy it again"
    )
