"""A NumPy archive with the arrays `x_train`, `y_train` and, if it has a split, `x_test`, `y_test`;
data without labels leave the y out.

Images are (n, H, W) or (n, H, W, channels), uint8 in 0..255 or floating point in [-1, 1]; labels
are integers from 0. Object arrays are refused: nothing is unpickled.
"""

from __future__ import annotations

import numpy as np

from stages.data.image_files import read_arrays
from stages.data.readers.order import mixed
from stages.data.readers.source import InMemory, Part, Source, required, split


def read(settings) -> Source:
    """`settings.path`: the file. Without a test pair `settings.held_out` images (default: a
    sixth) are held out. Both parts are in an order of numpy's RandomState(0), with a split of
    their own too, since archives are often sorted by class."""
    path = required(settings.path, "npz", ".npz file")
    arrays = read_arrays(path)
    train = _pair(arrays, "train", path)
    class_names = _class_names(train.labels)
    if "x_test" in arrays or "y_test" in arrays:
        if settings.held_out is not None:
            raise ValueError(
                f"data.held_out is {settings.held_out}, but {path.name} holds its own x_test; "
                "leave data.held_out unset"
            )
        test = _pair(arrays, "test", path)
        if len(test) and (highest := test.labels.max()) >= len(class_names):
            raise ValueError(f"y_test holds label {highest}, which no image of x_train has")
        train, test = mixed(train), mixed(test)
    else:
        number = len(train) // 6 if settings.held_out is None else settings.held_out
        train, test = split(train, number)
    return Source(train, test, class_names)


def _class_names(labels: np.ndarray) -> tuple[str, ...]:
    """Of 0 to the highest label. Raises ValueError for a class without an image, which would be
    sampled though it was never trained."""
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise ValueError(
            f"y_train holds label {present[gaps[0]]} but none of {gaps[0]}; number the classes 0, "
            "1, 2, ... without gaps, and leave out images that have no class"
        )
    return tuple(str(label) for label in present)


def _pair(arrays: dict[str, np.ndarray], part: str, path) -> Part:
    if f"x_{part}" not in arrays:
        raise ValueError(
            f"{path} has no array x_{part} (it has {', '.join(arrays) or 'none'}); images go "
            "into x_train, labels into y_train"
        )
    images = arrays[f"x_{part}"]
    # Without labels all images are of one class, and training is unconditional.
    labels = arrays.get(f"y_{part}", np.zeros(len(images), np.int64))
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"x_{part} has shape {images.shape}; give (n, H, W) or (n, H, W, C)")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"y_{part} has shape {labels.shape} and type {labels.dtype}; give one integer each"
        )
    if len(labels) != len(images):
        raise ValueError(
            f"x_{part} holds {len(images)} images and y_{part} {len(labels)} labels; give one "
            "label an image"
        )
    if len(labels) and labels.min() < 0:
        raise ValueError(f"y_{part} holds {labels.min()}; labels count from 0")
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Part(InMemory(images), labels.astype(np.int64))
