"""Nearest training images of generated samples, and the memorisation ratio made of them.

A sample counts as memorised when its nearest training image is less than a third as far away as
the second nearest (Yoon et al. 2023; the ratio that the ICR paper plots). A training image that
occurs twice hides its own copies from this test: deduplicate the training set first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.methods import given

__all__ = ["Neighbours", "Rows", "nearest", "ratio", "samples_at_once"]

ROWS = 1024  # of a batch, at most


@dataclass(frozen=True)
class Neighbours:
    """indices (n, k) into the training images, and Euclidean distances (n, k), nearest first."""

    indices: Tensor
    distances: Tensor


class Rows(Protocol):
    """Training images that are read by index, from wherever they lie."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """(k, ...) of a slice, or of indices (k,); no more is read."""


def ratio(
    samples: Tensor, training_images: Tensor, threshold: float = 1 / 3, memory_mib: int = 256
) -> float:
    """Share of samples whose nearest training distance is below threshold x the second nearest.

    samples: (n, ...), training_images: (m, ...), images or features of one shape. 0 to 1.

    Raises ValueError for mismatched shapes, fewer than two training images, values that are not
    finite, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is a ratio of distances in (0, 1]")
    distances = nearest(samples, training_images, k=2, memory_mib=memory_mib).distances
    return (distances[:, 0] < threshold * distances[:, 1]).double().mean().item()


