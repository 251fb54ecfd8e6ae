"""The radially averaged power spectrum of images, summed exactly over batches and shards.

The first step of CSFlow (arXiv 2606.08833); the weights it leads to are in `csflow.py`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stages.methods import given

REC_601 = (0.299, 0.587, 0.114)
"""Luma of red, green and blue, ITU-R BT.601."""

LARGEST_PIXEL = 16.0  # of what may be meant as [-1, 1]: noise reaches farther than images

_ULP_EXPONENT = -1074  # 2^-1074 is the smallest float64: every finite one is a multiple of it.


def check_pixels(channels: int, latent: bool = False, allow_latent: bool = False) -> bool:
    """True if the images are latents, which are refused unless `allow_latent`; False for pixels.

    Anything but 1 channel (grey) or 3 (RGB) is taken for a latent. A latent that happens to have
    1 or 3 channels cannot be told from pixels: whoever knows says so with `latent`.
    Raises ValueError for latents that were not allowed.
    """
    latent = latent or channels not in (1, 3)
    if latent and not allow_latent:
        raise ValueError(
            f"CSFlow is derived for pixels, and these images are latents ({channels} channels): "
            "contrast sensitivity is measured against luminance on a screen, while a frequency "
            "in a latent is not a frequency in the picture, and its channels carry no luminance; "
            "use the pixels' spectrum, or set allow_latent to go on at your own risk"
        )
    return latent


@dataclass(frozen=True)
class RadialPower:
    """The sum of the radial power spectra of some images; sums of shards are added with `+`.

    The sum is exact (integers, in units of 2^-1074), so it depends neither on the order of the
    images nor on how they were cut into batches and shards, to the last bit, on one kind of CPU.

    totals: K integers; the power sum |FFT|^2 over the images and the frequencies of each bin.
    """

    height: int
    width: int
    latent: bool
    num_images: int
    totals: tuple[int, ...] = field(repr=False)

    @classmethod
    def collect(
        cls, images: Tensor, latent: bool = False, allow_latent: bool = False
    ) -> "RadialPower":
        """Sum over images (B, C, H, W), floating point, in [-1, 1], B >= 0.

        C = 1 is grey; C = 3 is RGB and turned into grey by Rec. 601; for latents that are allowed
        the power is averaged over the channels (ours). The transform runs on the CPU in the
        images' precision, in float32 at least, and the sums in float64.
        Raises ValueError for other shapes or dtypes, for values that are not finite or, of
        pixels, far from [-1, 1], and for latents as `check_pixels` does.
        """
        images = given.tensor(images, "images")
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                "images must be a floating-point tensor (B, C, H, W) in [-1, 1], "
                f"got {images.dtype} of shape {(*images.shape,)}"
            )
        if images.isfinite().all():
            given.check_size(images, "images")
        num_images, channels, height, width = images.shape
        if channels < 1:
            raise ValueError("images has no channels; give (B, C, H, W) with C >= 1")
        latent = check_pixels(channels, latent, allow_latent)
        largest = images.abs().max().item() if images.numel() else 0.0
        if not latent and LARGEST_PIXEL < largest < math.inf:
            raise ValueError(
                f"images reach {largest:.4g}; give pixels in [-1, 1], as images / 127.5 - 1 is "
                "of 0 to 255: contrast is measured on this scale"
            )
        num_bins = len(_radial_bins(height, width).frequency)
        sums = np.zeros((num_images, num_bins))
        size = _chunk_size(height, width)
        for start in range(0, num_images, size):
            sums[start : start + size] = _bin_sums(images[start : start + size], latent, size)
        if not np.isfinite(sums).all():
            raise ValueError("images holds values that are not finite, or too large to square")
        return cls(height, width, latent, num_images, tuple(_exact_sums(sums)))

    def __add__(self, other: "RadialPower") -> "RadialPower":
        """The sum over the images of both. Raises ValueError if their kinds or sizes differ."""
        if not isinstance(other, RadialPower):
            return NotImplemented
        ours, theirs = ((s.height, s.width, s.latent) for s in (self, other))
        if ours != theirs:
            raise ValueError(
                f"spectra of images with (height, width, latent) {ours} and {theirs} cannot be "
                "added; bring the images to one size first"
            )
        totals = tuple(a + b for a, b in zip(self.totals, other.totals, strict=True))
        return RadialPower(*ours, self.num_images + other.num_images, totals)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """(frequency, power), each (K,) float64, as `radial_power` returns them.

        Raises ValueError if there are no images.
        """
        if self.num_images == 0:
            raise ValueError("the spectrum of no images is not defined; add some images")
        bins = _radial_bins(self.height, self.width)
        pixels = self.height * self.width
        # A quotient of integers is rounded once.
        power = [
            total / (self.num_images * count * pixels << -_ULP_EXPONENT)
            for total, count in zip(self.totals, bins.counts, strict=True)
        ]
        return bins.frequency.clone(), torch.tensor(power, dtype=torch.float64)

    def state(self) -> dict:
        """What JSON can hold; `from_state` gives the same sum back."""
        return {
            "height": self.height,
            "width": self.width,
            "latent": self.latent,
            "num_images": self.num_images,
            "totals": [hex(total) for total in self.totals],
        }

    @classmethod
    def from_state(cls, state: dict) -> "RadialPower":
        totals = tuple(int(total, 16) for total in state["totals"])
        return cls(**{**state, "totals": totals})


def radial_power(
    images: Tensor | Iterable[Tensor], latent: bool = False, allow_latent: bool = False
) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum of images, in grey: (frequency, power), each (K,) float64.

    images: (B, C, H, W) in [-1, 1], or an iterable of such batches of one size; C is 1 or 3.
    frequency: centres of K = max(H, W) // 2 equal bins from 0 to the corner frequency, in cycles
    per pixel. power: the mean of |FFT|^2 / (H W) over the frequencies of a bin, the constant
    component included, and over the images; white noise of variance 1 has power 1.

    Images that are not square: pixels are taken for square, so a frequency is the length of the
    vector of cycles per pixel in both directions, and the bins follow the longer side. For
    shards use `RadialPower`; errors as there.

    Small batches of an iterable are joined before they are transformed; of one batch by itself
    every 16 images begun (more where they are small) cost as much as 16.
    """
    batches = [images] if hasattr(images, "shape") else _joined(images)
    total = None
    for batch in batches:
        part = RadialPower.collect(batch, latent, allow_latent)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("images is empty; give at least one batch")
    return total.spectrum()


