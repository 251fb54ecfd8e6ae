"""WebDataset: tars whose neighbouring members of one key are an image and its label; and tars of
class folders. A tar has no index: one scan gives the offsets."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.fingerprint import foreign
from stages.data.readers.folder import source_of
from stages.data.readers.labels import UNLABELLED, numbered_names
from stages.data.readers.layout import layout_of
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
from stages.data.readers.spans import Spans
from stages.data.readers.tree import IMAGES, Found, check_one_word, chosen, side_of

LABELS = (".cls", ".json")
LABEL_KEYS = ("label", "cls", "class", "class_id", "target")


@dataclass
class Sample:
    """An image member, and the label beside it, if there is one."""

    name: str
    shard: int
    offset: int
    size: int
    label: int | None = None


def read(settings) -> Source:
    """`settings.path`: a .tar, or a folder of shards; `imagenet-train-000000.tar` beside
    `imagenet-val-000000.tar` are a split."""
    path = required(settings.path, "webdataset", ".tar, or folder of .tar shards")
    sides: dict[str, list[Path]] = {}
    for shard in _shards(path):
        sides.setdefault(side_of(shard.stem) or _part_of(shard, path), []).append(shard)
    check_one_word({side: map(_named, shards) for side, shards in sides.items()}, path)
    if "train" in sides and "" in sides:
        raise ValueError(
            f"{sides[''][0].name} of {path} stands for no side beside train; name it train-..., or "
            "take it away"
        )
    train_shards = sides.pop("train", None) or sides.pop("", None)
    if train_shards is None:
        raise ValueError(
            f"{path} has only shards of {', '.join(sorted(sides))}; name those to train on "
            "train-000000.tar, ..."
        )
    samples = list(_samples(train_shards))
    if all(sample.label is None for sample in samples):
        if not sides:
            return _of_folders(train_shards, samples, settings)
        if any("/" in sample.name for sample in samples):
            raise ValueError(
                f"the shards of {path} have class folders and a split, which are not read "
                "together; give each image its .cls, or set data.path to the shards to train on"
            )
    train, names = _part(train_shards, samples, path)
    held_out = next((s for s in ("test", "val") if s in sides), None)
    said = f"{len(train_shards)} shards"
    if held_out is None:
        return Source(*split(train, number_held_out(settings, len(train))), names, said=said)
    refuse_held_out(settings, f"its own {held_out} shards")
    others = (f"; {len(sides[s])} shards of {s} passed over" for s in sides if s != held_out)
    said += "".join([f"; held out: {held_out} shards", *others])
    test, theirs = _part(sides[held_out], list(_samples(sides[held_out])), path)
    if len(theirs) > len(names):
        raise ValueError(f"the {held_out} shards of {path} have labels that train's have not")
    return Source(mixed(train), mixed(test), names, said=said)


def pool(path: Path) -> Listing:
    """All images of the tar or tars, in their order."""
    shards = _shards(path)
    samples = list(_samples(shards, labelled=False))
    if not samples:
        raise ValueError(f"{path} holds no images; give one with PNG or JPEG files")
    return Listing(_spans(shards, samples), [sample.name for sample in samples])


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    shards = sorted(p for p in path.rglob("*.tar") if not foreign(p.name))
    if not shards:
        raise ValueError(f"{path} holds no .tar files; set data.path to the folder of the shards")
    return shards


def _named(shard: Path) -> str:
    """What says the side of a shard: its own name, or else its folder's."""
    tokens = shard.stem.replace("-", "_").split("_")
    return shard.stem if any(map(side_of, tokens)) else shard.parent.name


def _part_of(shard: Path, root: Path) -> str:
    """The side that the folder of a shard, or a token of its name, says."""
    if root.is_dir():
        for folder in shard.relative_to(root).parts[:-1]:
            if side := side_of(folder):
                return side
    sides = {side_of(token) for token in shard.stem.replace("-", "_").split("_")} - {None}
    return sides.pop() if len(sides) == 1 else ""


