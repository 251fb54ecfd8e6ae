"""Image files of a folder, listed by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.data.readers.names import Names
from stages.data.readers.source import Listing
from stages.data.readers.tree import images_below


@dataclass(frozen=True)
class ImageFiles:
    """Files of a file system, by their names below `root`."""

    root: str
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return f"{self.root}/{self.names[index]}"


def pool(path: Path, follow_links: bool = True) -> Listing:
    """All images below a folder, sorted, whatever its folders mean."""
    found = images_below(path, follow_links)
    if not found.paths:
        raise ValueError(f"the folder {path} holds no images; give one with PNG or JPEG files")
    return Listing(files_of(path, found.paths), tuple(found.paths), found.said())


def files_of(root: Path, paths: Sequence[str]) -> ImageFiles:
    """The files of these relative paths."""
    return ImageFiles(str(root), Names.of(paths))
