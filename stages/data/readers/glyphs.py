"""Letters and digits of the fonts that matplotlib ships, drawn askew: 62 classes, no download.

Image i of a side is a function of (side, i) alone: class i mod 62 and, from a generator seeded by
the two, the font, an affine map (rotation within 20 degrees, shear within .25, scale .75 to 1.1,
shift within 3 pixels), the stroke, and both grey levels. So any number can be asked for, a longer
set begins with the shorter one, and shards draw what they hold. Held-out images are of fonts that
no training image has.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from stages.data.readers.source import Part, Source

SIZE = 32
CLASS_NAMES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmss10",
)
# Thin enough to be drawn with wider strokes.
THIN_FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "cmss10", "cmr10")
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "STIXGeneralBolIta", "cmr10")
NUM_TRAIN, NUM_HELD_OUT = 50_000, 10_000  # as stages.data.counted says before
_FINE = 3  # pixels that each pixel is averaged from, along a side
_EM = 22  # pixels of the image that an em takes


def read(settings) -> Source:
    """As many training images as `settings.limit` asks for, 50,000 without, and held-out ones."""
    held_out = settings.limit_held_out or NUM_HELD_OUT
    train = _part(0, TRAIN_FONTS, settings.limit or NUM_TRAIN)
    return Source(train, _part(1, HELD_OUT_FONTS, held_out), CLASS_NAMES)


def _part(side: int, fonts: tuple[str, ...], count: int) -> Part:
    return Part(Glyphs(side, fonts, count), np.arange(count) % len(CLASS_NAMES))


@dataclass(frozen=True)
class Glyphs:
    """Images of one side of the split, drawn when they are read: uint8, (1, 32, 32)."""

    side: int
    fonts: tuple[str, ...]
    count: int
    shape: ClassVar[tuple[int, int, int]] = (1, SIZE, SIZE)
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(k, 1, 32, 32) of these indices, in their order."""
        images = [drawn(self.side, int(index), self.fonts) for index in indices]
        return np.stack(images)[:, None] if images else np.empty((0, *self.shape), np.uint8)


def drawn(side: int, index: int, fonts: tuple[str, ...]) -> np.ndarray:
    """One image, (32, 32) uint8."""
    from PIL import Image, ImageDraw

    draws = np.random.Generator(np.random.PCG64((side, index)))
    name = fonts[draws.integers(len(fonts))]
    angle, shear = draws.uniform(-1, 1, 2) * (np.pi / 9, 0.25)
    scale = draws.uniform(0.75, 1.1, 2)
    shift = draws.uniform(-3, 3, 2) * _FINE
    stroke = int(draws.integers(3)) * (name in THIN_FONTS)
    dark, light = draws.uniform(0, 70), draws.uniform(140, 255)
    inverted = draws.random() < 0.5
    whole = SIZE * _FINE
    middle = whole / 2
    picture = Image.new("L", (whole, whole))
    ImageDraw.Draw(picture).text(
        (middle, middle),
        CLASS_NAMES[index % len(CLASS_NAMES)],
        fill=255,
        font=_font(name),
        anchor="mm",
        stroke_width=stroke,
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # PIL asks where each pixel of the result comes from.
    back = np.linalg.inv(turn @ np.array([[1, shear], [0, 1]]) @ np.diag(scale))
    offset = middle - back @ (middle + shift)
    map_ = (*back[0], offset[0], *back[1], offset[1])
    turned = picture.transform(picture.size, Image.Transform.AFFINE, map_, Image.Resampling.BICUBIC)
    ink = np.asarray(turned, np.float32).reshape(SIZE, _FINE, SIZE, _FINE).mean((1, 3)) / 255
    ink = 1 - ink if inverted else ink
    return np.rint(dark + (light - dark) * ink).astype(np.uint8)


@cache
def _font(name: str):
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), _EM * _FINE)
