"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, values 0..16, no download."""

from __future__ import annotations

import numpy as np

from stages.data.readers.source import InMemory, Part, Source, split

HELD_OUT = 297


def read(settings) -> Source:
    """1,500 training and 297 held-out images unless `settings.held_out` says otherwise."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pool = Part(InMemory(bunch.images[:, None].astype(np.uint8)), bunch.target.astype(np.int64))
    train, test = split(pool, HELD_OUT if settings.held_out is None else settings.held_out)
    return Source(train, test, tuple(str(digit) for digit in range(10)), white=16)
