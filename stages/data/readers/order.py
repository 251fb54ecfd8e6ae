"""The order in which images are kept that come sorted, by class or by file name.

Much takes the first so many of a part (limits, probes, views, references), which must not be those
of the first classes.
"""

from __future__ import annotations

import numpy as np

from stages.data.readers.source import SPLIT_SEED, Part


def mixed_order(count: int) -> np.ndarray:
    """The indices of `count` images by numpy's RandomState(0), whatever the run's seed.

    Data of one length get one order: latents and the pixels that they were made from stay in step.
    """
    return np.random.RandomState(SPLIT_SEED).permutation(count)


def mixed(part: Part) -> Part:
    """The part of a data set with a split of its own, in `mixed_order`."""
    return part[mixed_order(len(part))]
