"""Small data sets in the true formats of CIFAR and MNIST, as their servers give them."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np


def idx(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, gzipped, the same bytes at any time."""
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0)


def mnist_files(train: int = 60, test: int = 30) -> dict[str, bytes]:
    """MNIST's four files by name: bright squares whose place tells the label."""
    files = {}
    for part, count, seed in (("train", train, 0), ("t10k", test, 1)):
        labels = np.arange(count) % 10
        images = np.random.RandomState(seed).randint(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            top, left = 2 + 5 * (label // 5) * 2, 1 + 5 * (label % 5)
            image[top : top + 8, left : left + 6] = 230
        files[f"{part}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    return files


def cifar_files(each: int = 20) -> dict[str, bytes]:
    """CIFAR-10's batches of `each` images, and batches.meta."""

    def batch(seed: int) -> bytes:
        labels = [i % 10 for i in range(each)]
        data = np.random.RandomState(seed).randint(0, 256, (each, 3072)).astype(np.uint8)
        data //= 2
        for row, label in zip(data, labels, strict=True):
            row[300 * label : 300 * (label + 1)] += 100
        return pickle.dumps(
            {b"data": data, b"labels": labels, b"batch_label": b"training batch"}, protocol=2
        )

    files = {f"data_batch_{i}": batch(i) for i in range(1, 6)} | {"test_batch": batch(0)}
    names = [f"class {i}".encode() for i in range(10)]
    return files | {"batches.meta": pickle.dumps({b"label_names": names}, protocol=2)}


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    """A .tar.gz with the files in a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def placed(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