def nearest(
    samples: Tensor, training_images: Tensor | Rows, k: int = 2, memory_mib: int = 256
) -> Neighbours:
    """The k nearest training images of every sample by Euclidean distance, exactly.

    samples: (n, ...), training_images: (m, ...). A search by matrix products in float32 (float64
    for float64 images) finds k + 8 candidates; their distances are then taken from float64
    differences, so that a near-copy has its true small distance. Where rounding in the products
    could have hidden a neighbour, that sample's products are repeated in float64, and at last all
    its differences are taken. Working memory is about ``memory_mib``, whatever n and m; all
    training images are read once for `samples_at_once` samples. It runs where the samples are:
    training images are brought there as they are read. Ties go to the lower index.

    Raises ValueError as for ratio, or when k exceeds the number of training images.
    """
    x = _flat(samples, "samples")
    y = _Flat(training_images, x.device)
    if x.shape[1] != y.width:
        raise ValueError(
            f"samples have {x.shape[1]} values each and training_images {y.width}; bring both "
            "to one size and number of channels"
        )
    if not 1 <= k <= len(y):
        raise ValueError(f"k is {k}, but there are {len(y)} training_images to choose from")
    rows = _rows_that_fit(memory_mib, x.shape[1], k)
    batch = samples_at_once(x.shape[1], k, memory_mib)
    # Reduced-precision products (TF32, bfloat16) would break the rounding bound.
    exact = torch.get_float32_matmul_precision() == "highest"
    single = exact and torch.float64 not in (x.dtype, y[:1].dtype)
    dtype = torch.float32 if single else torch.float64
    parts = [_search(x[i : i + batch], y, k, rows, dtype) for i in range(0, len(x), batch)]
    return Neighbours(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def samples_at_once(d: int, k: int = 2, memory_mib: int = 256) -> int:
    """Samples of d values for which the training images are read once. More of them save reading;
    what they take is the samples themselves in float64, at most."""
    most = ROWS * max(1, memory_mib // 512)
    return max(_rows_that_fit(memory_mib, d, k), min(most, memory_mib * 2**20 // (16 * d)))


def _search(x: Tensor, y: _Flat, k: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Exact neighbours of one batch: candidates by products in dtype, then float64 differences."""
    width = min(k + 8, len(y))
    squares, index, magnitude = _candidates(x, y, width, rows, dtype)
    distances, index = _sorted(_distances(x, y, index, rows), index)
    distances, index = distances[:, :k], index[:, :k]
    if width == len(y):
        return index, distances
    # A sum of d rounded products is off by less than (d + 4) eps of the magnitudes, and two such
    # sums are compared.
    rounding = 2 * (x.shape[1] + 4) * torch.finfo(dtype).eps * magnitude
    doubtful = squares[:, -1] - rounding <= distances[:, -1].square()
    if doubtful.any():
        rest = x[doubtful]
        if dtype == torch.float64:
            index[doubtful], distances[doubtful] = _direct(rest, y, k, rows)
        else:
            index[doubtful], distances[doubtful] = _search(rest, y, k, rows, torch.float64)
    return index, distances


def _candidates(
    x: Tensor, y: _Flat, width: int, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The width nearest by rounded |x|^2 + |y|^2 - 2 x.y: squares, indices, |x|^2 + max |y|^2."""
    centre = y[:rows].to(dtype).mean(0)  # distances do not change, rounding errors shrink
    xc = x.to(dtype) - centre
    x_square = xc.square().sum(1, keepdim=True)
    best = x_square[:, :0]
    index = torch.zeros((len(x), 0), dtype=torch.long, device=x.device)
    largest = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(y), rows):
        yc = y[start : start + rows].to(dtype) - centre
        y_square = yc.square().sum(1)
        largest = largest.maximum(y_square.max())
        squares = torch.addmm(x_square + y_square, xc, yc.T, alpha=-2)
        here = torch.arange(start, start + len(yc), device=x.device).expand(len(x), -1)
        kept = min(width, best.shape[1] + len(yc))
        best, order = torch.cat([best, squares], 1).topk(kept, largest=False)
        index = torch.cat([index, here], 1).gather(1, order)
    return best.double(), index, x_square[:, 0].double() + largest


def _distances(x: Tensor, y: _Flat, index: Tensor, rows: int) -> Tensor:
    """Distances (n, c) of x (n, d) to the rows index (n, c) of y, from float64 differences."""
    # Made before the large temporaries, which the small results would else keep from being freed.
    distances = torch.empty(index.shape, dtype=torch.float64, device=x.device)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        xs = x[part].double()
        for column, which in enumerate(index[part].T):
            distances[part, column] = (xs - y[which].double()).norm(dim=1)
    return distances


def _sorted(distances: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the order of the distances; ties by the lower index."""
    index, by_index = index.sort(dim=1)
    distances, order = distances.gather(1, by_index).sort(dim=1, stable=True)
    return distances, index.gather(1, order)


def _direct(x: Tensor, y: _Flat, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """The same from the differences to all of y."""
    columns = []
    for start in range(0, len(y), rows):
        batch = y[start : start + rows].double()
        columns.append(torch.stack([(batch - one).norm(dim=1) for one in x.double()]))
    ascending, order = torch.cat(columns, 1).sort(dim=1, stable=True)
    return order[:, :k], ascending[:, :k]


def _rows_that_fit(memory_mib: int, d: int, k: int) -> int:
    """Rows of a batch such that products (rows, rows) and images (rows, d) fit the memory."""
    numbers = memory_mib * 2**20 / 8
    rows = ROWS
    while rows > 16 and rows * (4 * rows + 8 * d + 4 * (k + 8)) > numbers:
        rows //= 2
    return rows


class _Flat:
    """Training images as rows (m, width), read by index and brought to a device."""

    def __init__(self, images: Any, device: torch.device) -> None:
        self._device = device
        rows = hasattr(images, "shape") and not hasattr(images, "__array__")
        self._images = images if rows else given.tensor(images, "training_images")
        shape = tuple(self._images.shape)
        _check_shape(shape, "training_images")
        self.width = math.prod(shape[1:])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        if not isinstance(which, slice):
            which = which.to(getattr(self._images, "device", "cpu"))
        found = torch.as_tensor(self._images[which]).detach().flatten(1)
        if isinstance(which, slice):
            # Here, so that a device has not to be waited for.
            _finite(found, "training_images", which.start or 0)
        return found.to(self._device)


def _flat(images: Tensor, name: str) -> Tensor:
    images = given.tensor(images, name)
    _check_shape(tuple(images.shape), name)
    flat = images.detach().flatten(1)
    for start in range(0, len(flat), ROWS):
        _finite(flat[start : start + ROWS], name, start)
    return flat


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; give (images, ...), not empty")


def _finite(rows: Tensor, name: str, first: int) -> Tensor:
    """The same rows; ValueError where one has NaN or infinite values."""
    if rows.is_floating_point():
        bad = (~torch.isfinite(rows).all(1)).nonzero()
        if len(bad):
            raise ValueError(
                f"{name} has NaN or infinite values in image {first + bad[0].item()}; remove it, "
                "or look at what made it"
            )
    return rows
