"""Image files as pixels, and pixels brought to one size and to one range: one rule everywhere."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np

# What is made of a picture of another size: `adm` is the crop of guided diffusion, SiT, DiT, REPA
# and EDM2, `lanczos` the centre square of EDM, `resize` one bicubic step and the centre.
CROPS = ("adm", "resize", "lanczos")
# What Pillow raises on files that are cut short or changed.
UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, IndexError, TypeError, KeyError)
UNREADABLE = (*UNREADABLE, ZeroDivisionError, OverflowError, struct.error)
SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
COLOUR = frozenset({"RGB", "RGBX", "CMYK", "YCbCr", "P", *WITH_ALPHA})


class DamagedError(ValueError):
    """A file that is cut short or is no image; `data.skip_damaged` may allow for it."""


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    pixels: uint8, (H, W) where it is grey, else (H, W, 3). notes: what was made of its mode, in
    words, such as `alpha dropped`; empty for 8-bit grey and RGB.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def to_float(images: np.ndarray, white: int) -> np.ndarray:
    """uint8 in 0..white -> float32 in [-1, 1]; float32 images as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(white / 2) - np.float32(1)
    return images


def resized(images: np.ndarray, size: int, white: int, crop: str = "resize") -> np.ndarray:
    """Arrays (n, C, H, W) brought to size x size.

    crop `resize`: bicubic with antialiasing to the shorter side, then the centre; float32, clamped
    to [-1, 1]. The others as of files, uint8. Raises ValueError for others of what is not uint8.
    """
    if images.shape[2:] == (size, size):
        return images
    if crop == "resize":
        return _interpolated(images, size, white)
    if images.dtype != np.uint8:
        raise ValueError(
            f"data.crop={crop} is defined for 8-bit pictures, and these are {images.dtype}; set "
            "data.crop=resize"
        )
    return np.stack([_of_array(image, size, crop) for image in images])


def _of_array(image: np.ndarray, size: int, crop: str) -> np.ndarray:
    from PIL import Image

    grey = len(image) == 1
    picture = Image.fromarray(image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0)))
    pixels = np.asarray(cropped(picture, size, crop))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _interpolated(images: np.ndarray, size: int, white: int) -> np.ndarray:
    import torch
    from torch.nn import functional as F

    height, width = images.shape[2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    parts = []
    for start in range(0, len(images), 1024):
        batch = torch.from_numpy(to_float(images[start : start + 1024], white))
        batch = F.interpolate(batch, target, mode="bicubic", antialias=True, align_corners=False)
        parts.append(batch[:, :, top : top + size, left : left + size].clamp(-1, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))


def decoded(data: bytes, name: str, size: int | None = None, crop: str = "resize") -> np.ndarray:
    """The pixels of `decode`."""
    return decode(data, name, size, crop).pixels


def decode(data: bytes, name: str, size: int | None = None, crop: str = "resize") -> Picture:
    """An image file's bytes as 8-bit grey or RGB, cut to size x size where `size` is given.

    It is turned as its EXIF orientation says. Transparency is dropped, not blended, as
    torchvision, guided diffusion and clean-fid drop it. Of 16 bits the upper 8 are kept. With a
    palette or alpha it is grey where all its pixels are. Of several frames the first is taken.

    Raises DamagedError, with `name`, for what does not decode, and ValueError for more pixels than
    Pillow holds for safe, and for modes without an 8-bit meaning (32-bit integers, floats, ...).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            notes = _notes(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more pixels than are safe to decode ({error}); leave it out or make it "
            "smaller"
        ) from error
    except UNREADABLE as error:
        raise DamagedError(f"{name} is not a readable image: {_reason(error, data)}") from error
    image = _eight_bit(image, name)
    if size is not None:
        image = cropped(image, size, crop)
    return Picture(np.asarray(image), notes)


def _reason(error: Exception, data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the data: git lfs pull"
    if not data:
        return "it is empty"
    text = str(error)
    return "no image format that is known" if "cannot identify" in text else text


def _notes(image) -> tuple[str, ...]:
    """What will be made of an opened image, before it is loaded."""
    notes = []
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        notes.append("alpha dropped")
    if image.mode in ("P", "PA"):
        notes.append("palette")
    if image.mode in ("CMYK", "YCbCr"):
        notes.append(image.mode)
    if image.mode == "1":
        notes.append("1 bit")
    if _is_sixteen_bit(image):
        notes.append("upper 8 of 16 bits")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append("first frame")
    if image.getexif().get(0x0112, 1) not in (0, 1):
        notes.append("turned by EXIF")
    return tuple(notes)


def _is_sixteen_bit(image) -> bool:
    if image.mode in SIXTEEN_BIT:
        return True
    if image.mode == "I":  # Pillow's, of 16-bit files of these formats
        return image.format in ("PNG", "PPM")
    raw = "".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return ";16" in raw


def _eight_bit(image, name: str):
    """In mode L or RGB."""
    from PIL import Image

    if image.mode in ("L", "1"):
        return image.convert("L")
    if _is_sixteen_bit(image) and image.mode in (*SIXTEEN_BIT, "I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode not in COLOUR:
        kinds = {"I": "32-bit integers", "F": "floats"}
        raise ValueError(
            f"{name} holds {kinds.get(image.mode, 'mode ' + image.mode)}, which have no 8-bit "
            "meaning; save it as PNG in 8-bit grey or RGB"
        )
    # These modes and formats have colours even where a picture has none.
    looked_at = image.mode == "P" or image.mode in WITH_ALPHA or image.format in ("WEBP", "GIF")
    if image.mode == "RGB" and not looked_at:
        return image
    premultiplied = {"RGBa": "RGBA", "La": "LA"}
    if image.mode in premultiplied:
        image = image.convert(premultiplied[image.mode])
    image = image.convert("RGB")
    return image.convert("L") if looked_at and _is_grey(np.asarray(image)) else image


def _is_grey(pixels: np.ndarray) -> bool:
    first = pixels[..., :1]
    return bool((pixels == first).all())


def cropped(image, size: int, crop: str):
    """A PIL image brought to size x size by one of CROPS."""
    return {"adm": _adm, "resize": _one_step, "lanczos": _lanczos}[crop](image, size)


def _one_step(image, size: int):
    """Resized to the shorter side (bicubic), then the centre."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _adm(image, size: int):
    """Halved by boxes while the shorter side is at least twice `size`, then bicubic to the shorter
    side, then the centre (Dhariwal and Nichol 2021)."""
    from PIL import Image

    while min(image.size) >= 2 * size:
        halves = tuple(side // 2 for side in image.size)
        image = image.resize(halves, Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _lanczos(image, size: int):
    """The centre square, resized by Lanczos (Karras et al. 2022)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)
