"""Folders of image files as tensors, refusing what a score could not be computed from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["list_images", "read_images"]

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


def read_images(folder: str | Path) -> tuple[Tensor, list[str]]:
    """All images of a folder as (n, 3, H, W) in [-1, 1], and their names relative to it.

    Raises ValueError as list_images does, for a file that does not decode, and for images of more
    than one size: to resize them is a choice that belongs into the protocol's name.
    """
    from PIL import Image, UnidentifiedImageError

    folder = Path(folder).expanduser()
    pixels: list[np.ndarray] = []
    names: list[str] = []
    for path in list_images(folder):
        name = str(path.relative_to(folder))
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"{name} in {folder} cannot be read as an image ({error}); remove or replace it"
            ) from None
        if pixels and array.shape != pixels[0].shape:
            sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (pixels[0], array)]
            raise ValueError(
                f"images in {folder} have more than one size: {names[0]} is {sizes[0]} and {name} "
                f"is {sizes[1]}; resize them to one size first"
            )
        pixels.append(array)
        names.append(name)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1, names
