"""Labels as public files hold them, brought to one number an image."""

from __future__ import annotations

import json

import numpy as np

UNLABELLED = ("images",)


def class_numbers(labels: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(n,) int64 of labels as they are stored, and the class names where the labels are text.

    (n,) and (n, 1) whole numbers are taken, (n, K) rows with a single one among zeros, and text.
    Raises ValueError for others, `name` in it.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and _is_one_hot(labels):
        labels = labels.argmax(1)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        names, numbers = np.unique(labels, return_inverse=True)
        texts = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
        return numbers.astype(np.int64), tuple(texts)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        more = "; several classes an image are not supported" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name} has shape {labels.shape} and type {labels.dtype}; give one integer each{more}"
        )
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{name} holds {labels.min()}; labels count from 0")
    return labels.astype(np.int64), None


def _is_one_hot(labels: np.ndarray) -> bool:
    if labels.dtype.kind not in "biuf" or labels.shape[1] < 2 or not len(labels):
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())


def numbered_names(labels: np.ndarray, name: str) -> tuple[str, ...]:
    """The classes 0 to the highest label, named by number. Raises ValueError for one without an
    image, which would be sampled though it was never trained."""
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise ValueError(
            f"{name} holds label {present[gaps[0]]} but none of {gaps[0]}; number the classes 0, "
            "1, 2, ... without gaps, and leave out images that have no class"
        )
    return tuple(str(label) for label in present)


def of_dataset_json(text: bytes, paths: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) int64 of these names by EDM's dataset.json, and class names.

    Its `labels` are null, or pairs of a name and a number, or of a name and a vector with a single
    one. Raises ValueError where it is damaged, or does not name all of them.
    """
    try:
        listed = json.loads(text)["labels"]
        by_name = None if listed is None else {str(name): label for name, label in listed}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'dataset.json is not of the form {{"labels": [["00000/img00000000.png", 6], ...]}}: '
            f"{error}"
        ) from error
    if by_name is None:
        return np.zeros(len(paths), np.int64), UNLABELLED
    missing = [path for path in paths if path not in by_name]
    more = by_name.keys() - set(paths) if len(by_name) != len(paths) else ()
    if missing or more:
        odd = f"has no label of {missing[0]}" if missing else f"names {min(more)}, which is absent"
        raise ValueError(
            f"dataset.json lists {len(by_name)} images and {len(paths)} are there: it {odd}; "
            "complete the one or the other, since labels go by name"
        )
    labels, _ = class_numbers(np.array([by_name[path] for path in paths]), "dataset.json")
    return labels, numbered_names(labels, "dataset.json")