def _joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same images in the same order, in batches of a multiple of whole chunks where batches
    of one size and dtype follow each other; whole batches are not copied."""
    waiting: list[Tensor] = []
    count = 0
    for batch in (given.tensor(batch, "images") for batch in batches):
        if waiting and (
            batch.shape[1:] != waiting[0].shape[1:]
            or batch.dtype != waiting[0].dtype
            or batch.device != waiting[0].device
        ):
            yield torch.cat(waiting)
            waiting, count = [], 0
        if batch.ndim != 4 or 0 in batch.shape[2:]:
            yield batch  # to be refused
            continue
        waiting.append(batch)
        count += batch.shape[0]
        size = _joined_size(*batch.shape[2:])
        if count >= size:
            together = waiting[0] if len(waiting) == 1 else torch.cat(waiting)
            count %= size
            whole = len(together) - count
            yield together[:whole]
            waiting = [together[whole:]] if count else []
    if waiting:
        yield torch.cat(waiting)


@dataclass(frozen=True)
class _Bins:
    index: Tensor  # ((H // 2 + 1) (W // 2 + 1),), the bin of each |fy|, |fx|
    counts: tuple[int, ...]  # frequencies of the whole plane in each bin
    frequency: Tensor  # (K,), bin centres


@lru_cache(maxsize=16)
def _radial_bins(height: int, width: int) -> _Bins:
    num_bins = max(height, width) // 2
    if min(height, width) < 1 or num_bins < 1:
        raise ValueError(f"images of {height} x {width} pixels are too small for a spectrum")
    fy, fx = np.fft.rfftfreq(height)[:, None], np.fft.rfftfreq(width)
    bin_width = math.hypot(fy.max(), fx.max()) / num_bins
    # Many frequencies lie on the edge of two bins; 1e-9 keeps rounding from deciding.
    index = np.floor(np.hypot(fy, fx) / bin_width + 1e-9).astype(np.int64)
    index = index.clip(max=num_bins - 1)
    signs = _signs(height)[:, None] * _signs(width)
    counts = np.bincount(index.ravel(), signs.ravel(), num_bins)
    frequency = (np.arange(num_bins) + 0.5) * bin_width
    return _Bins(
        torch.from_numpy(index.ravel()),
        tuple(int(count) for count in counts),
        torch.from_numpy(frequency),
    )


def _signs(length: int) -> np.ndarray:
    """How many frequencies of a transform of this length have each absolute value: 1 or 2."""
    return np.bincount(np.abs(np.fft.fftfreq(length, 1 / length)).round().astype(int))


def _chunk_size(height: int, width: int) -> int:
    """Images in one transform: about 2^16 pixels, by 16, the same for every batch.

    The last bits of a transform depend on how many run together; a fixed number, filled up with
    zeros, keeps an image's spectrum independent of the batch it came in.
    """
    return 16 * max(1, min(16, 2**12 // (height * width)))


@lru_cache(maxsize=16)
def _joined_size(height: int, width: int) -> int:
    """Images that small batches are joined to: whole chunks, of about 2^20 pixels."""
    size = _chunk_size(height, width)
    return size * max(1, 2**20 // (size * height * width))


def _bin_sums(images: Tensor, latent: bool, size: int) -> np.ndarray:
    """Sum of |FFT|^2 in each bin for up to `size` images (B, C, H, W): (B, K) float64.

    Products and sums are separate operations, each rounded once: a fused one would round
    differently at the ragged end of an array.
    """
    images = images.detach().cpu()
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    if latent:
        per_channel = [_bin_sums(images[:, c : c + 1], False, size) for c in range(images.shape[1])]
        return sum(per_channel) / len(per_channel)
    if images.shape[1] == 3:
        red, green, blue = (images[:, c] * weight for c, weight in enumerate(REC_601))
        grey = red + green + blue
    else:
        grey = images[:, 0]
    num_images, height, width = grey.shape
    if num_images < size:
        grey = torch.cat([grey, grey.new_zeros(size - num_images, height, width)])
    parts = torch.view_as_real(torch.fft.rfft2(grey.contiguous())[:num_images]).numpy()
    parts *= parts
    power = parts[..., 0] + parts[..., 1]
    # Rows of opposite frequency share a bin; so do the columns that a real transform leaves out.
    # All columns count twice but those that are their own mirror image, which are halved.
    mirrored = (height + 1) // 2
    power[:, 1:mirrored] += power[:, : height - mirrored : -1]
    power[:, :, :: width // 2 if width % 2 == 0 else width] *= 0.5
    bins = _radial_bins(height, width)
    cells = torch.from_numpy(power[:, : height // 2 + 1]).double().flatten(1)
    sums = torch.zeros(num_images, len(bins.frequency), dtype=torch.float64)
    return 2 * sums.index_add_(1, bins.index, cells).numpy()


def _exact_sums(values: np.ndarray) -> list[int]:
    """Column sums of non-negative values (B, K), without rounding, in units of 2^-1074.

    The values are cut into digits of 31 bits from the top, whose sums float64 holds exactly.
    """
    totals = [0] * values.shape[1]
    step = 2**21  # rows; 2^21 digits of 31 bits fit the 53 bits of a float64
    for start in range(0, len(values), step):
        rest = values[start : start + step]
        exponent = int(np.frexp(rest.max())[1])
        while rest.any():
            exponent = max(exponent - 31, _ULP_EXPONENT)
            digits = np.floor(np.ldexp(rest, -exponent))
            rest = rest - np.ldexp(digits, exponent)
            for k, digit_sum in enumerate(digits.sum(0).tolist()):
                totals[k] += int(digit_sum) << exponent - _ULP_EXPONENT
    return totals
