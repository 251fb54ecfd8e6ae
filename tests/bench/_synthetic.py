"""Synthetic data sets in true file formats, for benchmarks."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("folder", "npy", "tar", "parquet")
CLASSES = 10


def pictures(count: int, side: int) -> Iterator[np.ndarray]:
    """Smooth pictures (H, W, 3) uint8 with a little noise, which compress as photographs do."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[:side, :side] / side
    for _ in range(count):
        waves = random.rand(3, 4) * [20, 20, 6.3, 100]
        planes = [128 + a * np.sin(fx * x + fy * y + p) for fx, fy, p, a in waves]
        noise = random.randint(-6, 7, (side, side, 1))
        yield np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def jpegs(count: int, side: int) -> Iterator[bytes]:
    from PIL import Image

    for picture in pictures(count, side):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def make_folder(path: Path, count: int, side: int) -> None:
    for index in range(CLASSES):
        (path / f"class{index}").mkdir(parents=True)
    for index, data in enumerate(jpegs(count, side)):
        (path / f"class{index % CLASSES}" / f"{index:06d}.jpg").write_bytes(data)


def make_tar(path: Path, count: int, side: int) -> None:
    path.mkdir(parents=True)
    with tarfile.open(path / "set-000000.tar", "w") as archive:
        for index, data in enumerate(jpegs(count, side)):
            for suffix, content in (("jpg", data), ("cls", str(index % CLASSES).encode())):
                member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def make_parquet(path: Path, count: int, side: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir(parents=True)
    names = [f"class{index}" for index in range(CLASSES)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=told)
    with pq.ParquetWriter(path / "train-00000-of-00001.parquet", schema) as writer:
        block: list[dict[str, Any]] = []
        for index, data in enumerate(jpegs(count, side)):
            block.append({"image": {"bytes": data, "path": None}, "label": index % CLASSES})
            if len(block) == 100 or index == count - 1:
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
                block = []


def make_npy(path: Path, count: int, side: int) -> None:
    """Pictures that repeat after a while, each with another pixel: they are quick to make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (count, side, side, 3)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    some = np.stack(list(pictures(min(count, 64), side)))
    for start in range(0, count, len(some)):
        block = array[start : start + len(some)]
        block[:] = some[: len(block)]
        block[:, 0, 0, 0] = np.arange(start, start + len(block)) % 256
    array.flush()
    np.save(path.with_name("labels.npy"), np.arange(count) % CLASSES)


def made(folder: Path, kind: str, count: int, side: int) -> Path:
    """Where a synthetic set lies; it is made unless it is there."""
    path = folder / f"{kind}-{count}-{side}"
    path = path / "images.npy" if kind == "npy" else path
    if not path.exists():
        makers = dict(zip(KINDS, (make_folder, make_npy, make_tar, make_parquet), strict=True))
        makers[kind](path, count, side)
    return path
