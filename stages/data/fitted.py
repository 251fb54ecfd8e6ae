"""Pixels brought to one size and to one range."""

from __future__ import annotations

import io

import numpy as np


def to_float(images: np.ndarray, white: int) -> np.ndarray:
    """uint8 in 0..white -> float32 in [-1, 1]; float32 images as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(white / 2) - np.float32(1)
    return images


def resized(images: np.ndarray, size: int, white: int) -> np.ndarray:
    """Images brought to size x size: bicubic with antialiasing to the shorter side, then the
    centre; float32, clamped to [-1, 1]."""
    import torch
    from torch.nn import functional as F

    height, width = images.shape[2:]
    if height == width == size:
        return images
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    parts = []
    for start in range(0, len(images), 1024):
        batch = torch.from_numpy(to_float(images[start : start + 1024], white))
        batch = F.interpolate(batch, target, mode="bicubic", antialias=True, align_corners=False)
        parts.append(batch[:, :, top : top + size, left : left + size].clamp(-1, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))


def decoded(data: bytes, name: str, size: int | None = None) -> np.ndarray:
    """An image file's bytes as uint8: (H, W) where it is grey, (H, W, 3) otherwise.

    size: it is resized so that its shorter side fits (bicubic) and cut to the centre. Raises
    ValueError, with `name`, for what is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is not a readable image: {error}") from error
    return np.asarray(image if size is None else _cropped(image, size))


def _cropped(image, size: int):
    """Resized to the shorter side, then the centre."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
