"""A folder of class folders of image files, the layout of ImageNet and of ImageFolder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.data.readers.images import ImageSet, Source, required, split
from stages.data.readers.order import mixed_order

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
HELD_OUT_FOLDERS = ("test", "val")


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
        pool = ImageSet(_images(files, settings.size), labels)
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
    images = _images([*files, *test_files], settings.size)
    cut = len(files)
    return Source(ImageSet(images[:cut], labels), ImageSet(images[cut:], test_labels), names)


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


def _images(files: Sequence[Path], size: int | None) -> np.ndarray:
    """(n, C, H, W) uint8: one channel if every file is grey, else three."""
    opened = [_open(file, size) for file in files]
    grey = all(image.ndim == 2 for image in opened)
    first = opened[0].shape[:2]
    for file, image in zip(files, opened, strict=True):
        if image.shape[:2] != first:
            raise ValueError(
                f"images differ in size ({first[1]}x{first[0]} in {files[0].name}, "
                f"{image.shape[1]}x{image.shape[0]} in {file.name}); set data.size"
            )
    if grey:
        return np.stack(opened)[:, None]
    coloured = [x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=2) for x in opened]
    return np.ascontiguousarray(np.stack(coloured).transpose(0, 3, 1, 2))


def _open(file: Path, size: int | None) -> np.ndarray:
    """(H, W) for a grey file, (H, W, 3) otherwise."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} is not a readable image: {error}") from error
    return np.asarray(image if size is None else _fitted(image, size))


def _fitted(image, size: int):
    """Resized to the shorter side, then the centre."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
