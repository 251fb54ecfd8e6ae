"""Images that a model or somebody else made, with the labels they were asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.parts import rows
from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FILE = "samples.npy"  # the images
GRID_SIDE = 10

LARGE = 64  # pixels of a side that a picture in a grid is brought to, about


@dataclass(frozen=True)
class SampleSet:
    """images: (n, C, H, W) float32, not clipped to [-1, 1]. labels: (n,) long."""

    images: Tensor
    labels: Tensor


class Samples(DescribedArtifact):
    """Generated images and the labels they were asked for; stored as float32, or as uint8 whose 0
    to 255 is -1 to 1. Facts: training_step, solver, nfe, grid, method, time_density, seed, ..."""

    tracked = ("grid.png",)
    facts = "samples.json"

    @cached_property
    def steps(self) -> dict[str, list[float]]:
        """`level` and `gamma` of every solver step, noise first; gamma is 1 without correction,
        and the mean over blocks where each block of samples had its own."""
        return json.loads((self.path / "steps.json").read_text(encoding="utf-8"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(rows(self.path, FILE, slice(0)).shape[1:])

    def stored(self) -> np.ndarray:
        """(n, C, H, W) as they are stored, mapped."""
        import numpy as np

        return np.load(self.path / FILE, mmap_mode="r")

    @property
    def is_rounded(self) -> bool:
        """Whether they are stored as 8 bits."""
        return rows(self.path, FILE, slice(0)).dtype.kind == "u"

    def images(self, which: slice = slice(None)) -> Tensor:
        """(n, C, H, W) float32 images; reads no more of the file than `which` asks for."""
        return as_images(rows(self.path, FILE, which))

    def chosen(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 and labels (B,) of these indices; reads no others."""
        import numpy as np
        import torch

        labels = torch.from_numpy(np.load(self.path / "labels.npy"))
        return as_images(self.stored()[which.numpy()]), labels[which]

    def load(self) -> SampleSet:
        import numpy as np
        import torch

        return SampleSet(self.images(), torch.from_numpy(np.load(self.path / "labels.npy")))

    @classmethod
    def write(
        cls, folder: Path, images: np.ndarray, labels: np.ndarray, facts: Mapping[str, Any]
    ) -> None:
        """Write images (n, C, H, W), their labels (n,), a grid of the first ones and the facts."""
        import numpy as np

        np.save(folder / FILE, images)
        cls.complete(folder, labels, facts)

    @classmethod
    def complete(cls, folder: Path, labels: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Write all the rest beside images that are there."""
        import numpy as np

        images = np.load(folder / FILE, mmap_mode="r")
        np.save(folder / "labels.npy", labels)
        first = images[: GRID_SIDE**2]
        write_grid(folder / "grid.png", first / 127.5 - 1 if first.dtype == np.uint8 else first)
        cls.describe(folder, facts)

    def name_of(self, index: int) -> str:
        """What messages call a sample."""
        return f"image {index}"


def as_images(stored: np.ndarray) -> Tensor:
    """(n, C, H, W) float32 of images as they are stored."""
    import numpy as np
    import torch

    images = torch.from_numpy(np.array(stored, np.float32))
    return images / 127.5 - 1 if stored.dtype == np.uint8 else images


def write_grid(path: Path, images: np.ndarray, columns: int = GRID_SIDE) -> None:
    """A PNG of images (n, C, H, W), clipped to [-1, 1], each enlarged to about 48 pixels; large
    ones are reduced to about 64, by averages."""
    import numpy as np
    from PIL import Image

    images = _reduced(np.asarray(images), max(images.shape[2:]) // LARGE)
    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    scale, gap = max(1, 48 // max(height, width)), 1
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        pixels = np.rint((np.clip(image, -1, 1) + 1) * 127.5)
        sheet[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    sheet = sheet.repeat(scale, 0).repeat(scale, 1).astype(np.uint8)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet[..., :3]).save(path)


def _reduced(images: np.ndarray, factor: int) -> np.ndarray:
    """Images whose pixels are means of factor x factor pixels, the rest at the edges cut off."""
    if factor < 2:
        return images
    n, channels, height, width = images.shape
    rows, columns = height // factor, width // factor
    images = images[:, :, : rows * factor, : columns * factor].clip(-1, 1)
    return images.reshape(n, channels, rows, factor, columns, factor).mean((3, 5))


class ExternalSamples(Samples):
    """Samples made elsewhere, with the names of their files, or their places in an archive."""

    @cached_property
    def _names(self) -> list[str]:
        return json.loads((self.path / "names.json").read_text(encoding="utf-8"))

    def name_of(self, index: int) -> str:
        return self._names[index]
