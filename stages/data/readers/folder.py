"""A folder of class folders of image files, the layout of ImageNet and of ImageFolder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.readers.order import mixed_order
from stages.data.readers.source import Part, Source, required, split

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
HELD_OUT_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class ImageFiles:
    """Files of a file system."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        return str(self.paths[index])


def read(settings) -> Source:
    """`settings.path`: CLASS/IMAGE, or train/CLASS/IMAGE beside test/ (or val/) of that layout.

    Image files without class folders are data without labels. Class numbers follow the sorted
    folder names. With `settings.size` every image is resized so that its shorter side fits
    (bicubic) and cut to the centre; without it all must be of one size. Without a test folder
    `settings.held_out` images (default: a sixth) are held out. Both parts are in an order of
    numpy's RandomState(0), with or without a test folder.
    """
    root = required(settings.path, "folder", "folder of class folders")
    held_out = next((root / n for n in HELD_OUT_FOLDERS if (root / n).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        names, files, labels = _listing(root)
        pool = Part(ImageFiles(tuple(files)), labels)
        number = len(pool) // 6 if settings.held_out is None else settings.held_out
        return Source(*split(pool, number), names)
    if settings.held_out is not None:
        raise ValueError(
            f"data.held_out is {settings.held_out}, but {held_out} holds the held-out images; "
            "leave data.held_out unset"
        )
    names, files, labels = _mixed(*_listing(root / "train"))
    test_names, test_files, test_labels = _mixed(*_listing(held_out))
    if test_names != names:
        odd = sorted(set(names) ^ set(test_names))[0]
        raise ValueError(f"class '{odd}' is in only one of {root / 'train'} and {held_out}")
    train, test = ImageFiles(tuple(files)), ImageFiles(tuple(test_files))
    return Source(Part(train, labels), Part(test, test_labels), names)


def _listing(root: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Class names, files and labels, sorted."""
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    if loose and not classes:
        return ("images",), loose, np.zeros(len(loose), np.int64)
    if len(classes) < 2:
        raise ValueError(f"{root} has {len(classes)} class folders; at least 2 are needed")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not images:
            raise ValueError(f"{folder} holds no image files")
        files += images
        labels += [label] * len(images)
    return tuple(folder.name for folder in classes), files, np.array(labels, np.int64)


def _mixed(
    names: tuple[str, ...], files: list[Path], labels: np.ndarray
) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """A listing in mixed order: sorted, it begins with the first classes alone."""
    order = mixed_order(len(files))
    return names, [files[i] for i in order], labels[order]
