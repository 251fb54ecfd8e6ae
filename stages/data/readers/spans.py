"""Files that lie in larger files, read at their offsets: zip archives and tars."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from stages.data.fitted import DamagedError
from stages.data.readers.names import Names

LOCAL_HEADER = 30  # bytes of a zip member before its name


@dataclass(frozen=True)
class Spans:
    """files: paths of the archives. names: of the n members. which: (n,) the archive of each.
    offsets, sizes: (n,) int64, bytes. zipped: offsets are those of zip's local headers. deflated:
    (n,) bool, compressed so. Read by `os.pread`: from several threads, and after a fork.
    """

    files: tuple[str, ...]
    names: Names
    which: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    zipped: bool = False
    deflated: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.files[self.which[index]]}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        descriptor = os.open(self.files[self.which[index]], os.O_RDONLY)
        try:
            if self.zipped:
                header = os.pread(descriptor, LOCAL_HEADER, offset)
                if header[:4] != b"PK\x03\x04":
                    raise ValueError(
                        f"{self.name(index)} is not where its archive says; copy it again"
                    )
                offset += LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(data) < size:
            raise ValueError(f"{self.name(index)} ends early; its archive is cut short")
        if self.deflated is not None and self.deflated[index]:
            try:
                return zlib.decompress(data, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise DamagedError(f"{self.name(index)} does not unpack: {error}") from error
        return data

    def of(self, members: np.ndarray) -> Spans:
        """Some of the members, in their order."""
        return Spans(
            self.files,
            Names.of(self.names[i] for i in members),
            *(x[members] for x in (self.which, self.offsets, self.sizes)),
            self.zipped,
            None if self.deflated is None else self.deflated[members],
        )
