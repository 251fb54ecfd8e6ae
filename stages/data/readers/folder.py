"""A folder of image files: class folders, with a split or without, or EDM's dataset.json."""

from __future__ import annotations

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
from stages.data.readers.tree import Found, images_below


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
    labels = root / "dataset.json"
    if labels.is_file():
        return labelled(files_of(root, found.paths), found, labels.read_bytes(), settings)
    layout = layout_of(found.paths, str(root))
    _check_empty(root, layout, found)
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
    return Source(*split(train, number), names, said="; ".join(filter(None, said)))


def labelled(images: Encoded, found: Found, text: bytes, settings) -> Source:
    """The source of images whose labels a dataset.json gives by their sorted names."""
    labels, names = of_dataset_json(text, found.paths)
    pool = Part(images, labels)
    parts = split(pool, number_held_out(settings, len(pool)))
    said = "labels by dataset.json" if len(names) > 1 else "dataset.json without labels"
    return Source(*parts, names, said=said)


def part_of(images_of, side: Side, names: tuple[str, ...]) -> Part:
    """The images of one side, with the numbers of their classes."""
    if side.classes is None:
        return Part(images_of(side.paths), np.zeros(len(side.paths), np.int64))
    number = {name: label for label, name in enumerate(names)}
    labels = np.fromiter((number[name] for name in side.classes), np.int64, len(side.classes))
    return Part(images_of(side.paths), labels)


def _check_empty(root: Path, layout: Layout, found: Found) -> None:
    """Raise ValueError for a folder beside class folders that holds no image."""
    if layout.train.classes is None:
        return
    full: set[str] = set()
    parents: set[str] = set()
    for path in found.paths:
        folder = path.rpartition("/")[0]
        while folder and f"{folder}/" not in full:
            full.add(f"{folder}/")
            folder = folder.rpartition("/")[0]
    for side in filter(None, (layout.train, layout.test)):
        for path, name in zip(side.paths, side.classes, strict=True):
            parents.add(path.partition(f"{name}/")[0])
    for folder in found.folders:
        parent = folder[:-1].rpartition("/")[0]
        if folder not in full and (f"{parent}/" if parent else "") in parents:
            raise ValueError(
                f"{root / folder} holds no image files, and stands beside class folders; remove it "
                "or fill it"
            )
