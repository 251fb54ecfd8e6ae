"""Image files and .npz archives as arrays, refusing what a score could not be computed from."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["list_images", "read_images", "read_npz", "read_pixels"]

# What NumPy and zipfile raise on archives that are cut short, changed or encrypted.
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
SUFFIXES = {".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(folder: str | Path) -> list[Path]:
    """The image files below a folder, sorted by path.

    Raises ValueError where the folder is absent, holds no file, or holds one that is no image by
    its suffix; hidden files are passed over.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist; give one that holds images")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    others = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if others:
        raise ValueError(
            f"{len(others)} of {len(files)} files in {folder} are not images, the first "
            f"{others[0].name}; remove them, or convert them to PNG"
        )
    if not files:
        raise ValueError(f"the folder {folder} holds no images; give one with PNG or JPEG files")
    return files


def read_pixels(folder: str | Path, files: Sequence[Path]) -> np.ndarray:
    """Image files of one folder as (n, H, W, 3) uint8, converted to RGB as clean-fid does.

    Raises ValueError for a file that does not decode, and for images of more than one size: to
    resize them is a choice that belongs into the protocol's name.
    """
    from PIL import Image, UnidentifiedImageError

    folder = Path(folder).expanduser()
    pixels: np.ndarray | None = None
    for i, path in enumerate(files):
        name = str(path.relative_to(folder))
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(
                f"{name} in {folder} cannot be read as an image ({error}); remove or replace it"
            ) from None
        if pixels is None:
            pixels = np.empty((len(files), *array.shape), np.uint8)
        if array.shape != pixels.shape[1:]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (pixels.shape[1:], array.shape)]
            first = files[0].relative_to(folder)
            raise ValueError(
                f"images in {folder} have more than one size: {first} is {sizes[0]} and {name} "
                f"is {sizes[1]}; resize them to one size first"
            )
        pixels[i] = array
    if pixels is None:
        raise ValueError(f"there are no image files to read in {folder}")
    return pixels


def read_images(folder: str | Path) -> tuple[Tensor, list[str]]:
    """All images of a folder as (n, 3, H, W) in [-1, 1], and their names relative to it.

    Raises ValueError as list_images and read_pixels do.
    """
    folder = Path(folder).expanduser()
    files = list_images(folder)
    pixels = torch.from_numpy(read_pixels(folder, files)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, [str(path.relative_to(folder)) for path in files]


def read_npz(path: str | Path) -> np.ndarray:
    """The one array of images of an .npz file, as (n, C, H, W): uint8, or float32 in [-1, 1].

    It may be stored as (n, H, W), (n, H, W, C) or (n, C, H, W), with 1 or 3 channels; arrays of
    fewer dimensions (labels) are passed over. Nothing is unpickled.

    Raises ValueError where it is no archive or a damaged one, where there is not exactly one such
    array, it is empty, or its values lie elsewhere.
    """
    path = Path(path).expanduser()
    arrays = read_arrays(path)
    stacks = {name: array for name, array in arrays.items() if array.ndim in (3, 4)}
    if len(stacks) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{path} holds {len(stacks)} arrays of images ({shapes or 'it is empty'}); give one of "
            "shape (n, H, W), (n, H, W, C) or (n, C, H, W)"
        )
    (name, array), *_ = stacks.items()
    return _checked_values(_channels_first(array, f"{name} in {path}"), f"{name} in {path}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; ValueError for one damaged or of Python objects."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a readable .npz file: it is no archive, or is cut short; write it with "
            "numpy.savez, or copy it again"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are not unpickled; write plain arrays with "
                "numpy.savez"
            ) from None
        raise ValueError(
            f"{path} is not a readable .npz file ({error}); it is damaged: copy it again"
        ) from None


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., None]
    if array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}; give (n, H, W, C) or (n, C, H, W), not empty, with 1 "
            "or 3 channels"
        )
    return array


def _checked_values(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has type {array.dtype}; give uint8, or floats in [-1, 1]")
    finite = np.isfinite(array).reshape(len(array), -1).all(1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} has NaN or infinite pixels in image {bad}; remove or replace it")
    low, high = array.min(), array.max()
    if low < -1.5 or high > 1.5 or (low >= 0 and high > 0):
        raise ValueError(
            f"{name} lies in [{low:.4g}, {high:.4g}]; floating-point images must lie in [-1, 1], "
            "-1 black and 1 white: rescale them, or give uint8"
        )
    return array.astype(np.float32)
