"""CIFAR-10 and CIFAR-100 in their "python version" (Krizhevsky 2009): pickled batches, read
restrictedly, unpacked or in their archive."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.readers.source import InMemory, Part, Source, required
from stages.networks import unpickling

SIDE = 32


@dataclass(frozen=True)
class Kind:
    """How one of the two is stored."""

    title: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes


CIFAR10 = Kind(
    "CIFAR-10",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "batches.meta",
    b"labels",
    b"label_names",
)
CIFAR100 = Kind(
    "CIFAR-100",
    "cifar-100-python",
    ("train",),
    "test",
    "meta",
    b"fine_labels",
    b"fine_label_names",
)


def read(settings) -> Source:
    """`settings.path`: the folder cifar-10-batches-py, the one that holds it, or its archive."""
    return _read(settings, CIFAR10, "cifar10")


def read100(settings) -> Source:
    """`settings.path`: the folder cifar-100-python, the one that holds it, or its archive. Labels
    are the 100 fine ones."""
    return _read(settings, CIFAR100, "cifar100")


def _read(settings, kind: Kind, name: str) -> Source:
    place = required(settings.path, name, f"folder {kind.folder}")
    if place.is_dir():
        place = place / kind.folder if (place / kind.folder).is_dir() else place
    batches = [_batch(place, batch, kind) for batch in kind.train]
    train = Part(
        InMemory(np.concatenate([batch.images.array for batch in batches])),
        np.concatenate([batch.labels for batch in batches]),
    )
    names = _unpickle(place, kind.meta, kind).get(kind.names)
    if not names:
        raise ValueError(f"{place / kind.meta} has no {kind.names.decode()}")
    class_names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return Source(train, _batch(place, kind.test, kind), class_names)


def _batch(place: Path, name: str, kind: Kind) -> Part:
    """One batch: `data` (n, 3072) uint8, channels first, and labels, a list of n."""
    batch, path = _unpickle(place, name, kind), place / name
    data, labels = batch.get(b"data"), batch.get(kind.labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise ValueError(f"{path} has no uint8 array (n, {3 * SIDE**2}) under 'data'")
    if data.shape[1] != 3 * SIDE**2 or not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(
            f"{path} holds data of shape {data.shape} and {len(labels or ())} labels; a "
            f"{kind.title} batch has (n, {3 * SIDE**2}) and n"
        )
    return Part(InMemory(data.reshape(-1, 3, SIDE, SIDE)), np.array(labels, np.int64))


def _unpickle(place: Path, name: str, kind: Kind) -> dict[bytes, Any]:
    data = _bytes(place, name, kind)
    try:
        content = unpickling.load(io.BytesIO(data), unpickling.arrays(), encoding="bytes")
    except ValueError as error:
        raise ValueError(f"{place / name} is not a {kind.title} batch: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place / name} is not a {kind.title} batch: it holds no dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _bytes(place: Path, name: str, kind: Kind) -> bytes:
    if place.is_dir():
        if not (place / name).is_file():
            raise ValueError(f"{name} is not in {place}; unpack {kind.title}'s archive there")
        return (place / name).read_bytes()
    try:
        with tarfile.open(place) as archive:
            return archive.extractfile(f"{kind.folder}/{name}").read()
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"{place} is not {kind.title}'s archive: {error}") from error
