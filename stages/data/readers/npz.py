"""NumPy archives and arrays: Keras' x_train, y_train, x_test, y_test, MedMNIST's train_images,
guided diffusion's arr_0 and arr_1, images and labels, one .npy with its labels beside it.

Object arrays are refused: nothing is unpickled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.readers.arrays import Stack, latents_of, pixels_of
from stages.data.readers.labels import class_numbers, numbered_names
from stages.data.readers.mapped import FileArray, open_npy, open_npz
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
from stages.data.recognised import beside

IMAGES = frozenset(
    [
        "x",
        "image",
        "images",
        "img",
        "imgs",
        "data",
        "pixels",
        "samples",
        "sample",
        "latents",
        "latent",
    ]
)
LABELS = frozenset(["y", "label", "labels", "lbl", "lbls", "target", "targets", "class", "classes"])
SHORT = {"tr": "train", "te": "test", "ts": "test", "va": "val"}  # sides as archives shorten them
TOKEN = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
GLUED = re.compile("([xy])(tr|trn|train|training|te|tst|test|testing|va|val|valid|validation)")


@dataclass
class Pair:
    """The arrays of one side by their names."""

    images: str | None = None
    labels: str | None = None


def read(settings) -> Source:
    """`settings.path`: the file. Without a test pair `settings.held_out` images (default: a
    sixth, at most 10,000) are held out. Both parts are in an order of numpy's RandomState(0), with
    a split of their own too, since archives are often sorted by class. Data without labels leave
    the y out."""
    path = required(settings.path, "npz", ".npz or .npy file")
    arrays, passed = _arrays(path)
    pairs = paired(arrays, str(path))
    said = [f"passed over {', '.join(passed)}"] if passed else []
    _check_unnamed(arrays, passed, pairs["train"], path)
    train = _part(arrays, pairs["train"], settings, path)
    names = _names(train, arrays, pairs["train"], path)
    others = [side for side in ("test", "val") if side in pairs]
    if not others:
        parts = split(train[0], number_held_out(settings, len(train[0])))
        return Source(*parts, names, said="; ".join([*said, _how(train[1])]))
    refuse_held_out(settings, f"its own {pairs[others[0]].images}")
    test = _part(arrays, pairs[others[0]], settings, path, train[1])
    test = _named_alike(train, test, pairs["train"], pairs[others[0]])
    _check_sides(train, test, names, pairs["train"], pairs[others[0]])
    said += [f"{pairs[side].images} passed over" for side in others[1:]]
    said.append(_how(train[1]))
    return Source(mixed(train[0]), mixed(test[0]), names, said="; ".join(said))


def pool(path: Path, like: tuple[int, int, int] | None = None) -> Listing:
    """The one array of images of a file, as samples come; `like`: (C, H, W) of the data."""
    name, array = _one(path)
    images = pixels_of(array, f"{name} in {path}", like=like, overshoot=0.5, told=False)
    return Listing(images, [f"image {index}" for index in range(len(images))])


def count(path: Path) -> int:
    """How many images `pool` lists, by the headers alone. ValueError as `pool` raises for them."""
    return len(_one(path)[1])


def _one(path: Path) -> tuple[str, FileArray]:
    """The one array of images of a file, and its name."""
    arrays, _ = _arrays(path)
    stacks = {n: a for n, a in arrays.items() if len(a.shape) in (3, 4)}
    if len(stacks) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{path} holds {len(stacks)} arrays of images ({shapes or 'it is empty'}); give one of "
            "shape (n, H, W), (n, H, W, C) or (n, C, H, W)"
        )
    ((name, array),) = stacks.items()
    return name, array


def _arrays(path: Path) -> tuple[dict[str, FileArray], list[str]]:
    """Arrays by name, and the names of those that are no images and no labels."""
    if path.suffix.lower() != ".npy":
        arrays = open_npz(path)
        known = {name: a for name, a in arrays.items() if _role(name) is not None}
        return arrays, sorted(arrays.keys() - known.keys())
    arrays = {"x": open_npy(path)}
    for labels in beside(path, "npz"):
        arrays["y"] = open_npy(labels)
    return arrays, []


def _role(name: str) -> tuple[str, str] | None:
    """(side, images or labels) that an array's name stands for; None for another."""
    if name in ("arr_0", "arr_1"):
        return "train", "images" if name == "arr_0" else "labels"
    tokens = [token.lower() for token in TOKEN.findall(name)]
    tokens = [part for token in tokens for part in _unglued(token)]
    what = {t: "images" for t in tokens if t in IMAGES} | {
        t: "labels" for t in tokens if t in LABELS
    }
    rest = [token for token in tokens if token not in what]
    side = side_of(" ".join(rest)) if rest else "train"
    # `train_data` are images, `train` alone too.
    kinds = set(what.values()) or ({"images"} if rest and side else set())
    return (side, kinds.pop()) if side and len(kinds) == 1 else None


