"""A folder of image files: class folders, with a split or without, or EDM's dataset.json."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np

from stages.data.readers.files import files_of
from stages.data.readers.labels import of_dataset_json
from stages.data.readers.layout import Layout, Side, layout_of
from stages.data.readers.order import mixed
from stages.data.readers.source import (
    Encoded,
    Part,
    Source,
    number_held_out,
    refuse_held_out,
    required,
    split,
)
from stages.data.readers.tree import Found, images_below, side_of


def read(settings) -> Source:
    """`settings.path`: CLASS/IMAGE, or train/CLASS/IMAGE beside test/ (or val/, ...) of that
    layout.

    Image files without class folders are data without labels. Class numbers follow the sorted
    folder names. With `settings.size` every image is cut by `settings.crop`; without it all must be
    of one size. Without a test folder `settings.held_out` images (default: a sixth, at most 10,000)
    are held out. Both parts are in an order of numpy's RandomState(0), with or without a test
    folder. A dataset.json on top gives the labels, in the order of the sorted names.
    """
    root = required(settings.path, "folder", "folder of class folders")
    found = images_below(root, settings.follow_links)
    if (beside := dataset_json(found)) is not None:
        text, prefix = (root / beside).read_bytes(), beside.removesuffix("dataset.json")
        return labelled(files_of(root, found.paths), found, text, settings, prefix)
    layout = layout_of(found.paths, str(root))
    check_empty(root, layout, found)
    return source_of(lambda paths: files_of(root, paths), layout, found, settings)


def source_of(images_of, layout: Layout, found: Found, settings) -> Source:
    """The source of a layout; `images_of(paths)` gives the images of some of its paths."""
    names = layout.class_names
    train = part_of(images_of, layout.train, names)
    said = [*layout.said, found.said()]
    if layout.train.classes is None:
        said.append("no class folders: no labels")
    if layout.test is not None:
        refuse_held_out(settings, "its own held-out folder")
        test = mixed(part_of(images_of, layout.test, names))
        return Source(mixed(train), test, names, said="; ".join(filter(None, said)))
    number = number_held_out(settings, len(train))
    return Source(*split(train, number, names), names, said="; ".join(filter(None, said)))


def dataset_json(found: Found) -> str | None:
    """The dataset.json on top, or in the folder that all images lie in."""
    if not found.paths:
        return None
    folder = os.path.commonpath([found.paths[0], found.paths[-1]])
    if len(found.paths) == 1:
        folder = folder.rpartition("/")[0]
    parts = folder.split("/") if folder else []
    places = ["/".join([*parts[:end], "dataset.json"]) for end in range(len(parts) + 1)]
    return next((place for place in places if place in found.companions), None)


def labelled(images: Encoded, found: Found, text: bytes, settings, prefix: str = "") -> Source:
    """The source of images whose labels a dataset.json gives by their sorted names, which are
    relative to the folder `prefix` that it lies in."""
    labels, names = of_dataset_json(text, [path.removeprefix(prefix) for path in found.paths])
    pool = Part(images, labels)
    parts = split(pool, number_held_out(settings, len(pool)), names)
    said = "labels by dataset.json" if len(names) > 1 else "dataset.json without labels"
    return Source(*parts, names, said=said)


def part_of(images_of, side: Side, names: tuple[str, ...]) -> Part:
    """The images of one side, with the numbers of their classes."""
    if side.classes is None:
        return Part(images_of(side.paths), np.zeros(len(side.paths), np.int64))
    number = {name: label for label, name in enumerate(names)}
    labels = np.fromiter((number[name] for name in side.classes), np.int64, len(side.classes))
    return Part(images_of(side.paths), labels)


def _is_side(folder: str) -> bool:
    """Whether a folder on top, or in the one on top, is named as the side that is held out."""
    return side_of(folder.rpartition("/")[2]) in ("test", "val")


def check_empty(root: Path, layout: Layout, found: Found) -> None:
    """Raise ValueError for a folder beside class folders, or of a side, that holds no image."""
    full: set[str] = set()
    parents: set[str] = set()
    for path in found.paths:
        folder = path.rpartition("/")[0]
        while folder and f"{folder}/" not in full:
            full.add(f"{folder}/")
            folder = folder.rpartition("/")[0]
    for folder in found.folders:
        name = folder[:-1]
        if layout.test is None and name.count("/") < 2 and folder not in full and _is_side(name):
            raise ValueError(f"{root / folder} holds no image files; fill it, or remove it")
    if layout.train.classes is None:
        return
    for side in filter(None, (layout.train, layout.test)):
        # By folder: there are far fewer of them than images.
        for folder, name in {
            (p.rpartition("/")[0], n) for p, n in zip(side.paths, side.classes, strict=True)
        }:
            parts = [unicodedata.normalize("NFC", part) for part in folder.split("/")]
            above = folder.split("/")[: parts.index(name)] if name in parts else None
            if above is not None:
                parents.add("".join(f"{part}/" for part in above))
    for folder in found.folders:
        parent = folder[:-1].rpartition("/")[0]
        if folder not in full and (f"{parent}/" if parent else "") in parents:
            raise ValueError(
                f"{root / folder} holds no image files, and stands beside class folders; remove it "
                "or fill it"
            )
