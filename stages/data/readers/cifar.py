"""CIFAR-10 in its "python version" (Krizhevsky 2009): pickled batches, read restrictedly."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.readers.source import InMemory, Part, Source, required

FOLDER = "cifar-10-batches-py"
SIDE = 32
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads what this format needs: containers, bytes, numbers, NumPy arrays. Nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        if name == "_reconstruct":
            module = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
        return super().find_class(module, name)


def read(settings) -> Source:
    """`settings.path`: the folder cifar-10-batches-py, or the one that holds it."""
    folder = required(settings.path, "cifar10", f"folder {FOLDER}")
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    batches = [read_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    train = Part(
        InMemory(np.concatenate([batch.images.array for batch in batches])),
        np.concatenate([batch.labels for batch in batches]),
    )
    names = _unpickle(folder / "batches.meta").get(b"label_names")
    if not names:
        raise ValueError(f"{folder / 'batches.meta'} has no label_names")
    class_names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return Source(train, read_batch(folder / "test_batch"), class_names)


def read_batch(path: Path) -> Part:
    """One batch: `data` (n, 3072) uint8, channels first, and `labels`, a list of n."""
    batch = _unpickle(path)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise ValueError(f"{path} has no uint8 array (n, {3 * SIDE**2}) under 'data'")
    if data.shape[1] != 3 * SIDE**2 or not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(
            f"{path} holds data of shape {data.shape} and {len(labels or ())} labels; a CIFAR-10 "
            f"batch has (n, {3 * SIDE**2}) and n"
        )
    return Part(InMemory(data.reshape(-1, 3, SIDE, SIDE)), np.array(labels, np.int64))


def _unpickle(path: Path) -> dict[bytes, Any]:
    if not path.is_file():
        raise ValueError(f"{path.name} is not in {path.parent}; unpack CIFAR-10's archive there")
    try:
        with path.open("rb") as stream:
            content = RestrictedUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is not a CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a CIFAR-10 batch: it holds no dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