def _unglued(token: str) -> tuple[str, ...]:
    """`xtrain` as x and train."""
    glued = GLUED.fullmatch(token)
    return tuple(SHORT.get(part, part) for part in (glued.groups() if glued else (token,)))


def paired(arrays: dict[str, FileArray], path: str) -> dict[str, Pair]:
    """The images and labels of each side. Raises ValueError where a side lacks what another has,
    or has it twice."""
    pairs: dict[str, Pair] = {}
    for name in arrays:
        if (role := _role(name)) is None:
            continue
        side, kind = role
        pair = pairs.setdefault(side, Pair())
        if (other := getattr(pair, kind)) is not None:
            raise ValueError(
                f"{path} has both {other} and {name}, which both stand for the {kind} of "
                f"{side}; keep one of them"
            )
        setattr(pair, kind, name)
    if "train" not in pairs or pairs["train"].images is None:
        raise ValueError(
            f"{path} has no array x_train (it has {', '.join(arrays) or 'none'}); images go "
            "into x_train, labels into y_train"
        )
    for side, pair in pairs.items():
        if pair.images is None:
            raise ValueError(f"{path} has {pair.labels} without images x_{side}; add or remove it")
        if (pair.labels is None) != (pairs["train"].labels is None):
            held, lacks = ("train", side) if pair.labels is None else (side, "train")
            raise ValueError(
                f"{path} has {pairs[held].labels} and no labels of {pairs[lacks].images}: "
                f"y_{lacks} is missing; give labels of both sides, or of neither"
            )
    return pairs


def _check_unnamed(arrays: dict[str, FileArray], passed: list[str], pair: Pair, path: Path) -> None:
    """Raise ValueError where images have no labels and an array beside them could be these."""
    if pair.labels is not None:
        return
    count = arrays[pair.images].shape[:1]
    for name in passed:
        array = arrays[name]
        if array.shape in (count, (*count, 1)) and array.dtype.kind in "iu":
            raise ValueError(
                f"{path} has no labels by name, and {name}, {count[0]} whole numbers, may be them; "
                "call it y_train if it is, else take it out"
            )


Loaded = tuple[Part, "Stack", "tuple[str, ...] | None"]


def _part(
    arrays: dict[str, FileArray], pair: Pair, settings, path: Path, beside: Stack | None = None
) -> Loaded:
    """beside: the training images, of held-out ones."""
    images = arrays[pair.images]
    if len(images.shape) not in (3, 4):
        raise ValueError(f"{pair.images} has shape {images.shape}; give (n, H, W) or (n, H, W, C)")
    count, names = images.shape[0], None
    # Without labels all images are of one class, and training is unconditional.
    labels = np.zeros(count, np.int64)
    if pair.labels is not None:
        labels, names = class_numbers(arrays[pair.labels].array, pair.labels)
    if len(labels) != count:
        raise ValueError(
            f"{pair.images} holds {count} images and {pair.labels} {len(labels)} labels; give one "
            "label an image"
        )
    what = f"{pair.images} in {path}"
    if settings.latent:
        stack = latents_of(images, what, settings.axes)
    else:
        stack = pixels_of(images, what, settings.axes, settings.range, beside=beside)
    return Part(stack, labels), stack, names


def _names(train: Loaded, arrays, pair: Pair, path: Path) -> tuple[str, ...]:
    part, _, names = train
    return names or numbered_names(part.labels, pair.labels or pair.images)


def _named_alike(train: Loaded, test: Loaded, ours: Pair, theirs: Pair) -> Loaded:
    """Held-out images with the class numbers of the training images, where labels are text."""
    (_, _, names), (part, stack, own) = train, test
    if names == own:
        return test
    if names is None or own is None:
        raise ValueError(
            f"one of {ours.labels} and {theirs.labels} holds text and the other numbers; store "
            "both alike"
        )
    if odd := sorted(set(own) - set(names)):
        raise ValueError(
            f"{theirs.labels} holds class '{odd[0]}', which no image of {ours.images} has"
        )
    number = np.array([names.index(name) for name in own], np.int64)
    return Part(part.images, number[part.labels], part.order), stack, names


def _check_sides(train: Loaded, test: Loaded, names, ours: Pair, theirs: Pair) -> None:
    labels = test[0].labels
    if len(labels) and (highest := labels.max()) >= len(names):
        raise ValueError(
            f"{theirs.labels} holds label {highest}, which no image of {ours.images} has"
        )
    if train[1].dtype != test[1].dtype:
        raise ValueError(
            f"{ours.images} and {theirs.images} are read as {train[1].dtype} and {test[1].dtype}; "
            "store both in one type and range"
        )


def _how(stack: Stack) -> str:
    how = "" if stack.convert in ("as they are", "float32") else f", values: {stack.convert}"
    return f"read as ({stack.axes}){how}"
