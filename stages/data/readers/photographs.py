"""Square patches of scikit-learn's two photographs of 427x640 pixels; no download.

Held-out patches come from the right quarter of each photograph, training patches from the rest,
so that no pixel is in both.
"""

from __future__ import annotations

import numpy as np

from stages.data.readers.source import SPLIT_SEED, InMemory, Part, Source

CLASS_NAMES = ("china", "flower")
HELD_OUT_SHARE = 4  # one part in so many of the width is held out


def read(settings) -> Source:
    """Patches of side `settings.image_size`: to train, on a grid of half that step; held out, side
    by side. `settings.grey` averages the three colours (float32 in [-1, 1] then, else uint8).

    Both are in an order of numpy's RandomState(0), whatever the run's seed. Raises ValueError for
    a side that does not fit the held-out part.
    """
    from sklearn.datasets import load_sample_images

    side = settings.image_size
    photographs = [_pixels(image, settings.grey) for image in load_sample_images().images]
    held_out = photographs[0].shape[2] // HELD_OUT_SHARE
    largest = min(held_out, photographs[0].shape[1])
    if side > largest:
        raise ValueError(
            f"patches of {side} pixels do not fit the held-out part of the photographs; set "
            f"data.size to at most {largest}"
        )
    train = [_patches(image[..., :-held_out], side, max(1, side // 2)) for image in photographs]
    test = [_patches(image[..., -held_out:], side, side) for image in photographs]
    return Source(_shuffled(train), _shuffled(test), CLASS_NAMES)


def _pixels(image: np.ndarray, grey: bool) -> np.ndarray:
    """(C, H, W)"""
    pixels = image.transpose(2, 0, 1)
    if not grey:
        return pixels
    return (pixels.mean(0, keepdims=True) / 127.5 - 1).astype(np.float32)


def _patches(image: np.ndarray, side: int, step: int) -> np.ndarray:
    """(n, C, side, side), rows first."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(1, 2))
    chosen = windows[:, ::step, ::step]
    return chosen.transpose(1, 2, 0, 3, 4).reshape(-1, len(image), side, side)


def _shuffled(parts: list[np.ndarray]) -> Part:
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    return Part(InMemory(np.concatenate(parts)[order]), labels[order])