def _samples(shards: list[Path], labelled: bool = True) -> Iterator[Sample]:
    """The samples of some tars, in their order. A key is a path up to the first dot of its name.
    labelled: whether labels are read."""
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                yield from _of_tar(tar, number, shard, labelled)
        except tarfile.TarError as error:
            raise ValueError(
                f"{shard} is not a readable tar ({error}); unpack what is compressed, or copy it "
                "again"
            ) from error


def _of_tar(tar: tarfile.TarFile, number: int, shard: Path, labelled: bool) -> Iterator[Sample]:
    key, sample, label, seen = None, None, None, set()
    for member in tar:
        tar.members = []  # no list of all members is kept
        parts = member.name.removeprefix("./").split("/")
        if not member.isfile() or any(foreign(part) for part in parts):
            continue
        stem, dot, suffix = parts[-1].partition(".")
        suffix = f"{dot}{suffix.lower()}"
        ours = "/".join([*parts[:-1], stem])
        if ours != key:
            if sample is not None:
                yield _labelled(sample, label)
            key, sample, label, seen = ours, None, None, set()
        if suffix in seen:
            raise ValueError(f"{member.name} is twice in {shard}, for one key; repack the shard")
        seen.add(suffix)
        if suffix in IMAGES or f".{suffix.rpartition('.')[2]}" in IMAGES:
            if sample is not None:
                raise ValueError(f"{ours} in {shard} has two images; one a key is expected")
            name = "/".join(parts)
            sample = Sample(name, number, member.offset_data, member.size)
        elif labelled and suffix in LABELS:
            label = _label(tar.extractfile(member).read(), suffix, member.name, label)
    if sample is not None:
        yield _labelled(sample, label)


def _labelled(sample: Sample, label: int | None) -> Sample:
    sample.label = label
    return sample


def _label(data: bytes, suffix: str, name: str, before: int | None) -> int | None:
    try:
        if suffix == ".cls":
            return _whole(data.decode().strip())
        content = json.loads(data)
        keys = LABEL_KEYS if isinstance(content, dict) else ()
        found = [content[key] for key in keys if content.get(key) is not None]
        return before if before is not None or not found else _whole(found[0])
    except ValueError as error:
        raise ValueError(
            f"{name} holds no whole number as label ({error}); number the classes 0, 1, 2, ..."
        ) from None


def _whole(label: object) -> int:
    """A label as a number: 3, 3.0 or their text. Raises ValueError for another."""
    if isinstance(label, str) and re.fullmatch(r"[0-9]+(\.0*)?", label):
        label = float(label)
    if isinstance(label, bool) or not isinstance(label, int | float) or label != int(label):
        raise ValueError(f"{label!r:.60}")
    return int(label)


def _part(shards: list[Path], samples: list[Sample], path: Path) -> tuple[Part, tuple[str, ...]]:
    if not samples:
        raise ValueError(f"{path} holds no images; its tars should hold PNG or JPEG files")
    without = [sample.name for sample in samples if sample.label is None]
    if len(without) not in (0, len(samples)):
        raise ValueError(
            f"{len(without)} of {len(samples)} images in {path} have no .cls, the first "
            f"{without[0]}; give labels to all or to none"
        )
    if without:
        return Part(_spans(shards, samples), np.zeros(len(samples), np.int64)), UNLABELLED
    labels = np.array([sample.label for sample in samples], np.int64)
    return Part(_spans(shards, samples), labels), numbered_names(labels, f".cls in {path}")


def _of_folders(shards: list[Path], samples: list[Sample], settings) -> Source:
    """A tar without labels: its folders mean what they mean on disk."""
    place = {sample.name: sample for sample in samples}
    found: Found = chosen(place, str(settings.path))

    def images_of(paths):
        return _spans(shards, [place[name] for name in paths])

    return source_of(images_of, layout_of(found.paths, str(settings.path)), found, settings)


def _spans(shards: list[Path], samples: list[Sample]) -> Spans:
    return Spans(
        tuple(map(str, shards)),
        Names.of(sample.name for sample in samples),
        np.array([sample.shard for sample in samples], np.uint32),
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.size for sample in samples], np.int64),
    )
