"""Which files below a folder are images, which are passed over, and which side of a split a
folder's name stands for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.fingerprint import foreign

# What Pillow reads without further packages.
IMAGES = frozenset(
    [
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".dib",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".jp2",
        ".j2k",
        ".tga",
    ]
)
# What lies beside images and is none.
COMPANIONS = frozenset(
    [
        ".txt",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".xml",
        ".yaml",
        ".yml",
        ".md",
        ".rst",
        ".html",
        ".htm",
        ".log",
        ".mat",
        ".pkl",
        ".pickle",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".bin",
        ".meta",
        ".py",
        ".ipynb",
        ".sh",
        ".cfg",
        ".ini",
        ".toml",
        ".sha256",
        ".md5",
        ".lock",
        ".doc",
        ".pdf",
    ]
)
SIDES = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel"),
}
_SIDE = {word: side for side, words in SIDES.items() for word in words}
_FILLING = frozenset(
    ["set", "data", "dataset", "images", "image", "img", "imgs", "split", "the", "seg", "out"]
)
_GLUED = re.compile(rf"^({'|'.join(sorted(_SIDE, key=len, reverse=True))})(set|data|images)$")


def side_of(name: str) -> str | None:
    """train, test or val, where a folder's or array's name says so, whatever its case: `Train`,
    `validation`, `test_set`, `val2017`, `seg_train`, `held-out`."""
    tokens = re.findall("[a-z]+", name.lower())
    joined = "".join(tokens)
    if joined in _SIDE:
        return _SIDE[joined]
    sides = set()
    for token in tokens:
        glued = _GLUED.match(token)
        if token in _SIDE or glued:
            sides.add(_SIDE[glued[1] if glued else token])
        elif token not in _FILLING:
            return None
    return sides.pop() if len(sides) == 1 else None


def check_one_word(names: Mapping[str, Iterable[str]], place: Path) -> None:
    """Raise ValueError where two words, such as test and eval, name one side of a data set.

    names: of the files, folders or splits of each side.
    """
    for side, own in names.items():
        words = {
            token if token in _SIDE else _GLUED.match(token)[1]
            for name in own
            for token in re.findall("[a-z]+", name.lower())
            if _SIDE.get(token) == side
            or ((glued := _GLUED.match(token)) and _SIDE[glued[1]] == side)
        }
        if side and len(words) > 1:
            raise ValueError(
                f"{' and '.join(sorted(words))} of {place} both stand for '{side}'; keep one of "
                "them, or set data.path to one"
            )


_SHORT = {"tr": "train", "te": "test", "ts": "test", "va": "val"}
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


def hinted_side(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The side that one word of a name stands for, and the other words: `cifar10_train` is
    (train, (cifar, 10)), `imagesTr` (train, (images,)). None for none and for several."""
    words = [word.lower() for word in _WORD.findall(name)]
    sides = {i: side for i, word in enumerate(words) if (side := _SIDE.get(word, _SHORT.get(word)))}
    if len(sides) != 1:
        return None, tuple(words)
    ((place, side),) = sides.items()
    return side, tuple(words[:place] + words[place + 1 :])


@dataclass
class Found:
    """paths: the images, relative, with `/`, sorted part by part. passed: how many of what was
    passed over. companions: text and table files beside them. folders: all but hidden ones."""

    paths: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    companions: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def said(self) -> str:
        """What was passed over, in words; empty where nothing was."""
        words = [f"{count} {what}" for what, count in sorted(self.passed.items())]
        return f"passed over {', '.join(words)}" if words else ""


def images_below(root: Path, follow_links: bool = True) -> Found:
    """The images below a folder. Links are followed, and a loop of links ends where it closes.

    Raises ValueError for a file that is neither an image that can be read, nor one of those that
    are passed over; for a link to nothing; and, without `follow_links`, for a link that leaves the
    folder.
    """
    seen = Found()
    found = chosen(files_below(root, follow_links, seen), str(root))
    found.passed += seen.passed
    found.folders = sorted(seen.folders)
    return found


def chosen(paths: Iterable[str], place: str) -> Found:
    """The images of a list of relative paths: of a folder, or of an archive."""
    found, others = Found(), []
    for path in paths:
        parts = path.split("/")
        suffix = PurePosixPath(parts[-1]).suffix.lower()
        if any(foreign(part) for part in parts):
            found.passed["hidden or foreign files"] += 1
        elif suffix in IMAGES:
            found.paths.append(path)
        elif _is_companion(path):
            found.passed[f"{suffix or 'text'} files"] += 1
            found.companions.append(path)
        else:
            others.append(path)
    if others:
        total = len(others) + len(found.paths)
        raise ValueError(
            f"{len(others)} of {total} files in {place} are not images that can be read, the first "
            f"{min(others)}; convert them to PNG, or take them out of the folder"
        )
    found.paths.sort(key=by_parts)
    return found


def may_be_images(root: Path, most: int) -> int:
    """How many files below a folder may be images, going by their names; not beyond `most`, and
    `most` where they cannot be listed. Cheap, for what is said before any work."""
    count = 0
    try:
        for path in files_below(root, True, Found()):
            count += not foreign(path.rpartition("/")[2]) and not _is_companion(path)
            if count >= most:
                break
    except (OSError, ValueError):
        return most
    return count


def _is_companion(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in COMPANIONS or (name.suffix == "" and _is_text_name(name.name))


def by_parts(path: str) -> str:
    """A key that sorts paths folder by folder."""
    return path.replace("/", "\0")


def _is_text_name(name: str) -> bool:
    return name.upper() in {"README", "LICENSE", "LICENCE", "CHANGELOG", "COPYING", "MANIFEST"}


def files_below(root: Path, follow: bool, seen: Found) -> Iterator[str]:
    """Relative paths of all files; of hidden folders none, counted as one each."""
    own = os.stat(root)
    inside = os.path.realpath(root)
    waiting = [(str(root), "", ((own.st_dev, own.st_ino),))]
    while waiting:
        folder, prefix, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _check_link(entry, inside, follow)
                if not entry.is_dir():
                    yield prefix + entry.name
                elif foreign(entry.name):
                    seen.passed["hidden or foreign folders"] += 1
                elif (mark := _mark(entry)) not in above:
                    seen.folders.append(f"{prefix}{entry.name}/")
                    waiting.append((entry.path, f"{prefix}{entry.name}/", (*above, mark)))
                else:
                    seen.passed["links that close a loop"] += 1


def _mark(entry: os.DirEntry) -> tuple[int, int]:
    status = entry.stat()
    return status.st_dev, status.st_ino


def _check_link(entry: os.DirEntry, inside: str, follow: bool) -> None:
    target = os.path.realpath(entry.path)
    if not os.path.exists(target) and not foreign(entry.name):
        raise ValueError(f"{entry.path} is a link to nothing ({target}); mend or remove it")
    if not follow and os.path.commonpath([target, inside]) != inside:
        raise ValueError(
            f"{entry.path} is a link out of the folder, to {target}; copy what it names, or set "
            "data.follow_links=true"
        )
