"""Data sets of the Hugging Face Hub: parquet files, and folders written by `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.fingerprint import foreign
from stages.data.readers.labels import UNLABELLED, numbered_names
from stages.data.readers.names import Names
from stages.data.readers.order import mixed
from stages.data.readers.scratch import copies
from stages.data.readers.source import (
    Listing,
    Part,
    Source,
    number_held_out,
    refuse_held_out,
    required,
    split,
)
from stages.data.readers.spans import Spans
from stages.data.readers.tree import check_one_word, side_of

LABEL_NAMES = ("label", "labels", "fine_label")
IMAGE_NAMES = ("image", "img")
BATCH = 64  # rows that are in memory at once


@dataclass(frozen=True)
class Columns:
    """image: the column of images. label: that of labels, or None. names: the classes', or None
    where they are numbers alone."""

    image: str
    label: str | None
    names: tuple[str, ...] | None


def read_parquet(settings) -> Source:
    """`settings.path`: a .parquet file, or the folder of a data set's; splits by the files' names.

    A column that is read by index costs a group of rows each time, so the images' bytes are copied
    once, one after another, into a folder of the temporary files (`Source.scratch`).
    """
    path = required(settings.path, "parquet", ".parquet file or folder of them")
    sides = _by_side(path)
    columns = _parquet_columns(next(iter(sides.values()))[0], settings.label)
    with copies() as scratch:
        parts = {side: _copied(files, columns, scratch, side) for side, files in sides.items()}
        return _source(parts, columns, settings, str(scratch))


def read_saved(settings) -> Source:
    """`settings.path`: a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    path = required(settings.path, "saved", "folder written by save_to_disk")
    folders = {"": path}
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
        check_one_word(_names_by_side(splits), path)
        folders = {side_of(name) or name: path / name for name in splits}
        _check_sides(folders, path)
    features = _rows(str(next(iter(folders.values())))).features
    columns = _columns(
        {name: _feature(feature) for name, feature in features.items()}, settings.label, path
    )
    parts = {}
    for side, folder in folders.items():
        rows = _rows(str(folder))
        labels = np.zeros(len(rows), np.int64)
        if columns.label is not None:
            labels = _checked(np.array(rows[columns.label]), columns.label)
        parts[side] = Part(SavedImages(str(folder), columns.image, len(rows)), labels)
    return _source(parts, columns, settings, None)


def pool(path: Path) -> Listing:
    """All images of parquet files, in their order."""
    files = [file for of in _by_side(path).values() for file in of]
    columns = Columns(_parquet_columns(files[0], None, labelled=False).image, None, None)
    with copies() as scratch:
        images = _copied(files, columns, scratch, "").images
    return Listing(images, [f"image {i}" for i in range(len(images))], scratch=str(scratch))


@dataclass(frozen=True)
class SavedImages:
    """The images of a saved data set, which maps its Arrow files."""

    folder: str
    column: str
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        rows = _undecoded(self.folder, self.column)
        return _bytes(rows[int(index)][self.column], self.name(index))

    def name(self, index: int) -> str:
        return f"{self.folder}, image {index}"


@lru_cache(maxsize=4)
def _rows(folder: str):
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "folders written by save_to_disk need the package datasets; install it: pip install "
            "'diffusion-bench[datasets]'"
        ) from None
    try:
        return datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no readable saved data set: {error}") from error


@lru_cache(maxsize=4)
def _undecoded(folder: str, column: str):
    """The rows with images as bytes."""
    from datasets import Image

    return _rows(folder).cast_column(column, Image(decode=False)).select_columns(column)


def _feature(feature: Any) -> dict[str, Any]:
    """A feature of `datasets` as its JSON has it."""
    kind = type(feature).__name__
    return {"_type": kind, "names": getattr(feature, "names", None)}


def _source(parts: Mapping[str, Part], columns: Columns, settings, scratch: str | None) -> Source:
    others = [side for side in ("test", "val") if side in parts]
    train = parts["train"] if "train" in parts else next(iter(parts.values()))
    names = columns.names
    if names is None:
        names = numbered_names(train.labels, columns.label) if columns.label else UNLABELLED
    said = f"images of column {columns.image}, " + (
        f"labels of {columns.label}" if columns.label else "no labels"
    )
    if len(parts) == 1:
        both = split(train, number_held_out(settings, len(train)))
        return Source(*both, names, said=said, scratch=scratch)
    refuse_held_out(settings, f"its own {others[0]} split")
    test = parts[others[0]]
    if len(test) and (test.labels.min() < 0 or test.labels.max() >= len(names)):
        raise ValueError(
            f"labels of the {others[0]} split of {settings.path} run from {test.labels.min()} to "
            f"{test.labels.max()} and there are {len(names)} classes: it is published without "
            "labels, or train lacks some; leave its files out"
        )
    passed = [f"{len(parts[side])} images of {side} passed over" for side in others[1:]]
    said = "; ".join([said, f"held out: {others[0]}", *passed])
    return Source(mixed(train), mixed(test), names, said=said, scratch=scratch)


def _names_by_side(names: Iterable[str]) -> dict[str, list[str]]:
    sides: dict[str, list[str]] = {}
    for name in names:
        sides.setdefault(side_of(name) or "", []).append(name)
    return sides


def _check_sides(sides: Mapping[str, Any], path: Path) -> None:
    odd = [side for side in sides if side not in ("train", "test", "val", "")]
    if odd or (len(sides) > 1 and "train" not in sides):
        raise ValueError(
            f"{path} has splits {', '.join(sorted(sides))}; train and test (or val) are expected: "
            "set data.path to the one to train on"
        )


