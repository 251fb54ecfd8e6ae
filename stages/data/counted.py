"""What is known of a data set before any of its images is read: how many, and whether labelled.

Known data sets are known by name; a folder of pictures is counted by its listing, and so are
samples made elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from stages.data.options import DIGITS, HELD_OUT, PrepareSettings
from stages.data.readers.layout import layout_of
from stages.data.readers.tree import IMAGES, Found, chosen, files_below, may_be_images, side_of

# Training and held-out images, and classes, of sets that are always the same.
KNOWN = {
    "mnist": (60_000, 10_000, 10),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "imagenet": (1_281_167, 50_000, 1000),
}
GLYPHS = (50_000, 10_000)  # unless more or fewer are asked for
LOOKED_AT = 5000  # files of a folder, for what it holds
LARGEST_HELD_OUT, ASKED_FROM = 10_000, 1_000_000

PNG_SHARE = 0.6  # of the bytes of pixels that photographs take as PNG, about


def estimate(settings: PrepareSettings, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `pipeline.estimates` and later nodes are told; see `stages.settings.costs`."""
    facts: dict[str, Any] = {}
    size, channels = settings.image_size, settings.image_channels
    if channels is None and not settings.holds_latents:
        channels = 3
    if size is not None and channels is not None:
        facts["shape"] = (channels, size, size)
    found = counts(settings)
    if found is None:
        return facts
    images, held_out, classes = found
    facts |= {"images": images, "held_out": held_out, "classes": classes}
    facts["said"] = f"{images:,} images to train on, {held_out:,} held out"
    if settings.dataset == "imagenet" and settings.limit is None and not settings.held_out:
        facts["said"] += ", none of them out of the training images"
    if "shape" in facts:
        pixels = (images + held_out) * channels * size * size
        packed = pixels > settings.mapped_gib * 2**30
        facts["bytes"] = pixels * (PNG_SHARE if packed else 1)
        facts["memory_bytes"] = settings.memory_gib * 2**30
    return facts


def counts(settings: PrepareSettings) -> tuple[int, int, int] | None:
    """Training images, held-out images and classes, where they can be told without reading."""
    place = None if settings.path is None else Path(settings.path)
    if settings.dataset == "digits":
        held_out = settings.held_out or HELD_OUT
        found = (DIGITS - held_out, held_out, 10)
    elif settings.dataset == "glyphs":
        asked = (settings.limit or GLYPHS[0], settings.limit_held_out or GLYPHS[1])
        found = (*asked, 62)
    elif settings.dataset in ("folder", "imagenet") and place is not None and place.is_dir():
        found = _listed(place, settings)
    elif settings.dataset in KNOWN:
        found = KNOWN[settings.dataset]
    else:
        return None
    limits = (settings.limit, settings.limit_held_out)
    kept = (n if most is None else min(n, most) for n, most in zip(found, limits, strict=False))
    return (*kept, found[2])


def samples_at(place: Path, most: int) -> int | None:
    """How many samples made elsewhere lie at a place, as far as names and headers tell: of a folder
    not beyond `most`; None of what would have to be read. Raises ValueError and UsageError where
    they cannot be listed."""
    from stages.data.image_files import kind_of
    from stages.data.readers import archive, npz

    kind = kind_of(place)
    if kind == "folder":
        return may_be_images(place, most)
    return {"npz": npz.count, "zip": archive.count}.get(kind, lambda place: None)(place)


def unlabelled(settings: PrepareSettings) -> bool:
    """Whether these are images in a folder that has no labels for sure."""
    place = Path(settings.path or "").expanduser()
    return settings.dataset == "folder" and place.is_dir() and lacks_labels(place)


def lacks_labels(place: Path) -> bool:
    """Whether a folder of images has no labels for sure, by where its files lie: in no class
    folders, and without a dataset.json above them. False of more than `LOOKED_AT`."""
    try:
        first = list(islice(files_below(place, True, Found()), LOOKED_AT + 1))
        if len(first) > LOOKED_AT:  # all of them may lie in the first of several classes
            return False
        paths = chosen(first, str(place)).paths
        if not paths or layout_of(paths, str(place)).train.classes is not None:
            return False
    except (OSError, ValueError):
        return False
    within = os.path.commonpath([os.path.dirname(path) for path in paths])
    above = [place / within, *(place / parent for parent in Path(within).parents)]
    return not any((folder / "dataset.json").exists() for folder in above)


def _listed(place: Path, settings: PrepareSettings) -> tuple[int, int, int]:
    """By the names of files: what lies below a folder of held-out images is held out."""
    train, held_out, classes = 0, 0, set()
    for folder, _, files in os.walk(place, followlinks=settings.follow_links):
        count = sum(os.path.splitext(name)[1].lower() in IMAGES for name in files)
        if not count:
            continue
        if any(side_of(part) in ("test", "val") for part in Path(folder).relative_to(place).parts):
            held_out += count
        else:
            train += count
            classes.add(folder)
    if not held_out:
        by_default = 0 if train >= ASKED_FROM else min(train // 6, LARGEST_HELD_OUT)
        held_out = by_default if settings.held_out is None else settings.held_out
        train -= held_out
    return train, held_out, len(classes)
