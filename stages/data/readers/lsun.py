"""LSUN: an LMDB environment whose values are image files, without labels (extra `lmdb`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from stages.data.readers.labels import UNLABELLED
from stages.data.readers.names import Names
from stages.data.readers.order import mixed
from stages.data.readers.source import (
    Listing,
    Part,
    Source,
    number_held_out,
    refuse_held_out,
    required,
    split,
)
from stages.data.readers.tree import side_of


@dataclass(frozen=True)
class Values:
    """The values of an environment, by the list of its keys."""

    path: str
    keys: Names

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        with _environment(self.path).begin(buffers=False) as transaction:
            value = transaction.get(self._key(index))
        if value is None:
            raise ValueError(f"{self.name(index)} is no longer there")
        return value

    def name(self, index: int) -> str:
        return f"{self.path}/{self._key(index).decode(errors='backslashreplace')}"

    def _key(self, index: int) -> bytes:
        start = int(self.keys.ends[index - 1]) if index else 0
        return self.keys.blob[start : int(self.keys.ends[index])]


def read(settings) -> Source:
    """`settings.path`: the folder with data.mdb, or one with bedroom_train_lmdb and
    bedroom_val_lmdb."""
    path = required(settings.path, "lsun", "folder with data.mdb")
    if (path / "data.mdb").is_file():
        pool = _part(path)
        return Source(*split(pool, number_held_out(settings, len(pool))), UNLABELLED)
    sides: dict[str, list[Path]] = {}
    for folder in sorted(p.parent for p in path.glob("*/data.mdb")):
        tokens = folder.name.removesuffix("_lmdb").split("_")
        sides.setdefault(side_of(tokens[-1]) or "", []).append(folder)
    if len(sides.get("train", ())) != 1:
        raise ValueError(f"{path} has no single *_train_lmdb folder; set data.path to one LMDB")
    held_out = [folder for side in ("test", "val") for folder in sides.get(side, ())]
    if not held_out:
        pool = _part(sides["train"][0])
        return Source(*split(pool, number_held_out(settings, len(pool))), UNLABELLED)
    if len(sides.get("test") or sides["val"]) > 1:
        raise ValueError(
            f"{held_out[0].name} and {held_out[1].name} of {path} are both held out; keep the one "
            f"that belongs to {sides['train'][0].name}"
        )
    refuse_held_out(settings, f"its own {held_out[0].name}")
    passed = "".join(f"; {folder.name} passed over" for folder in held_out[1:])
    said = f"held out: {held_out[0].name}{passed}"
    return Source(mixed(_part(sides["train"][0])), mixed(_part(held_out[0])), UNLABELLED, said=said)


def pool(path: Path) -> Listing:
    """All images of one environment."""
    images = _part(path).images
    return Listing(images, [images.name(i) for i in range(len(images))])


def _part(folder: Path) -> Part:
    environment = _environment(str(folder))
    with environment.begin(buffers=False) as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
    if not keys:
        raise ValueError(f"{folder} holds no images")
    ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
    return Part(Values(str(folder), Names(b"".join(keys), ends)), np.zeros(len(keys), np.int64))


@lru_cache(maxsize=4)
def _environment(path: str):
    """One a process: LMDB maps the file."""
    try:
        import lmdb
    except ImportError:
        raise ValueError(
            "LSUN's LMDB needs the package lmdb; install it: pip install 'diffusion-bench[lmdb]'"
        ) from None
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ValueError(f"{path} is not a readable LMDB: {error}") from error