def _by_side(path: Path) -> dict[str, list[Path]]:
    """The .parquet files of each side, by the words of their names, else by their folders."""
    if path.is_file():
        files = [path]
    else:
        files = sorted(p for p in path.rglob("*.parquet") if not foreign(p.name))
    if not files:
        raise ValueError(f"{path} holds no .parquet files; set data.path to the folder of them")
    sides: dict[str, list[Path]] = {}
    folders: dict[str, set[Path]] = {}
    for file in files:
        _check_magic(file)
        side = side_of(file.stem.partition("-")[0]) or side_of(file.parent.name) or ""
        sides.setdefault(side, []).append(file)
        folders.setdefault(side, set()).add(file.parent)
    for side, places in folders.items():
        if len(places) > 1:
            names = " and ".join(sorted(place.name for place in places)[:2])
            raise ValueError(
                f"{path} has .parquet files of {side or 'one split'} in {names}: several data "
                "sets; set data.path to the folder of one"
            )
    words = ((file.stem.partition("-")[0], file.parent.name) for file in files)
    check_one_word(_names_by_side(w if side_of(w) else folder for w, folder in words), path)
    _check_sides(sides, path)
    return sides


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(40)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file} is a git-lfs pointer, not the data; fetch them: git lfs pull")
    if head[:4] != b"PAR1":
        raise ValueError(f"{file} is not a readable .parquet file; copy it again")


def _parquet_columns(file: Path, label: str | None, labelled: bool = True) -> Columns:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        schema = parquet.read_schema(file)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable .parquet file: {error}") from error
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is not None:
        features = json.loads(stored)["info"]["features"]
    else:
        features = {field.name: _guessed(field) for field in schema}
    return _columns(features, label, file, labelled)


def _guessed(field) -> dict[str, Any]:
    """What a column without metadata is, by its type alone."""
    import pyarrow as arrow

    kind = field.type
    if arrow.types.is_struct(kind) and {"bytes", "path"} == {f.name for f in kind}:
        return {"_type": "Image"}
    return {"_type": "Value", "dtype": str(kind)}


def _columns(
    features: Mapping[str, Any], label: str | None, place, labelled: bool = True
) -> Columns:
    kinds = {n: f.get("_type") if isinstance(f, Mapping) else None for n, f in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if len(images) > 1:
        images = [name for name in images if name in IMAGE_NAMES] or images
    if len(images) != 1:
        raise ValueError(
            f"{place} has {len(images)} columns of images (columns: {', '.join(features)}); keep "
            "one, named image"
        )
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if label is not None:
        if label not in features:
            raise ValueError(
                f"{place} has no column {label}; data.label is one of its {', '.join(features)}"
            )
        labels = [label]
    if not labels and labelled:
        labels = _by_name(features, place)
    if len(labels) > 1 and labelled:
        raise ValueError(
            f"{place} has labels {' and '.join(labels)}; choose one, such as data.label={labels[0]}"
        )
    if not labels or not labelled:
        return Columns(images[0], None, None)
    names = features[labels[0]].get("names")
    return Columns(images[0], labels[0], tuple(names) if names else None)


def _by_name(features: Mapping[str, Any], place) -> list[str]:
    """Columns that are labels by their names. Raises ValueError where they hold no whole numbers,
    which would be passed over."""
    named = [name for name in features if name.lower() in LABEL_NAMES]
    for name in named:
        feature = features[name]
        dtype = str(feature.get("dtype") if isinstance(feature, Mapping) else "a list")
        if not dtype.startswith(("int", "uint")):
            raise ValueError(
                f"column {name} of {place} is {dtype}, and labels are whole numbers 0, 1, 2, ...; "
                "store it as these, or call it otherwise if it is no label"
            )
    return named


def _copied(files: list[Path], columns: Columns, scratch: Path, side: str) -> Part:
    """The images of one side, their bytes one after another in `scratch`."""
    target = scratch / f"{side or 'all'}.bin"
    sizes: list[int] = []
    labels: list[int] = []
    with target.open("wb") as out:
        for data, label in _of_parquet(files, columns):
            out.write(data)
            sizes.append(len(data))
            labels.append(label)
    ends = np.cumsum(sizes, dtype=np.int64)
    images = Spans(
        (str(target),),
        Names.of(f"image {index}" for index in range(len(sizes))),
        np.zeros(len(sizes), np.uint16),
        ends - np.array(sizes, np.int64),
        np.array(sizes, np.int64),
    )
    numbers = np.array(labels, np.int64)
    return Part(images, _checked(numbers, columns.label) if columns.label else numbers)


def _checked(labels: np.ndarray, column: str) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise ValueError(f"column {column} holds no whole numbers; choose another data.label")
    return labels.astype(np.int64)


def _of_parquet(files: list[Path], columns: Columns) -> Iterator[tuple[bytes, int]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    wanted = [columns.image, *filter(None, [columns.label])]
    for file in files:
        try:
            opened = parquet.ParquetFile(file, memory_map=True, buffer_size=2**20)
            for batch in opened.iter_batches(BATCH, columns=wanted):
                rows = batch.to_pydict()
                labels = rows[columns.label] if columns.label else [0] * batch.num_rows
                for image, label in zip(rows[columns.image], labels, strict=True):
                    if not isinstance(label, int):
                        raise ValueError(f"column {columns.label} of {file} holds {label!r}")
                    yield _bytes(image, str(file)), label
        except (arrow.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{file} is not a readable .parquet file: {error}") from error


def _bytes(image: Any, name: str) -> bytes:
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes):
        raise ValueError(
            f"{name} names image files and does not hold them; write it with the images embedded"
        )
    return data
