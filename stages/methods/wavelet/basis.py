"""Separable 2-D wavelet transforms as tensors, in PyWavelets' periodized convention.

One level multiplies the rows and the columns of an image by a small analysis matrix that
PyWavelets itself gives (`pywt.dwt` of the identity), so every discrete wavelet it knows works,
on any device, in any float type, and is differentiable. For an orthonormal wavelet the whole
transform B is an orthogonal matrix and `adjoint` (B^T) inverts `analyse` (B).

Flat order of the coefficients, for each channel in turn: the approximation, then horizontal (H),
vertical (V) and diagonal (D) details from the coarsest level to the finest, rows first. It is
the order of `pywt.wavedec2`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pywt
import torch
from torch import Tensor

ORTHONORMAL_TOLERANCE = 1e-8  # sym20's filters are good to 1e-11, dmey's only to 2e-3


@dataclass(frozen=True)
class Band:
    """One sub-band of one channel. level: 1 is the finest; orientation: A, H, V or D."""

    orientation: str
    level: int
    offset: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """For example `A2` or `H1`."""
        return f"{self.orientation}{self.level}"

    @property
    def slice(self) -> slice:
        """Its place among the flat coefficients of one channel."""
        return slice(self.offset, self.offset + self.height * self.width)


@dataclass(frozen=True)
class WaveletBasis:
    """The transform of (B, channels, height, width) images by `levels` levels of `wavelet`.

    levels may be 0: the coefficients are then the pixels. Raises ValueError for an unknown
    wavelet and for a height or width that 2**levels does not divide.
    """

    wavelet: str
    levels: int
    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        check_wavelet(self.wavelet)
        if self.levels < 0:
            raise ValueError(f"levels must be 0 or more, got {self.levels}.")
        block = 2**self.levels
        for name, size in (("height", self.height), ("width", self.width)):
            if size < block or size % block:
                possible = max(k for k in range(self.levels + 1) if size % 2**k == 0)
                raise ValueError(
                    f"{name} {size} is not divisible by 2**levels = {block}: use levels="
                    f"{possible}, or crop or pad the images to a multiple of {block}."
                )

    @property
    def size_per_channel(self) -> int:
        return self.height * self.width

    @property
    def num_coefficients(self) -> int:
        return self.channels * self.size_per_channel

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands of one channel in flat order."""
        height, width = self.height >> self.levels, self.width >> self.levels
        bands = [Band("A", self.levels, 0, height, width)]
        offset = height * width
        for level in range(self.levels, 0, -1):
            height, width = self.height >> level, self.width >> level
            for orientation in "HVD":
                bands.append(Band(orientation, level, offset, height, width))
                offset += height * width
        return tuple(bands)

    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients w = B x, (B, num_coefficients), of images (B, C, H, W)."""
        low, details = images, []
        for _ in range(self.levels):
            rows, columns = self._steps(low)
            both = rows @ low @ columns.mT
            h, w = low.shape[-2] // 2, low.shape[-1] // 2
            low = both[..., :h, :w]
            details.append((both[..., h:, :w], both[..., :h, w:], both[..., h:, w:]))
        bands = [low, *(band for level in reversed(details) for band in level)]
        return torch.cat([band.flatten(2) for band in bands], dim=2).flatten(1)

    def adjoint(self, coefficients: Tensor) -> Tensor:
        """Images B^T w, (B, C, H, W); the inverse of `analyse` when B is orthonormal."""
        flat = coefficients.reshape(-1, self.channels, self.size_per_channel)
        parts = [
            flat[..., band.slice].unflatten(-1, (band.height, band.width)) for band in self.bands
        ]
        low = parts[0]
        for level in range(self.levels):
            horizontal, vertical, diagonal = parts[1 + 3 * level : 4 + 3 * level]
            both = torch.cat(
                [torch.cat([low, vertical], -1), torch.cat([horizontal, diagonal], -1)], -2
            )
            rows, columns = self._steps(both)
            low = rows.mT @ both @ columns
        return low

    def mosaic(self, values: Tensor) -> Tensor:
        """Arrange one value per coefficient, (num_coefficients,), as a picture (C, H, W).

        The usual pyramid: approximation top left, H below it, V right of it, D across.
        """
        flat = values.reshape(self.channels, self.size_per_channel)
        picture = flat.new_empty(self.channels, self.height, self.width)
        for band in self.bands:
            top = band.height if band.orientation in "HD" else 0
            left = band.width if band.orientation in "VD" else 0
            block = flat[:, band.slice].unflatten(-1, (band.height, band.width))
            picture[:, top : top + band.height, left : left + band.width] = block
        return picture

    def gram(self) -> Tensor:
        """N = B B^T of one channel, (H*W, H*W), float64: the noise's covariance at sigma 1."""
        one = WaveletBasis(self.wavelet, self.levels, 1, self.height, self.width)
        pixels = torch.eye(self.size_per_channel, dtype=torch.float64)
        analysis = one.analyse(pixels.reshape(-1, 1, self.height, self.width)).mT
        return analysis @ analysis.mT

    @property
    def is_orthonormal(self) -> bool:
        """Whether B B^T = I to `ORTHONORMAL_TOLERANCE`, measured on the matrices in use."""
        sizes = {
            side >> level for side in (self.height, self.width) for level in range(self.levels)
        }
        return all(_gram_error(self.wavelet, size) < ORTHONORMAL_TOLERANCE for size in sizes)

    def _steps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            _step_matrix(self.wavelet, size).to(device=images.device, dtype=images.dtype)
            for size in images.shape[-2:]
        )


def check_wavelet(name: str) -> None:
    """Raise ValueError, with the nearest known name, unless `name` is a discrete wavelet."""
    known = pywt.wavelist(kind="discrete")
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1) or ["db2"]
        raise ValueError(
            f"wavelet {name!r} is not a discrete wavelet of PyWavelets: did you mean {near[0]!r}?"
        )


@lru_cache(maxsize=256)
def _step_matrix(wavelet: str, size: int) -> Tensor:
    """Analysis by one level of a signal of `size`: (size, size), low half then high half."""
    halves = pywt.dwt(np.eye(size), wavelet, mode="periodization", axis=0)
    return torch.from_numpy(np.concatenate(halves))


def _gram_error(wavelet: str, size: int) -> float:
    step = _step_matrix(wavelet, size)
    return float((step @ step.mT - torch.eye(size, dtype=step.dtype)).abs().max())
