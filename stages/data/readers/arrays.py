"""What the axes and values of an array of images mean: taken where it is certain, refused with the
remedy where it is not, never guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stages.data.readers.mapped import FileArray, release

BLOCK = 2**25  # bytes that are looked at at once
DIM = 32  # a highest value below this is no picture of 0..255
Axes = Literal["nhwc", "nchw"]
Range = Literal["signed", "unit", "bytes"]
RANGES = "signed (-1 to 1), unit (0 to 1) or bytes (0 to 255)"


@dataclass(frozen=True)
class Stack:
    """Pixels of an array (n, H, W), (n, H, W, C) or (n, C, H, W), in memory or of a file.

    axes: nhw, nhwc or nchw. convert: how values become 0..255 or [-1, 1], see `_converted`.
    """

    stored: np.ndarray | FileArray
    axes: str
    convert: str = "as they are"

    @property
    def array(self) -> np.ndarray:
        return self.stored.array if isinstance(self.stored, FileArray) else self.stored

    @property
    def shape(self) -> tuple[int, int, int]:
        sizes = self.stored.shape[1:]
        if self.axes == "nhw":
            return (1, *sizes)
        return (sizes[2], *sizes[:2]) if self.axes == "nhwc" else tuple(sizes)

    @property
    def range(self) -> Range:
        """What the values were taken for."""
        return {"float32": "signed", "unit": "unit"}.get(self.convert, "bytes")

    @property
    def dtype(self) -> np.dtype:
        floats = self.convert in ("float32", "unit", "bytes")
        return np.dtype(np.float32 if floats else np.uint8)

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(k, C, H, W) uint8 in 0..255, or float32."""
        array = self.array
        images = np.asarray(array[indices])
        release(array)
        if self.axes == "nhw":
            images = images[:, None]
        elif self.axes == "nhwc":
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(_converted(images, self.convert))


def _converted(images: np.ndarray, how: str) -> np.ndarray:
    match how:
        case "bool":
            return images.astype(np.uint8) * np.uint8(255)
        case "upper 8 of 16 bits":
            return (images >> 8).astype(np.uint8)
        case "whole":
            return images.astype(np.uint8)
        case "unit":
            return images.astype(np.float32) * np.float32(2) - np.float32(1)
        case "bytes":
            return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
        case "float32":
            return images.astype(np.float32, copy=False)
    return images


def pixels_of(
    stored: np.ndarray | FileArray,
    name: str,
    axes: Axes | None = None,
    values: Range | None = None,
    like: tuple[int, int, int] | None = None,
    overshoot: float = 1e-4,
    told: bool = True,
) -> Stack:
    """Pixels of an array of images.

    axes, values: what the user says of them, None to be found out. like: (C, H, W) that decides
    where the axes could be either. overshoot: how far floats may lie outside [-1, 1]. told: whether
    settings can say axes and values, which messages then name.

    Raises ValueError where shape or values are not certain; it names what would be.
    """
    stack = Stack(stored, _pixel_axes(stored.shape, name, axes, like, told))
    return replace(stack, convert=_pixel_values(stored, name, values, overshoot, told))


def latents_of(stored: np.ndarray | FileArray, name: str, axes: Axes | None = None) -> Stack:
    """Latents of an array (n, C, h, w) or (n, h, w, C), float32: any channels, any finite values.

    Raises ValueError where the axes could be either: they are told by two equal sides.
    """
    if stored.dtype.kind != "f":
        raise ValueError(
            f"{name} latents have type {stored.dtype}; give floating-point numbers, or set "
            "data.latent=false if they are pixels"
        )
    stack = Stack(stored, _latent_axes(stored.shape, name, axes), "float32")
    half, lowest = stack.shape[0] // 2, [0.0, 0.0]
    for start, block in _blocks(stack.array):
        _check_finite(block, start, name)
        if half >= 4 and stack.shape[0] == 2 * half:
            halves = np.split(block, 2, axis=3 if stack.axes == "nhwc" else 1)
            lowest = [min(low, float(of.min())) for low, of in zip(lowest, halves, strict=True)]
    if lowest[0] < 0 == lowest[1]:
        raise ValueError(
            f"{name} has {2 * half} channels of which the last {half} are never negative, as "
            "standard deviations are: give the means alone, or a folder of img-mean-std-*.npy"
        )
    return stack


def _pixel_axes(shape: tuple[int, ...], name: str, axes: Axes | None, like, told: bool) -> str:
    if len(shape) == 3 and 0 not in shape:
        return "nhw"
    if len(shape) != 4 or 0 in shape:
        more = ", not empty" if 0 in shape else ""
        raise ValueError(
            f"{name} has shape {shape}; give (n, H, W) or (n, H, W, C) or (n, C, H, W){more}, "
            "with 1 or 3 channels"
        )
    possible = {k: s for k, s in _orders(shape).items() if s[0] in (1, 3) and axes in (None, k)}
    if not possible:
        raise ValueError(
            f"{name} images have shape {shape}; they must be (n, H, W, C) or (n, C, H, W) with 1 "
            f"or 3 channels{'; set data.latent=true if they are latents' if told else ''}; drop "
            "the fourth channel of RGBA"
        )
    if len(possible) > 1 and like is not None:
        possible = {k: s for k, s in possible.items() if s == like} or possible
    if len(possible) > 1:
        square = {k: s for k, s in possible.items() if s[1] == s[2]}
        possible = square if len(square) == 1 else possible
    if len(possible) > 1:
        raise _ask_axes(shape, name, told)
    return next(iter(possible))


