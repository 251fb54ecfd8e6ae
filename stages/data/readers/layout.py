"""What the folders of image files mean: classes, and the sides of a split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from stages.data.readers.tree import side_of

WNID = re.compile(r"n\d{8}")
EXPECTED = (
    "expected is CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE (or val/...), or images "
    "without class folders in both"
)
NUMBERED = re.compile(r"\d{5}")


@dataclass
class Side:
    """One side of a split: relative paths and the class of each, or None without classes."""

    paths: list[str]
    classes: list[str] | None


@dataclass
class Layout:
    """test: None where the folder has no split of its own. said: what was decided, in words."""

    train: Side
    test: Side | None
    class_names: tuple[str, ...]
    said: list[str] = field(default_factory=list)


def layout_of(paths: list[str], place: str) -> Layout:
    """The layout of images by their paths (relative, sorted).

    Raises ValueError where the folders could mean more than one thing; it names what is expected.
    """
    if not paths:
        raise ValueError(f"{place} has 0 class folders and no images; {EXPECTED}")
    said: list[str] = []
    prefix = _wrapper(paths)
    if prefix:
        said.append(f"all lies in {prefix}")
    sides, others = _by_side(paths, prefix)
    if "train" not in sides:
        if sides and not _are_classes(sides, others):
            name = _names(sides, prefix)
            raise ValueError(f"{place} has {name} and no train/; {EXPECTED}")
        side = _side(paths, prefix, place)
        return Layout(side, None, _class_names(side), said)
    if others:
        if set(sides) == {"train"} and _are_classes(sides, others):
            side = _side(paths, prefix, place)  # `train` is a class of vehicles
            return Layout(side, None, _class_names(side), said)
        raise ValueError(
            f"{place} has {_names(sides, prefix)} beside {others[0].removeprefix(prefix)}, which "
            f"stands for no side of a split; {EXPECTED}: rename the held-out folder to test/, or "
            "move the others out"
        )
    train = _side(*_one(sides["train"], "train", place), place)
    held_out = [name for name in ("test", "val") if name in sides]
    if not held_out:
        said.append("train/ alone")
        return Layout(train, None, _class_names(train), said)
    return _with_split(train, {n: sides[n] for n in held_out}, place, said)


def _with_split(train: Side, held_out: dict, place: str, said: list[str]) -> Layout:
    """The held-out side that fits the training side; `test` before `val` where both do."""
    names, problems = _class_names(train), []
    for name, folders in held_out.items():
        own, prefix = _one(folders, name, place)
        try:
            side = _side(own, prefix, place)
            _check_classes(train, side, folders, place)
        except ValueError as error:
            problems.append(error)
            continue
        for other in held_out.keys() - {name}:
            count = sum(map(len, held_out[other].values()))
            said.append(f"held out is {prefix}; {count} images of {other} passed over")
        return Layout(train, side, names, said)
    raise problems[0]


def _check_classes(train: Side, test: Side, folders: dict, place: str) -> None:
    name = next(iter(folders))
    if train.classes is None and test.classes is not None:
        raise ValueError(f"{place}/{name} has class folders and train/ has none; {EXPECTED}")
    if train.classes is not None and test.classes is None:
        _check_single(train, folders, name, place)
        raise ValueError(
            f"{place}/{name} has no class folders and train/ has; {EXPECTED}: sort the held-out "
            "images into the folders of their classes, or take the folder away"
        )
    odd = sorted(set(train.classes or ()) ^ set(test.classes or ()))
    if odd:
        raise ValueError(_of_one_side(odd[0], name, place))


def _check_single(train: Side, folders: dict, name: str, place: str) -> None:
    """Raise ValueError where what looks like images without classes is the folder of one class."""
    ((folder, paths),) = folders.items()
    inside = {path.removeprefix(f"{folder}/").partition("/")[0] for path in paths}
    if len(inside) == 1 and inside <= set(train.classes):
        odd = min(set(train.classes) - inside)  # with classes there are two at least
        raise ValueError(_of_one_side(odd, name, place))


def _of_one_side(odd: str, name: str, place: str) -> str:
    return (
        f"class '{odd}' is in only one of train/ and {name}/ of {place}; both must have the same "
        "class folders"
    )


def _wrapper(paths: list[str]) -> str:
    """The folders that all images lie in, but for one that names a class or a side: `a/b/`."""
    prefix = ""
    while True:
        # Sorted folder by folder: what the first and the last share all share.
        tops = {path[len(prefix) :].partition("/")[0] for path in (paths[0], paths[-1])}
        start = f"{prefix}{min(tops)}/"
        nested = all("/" in path[len(start) :] for path in paths)
        if len(tops) != 1 or not nested or side_of(min(tops)):
            return prefix
        prefix = start


def _by_side(paths: list[str], prefix: str) -> tuple[dict, list[str]]:
    """`{side: {folder: paths}}` of the top folders that name a side, and one path of every other
    top folder, or of the files beside them."""
    sides: dict[str, dict[str, list[str]]] = {}
    others: dict[str, str] = {}
    known: dict[str, str | None] = {}
    for path in paths:
        top, slash, _ = path[len(prefix) :].partition("/")
        if not slash:
            others.setdefault("", path)
            continue
        if top not in known:
            known[top] = side_of(top)
        if known[top] is None:
            others.setdefault(top, f"{prefix}{top}/")
        else:
            sides.setdefault(known[top], {}).setdefault(prefix + top, []).append(path)
    return sides, list(others.values())


def _one(folders: dict[str, list[str]], side: str, place: str) -> tuple[list[str], str]:
    """The paths and the prefix of the one folder of a side."""
    if len(folders) > 1:
        names = " and ".join(sorted(folders))
        raise ValueError(
            f"{names} of {place} both stand for '{side}'; keep one of them, or name one 'test'"
        )
    ((folder, paths),) = folders.items()
    return paths, f"{folder}/"


def _are_classes(sides: dict, others: list[str]) -> bool:
    """Whether folders named train, test, ... are classes like their neighbours: each of a side's
    own images flat, and at least two others that name none."""
    flat = all(
        path.count("/") == folder.count("/") + 1
        for folders in sides.values()
        for folder, paths in folders.items()
        for path in paths
    )
    return flat and sum(path.endswith("/") for path in others) >= 2


def _names(sides: dict, prefix: str) -> str:
    folders = sorted(folder for of in sides.values() for folder in of)
    return " and ".join(f"{folder.removeprefix(prefix)}/" for folder in folders)


def _side(paths: list[str], prefix: str, place: str) -> Side:
    """Paths below `prefix` with their classes, which are the folders right below it."""
    groups: dict[str, list[str]] = defaultdict(list)
    loose = []
    for path in paths:
        top, slash, rest = path[len(prefix) :].partition("/")
        (groups[top].append(rest) if slash else loose.append(path))
    where = f"{place}/{prefix}".rstrip("/")
    if loose and groups:
        raise ValueError(
            f"{len(loose)} images, such as {loose[0]}, lie beside the class folders of {where}; "
            f"{EXPECTED}: move them into a class folder or away"
        )
    if not groups or len(groups) == 1:
        return _flat(paths, prefix)
    if all(NUMBERED.fullmatch(name) for name in groups) and _is_numbered(groups):
        raise ValueError(
            f"the folders {min(groups)}, ... of {where} number images and are no classes; place "
            "the dataset.json that belongs to them there, or move all images into one folder"
        )
    if all(_is_split_inside(rests) for rests in groups.values()):
        raise ValueError(
            f"the class folders of {where} hold train and test folders each; {EXPECTED}: put train "
            "and test on top, and the classes inside"
        )
    return Side(paths, [path[len(prefix) :].partition("/")[0] for path in paths])


def _flat(paths: list[str], prefix: str) -> Side:
    """Images without class folders; those of ImageNet have the class in their names."""
    leaves = [path.rpartition("/")[2] for path in paths]
    if all(WNID.match(leaf) and leaf[9:10] == "_" for leaf in leaves):
        return Side(paths, [leaf[:9] for leaf in leaves])
    return Side(paths, None)


def _is_numbered(groups: dict[str, list[str]]) -> bool:
    """Whether folders are EDM's: 00012/img00012345.png."""
    return all(
        re.match(rf"(img-?\w*-?)?0*{name}\d{{3}}\b", rests[0]) for name, rests in groups.items()
    )


def _is_split_inside(rests: list[str]) -> bool:
    tops = {side_of(rest.partition("/")[0]) if "/" in rest else None for rest in rests}
    return "train" in tops and bool(tops & {"test", "val"}) and None not in tops


def _class_names(side: Side) -> tuple[str, ...]:
    return ("images",) if side.classes is None else tuple(sorted(set(side.classes)))