def _orders(shape: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) by each reading of the axes."""
    _, a, b, c = shape
    return {"nhwc": (c, a, b), "nchw": (a, b, c)}


def _latent_axes(shape: tuple[int, ...], name: str, axes: Axes | None) -> str:
    if len(shape) == 3 and 0 not in shape:
        return "nhw"
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; give latents (n, C, h, w) or (n, h, w, C)")
    if axes is not None:
        return axes
    square = [order for order, (_, h, w) in _orders(shape).items() if h == w]
    if len(square) != 1:
        raise _ask_axes(shape, name)
    return square[0]


def _ask_axes(shape: tuple[int, ...], name: str, told: bool = True) -> ValueError:
    remedy = "set data.axes=nchw or data.axes=nhwc" if told else "give image files instead"
    return ValueError(
        f"{name} has shape {shape}, which could be (n, C, H, W) or (n, H, W, C); {remedy}"
    )


def _pixel_values(stored, name: str, values: Range | None, overshoot: float, told: bool) -> str:
    """How the values become 0..255 or [-1, 1]: a key of `_converted`."""
    kind = stored.dtype.kind
    if kind not in "buif":
        raise ValueError(f"{name} has type {stored.dtype}; give uint8, or floats in [-1, 1]")
    if kind == "b":
        return "bool"
    array = stored.array if isinstance(stored, FileArray) else stored
    low, high, whole = _extent(array, name)
    if kind == "f":
        return _float_values(low, high, whole, name, values, overshoot, told)
    if values in ("signed", "unit"):
        raise ValueError(f"data.range={values}, but {name} has type {stored.dtype}; leave it unset")
    if stored.dtype == np.uint8:
        if 0 < high < DIM and values is None:
            raise ValueError(
                f"{name} reaches only {high:g} of 255, which is nearly black; if {high:g} is "
                f"white, multiply by {255 / high:g} (bool arrays are taken as they are)"
                f"{'; else set data.range=bytes' if told else ''}"
            )
        return "as they are"
    if stored.dtype == np.uint16 and high > 2**15:
        return "upper 8 of 16 bits"
    if low >= 0 and high <= 255 and (high >= DIM or values == "bytes"):
        return "whole"
    raise ValueError(
        f"{name} has type {stored.dtype} and lies in [{low:g}, {high:g}]; give uint8 in 0..255, or "
        "uint16 that reaches beyond 32767, or floats in [-1, 1]"
    )


def _float_values(low, high, whole: bool, name: str, values, overshoot: float, told) -> str:
    bounds = {"signed": (-1, 1), "unit": (0, 1), "bytes": (0, 255)}
    if values is not None:
        least, most = bounds[values]
        slack = (most - least) / 2 * max(overshoot, 1e-4)
        if low < least - slack or high > most + slack:
            raise ValueError(
                f"data.range={values}, but {name} lies in [{low:.4g}, {high:.4g}]; it takes "
                f"{RANGES}"
            )
        return "float32" if values == "signed" else values
    constant_zero = low == high == 0
    if constant_zero or (-1 - overshoot <= low <= -0.75 and high <= 1 + overshoot):
        return "float32"
    if whole and low >= 0 and DIM <= high <= 255:
        return "whole"
    raise ValueError(
        f"{name} lies in [{low:.4g}, {high:.4g}]; floating-point images must lie in [-1, 1], "
        "-1 black and 1 white: rescale them, or give uint8"
        f"{f', or say what they are by data.range={RANGES}' if told else ''}"
    )


def _extent(array: np.ndarray, name: str) -> tuple[float, float, bool]:
    """Lowest and highest value, and whether all are whole numbers; ValueError for NaN, infinity."""
    low, high, whole = np.inf, -np.inf, True
    for start, block in _blocks(array):
        if array.dtype.kind == "f":
            _check_finite(block, start, name)
            whole = whole and bool((block == np.rint(block)).all())
        low, high = min(low, block.min()), max(high, block.max())
    return float(low), float(high), whole


def _check_finite(block: np.ndarray, start: int, name: str) -> None:
    finite = np.isfinite(block).reshape(len(block), -1).all(1)
    if not finite.all():
        bad = start + int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} has NaN or infinite pixels in image {bad}; remove or replace it")


def _blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first, images) of so many at once that they fit the memory."""
    step = max(1, BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
        release(array)
