"""ImageNet (ILSVRC 2012) as it is unpacked: ILSVRC/Data/CLS-LOC/{train/WNID,val}, or train/WNID and
val/WNID. Labels are the ranks of the sorted WordNet ids."""

from __future__ import annotations

import csv
from pathlib import Path

from stages.data.readers.files import files_of
from stages.data.readers.folder import part_of
from stages.data.readers.layout import WNID, Side
from stages.data.readers.order import mixed
from stages.data.readers.source import Part, Source, refuse_held_out, required, split
from stages.data.readers.tree import Found, images_below
from stages.data.recognised import SOLUTION, beside, imagenet_base

CLASSES = 1000


def read(settings) -> Source:
    """`settings.path`: the folder. All images of train/ are trained on, and those of val/ are held
    out; without val/ `settings.held_out` says how many of train/ are held out, and there is no
    default. A flat val/ takes its labels from LOC_val_solution.csv."""
    path = required(settings.path, "imagenet", "folder of ILSVRC's train and val")
    base = imagenet_base(path)
    if base is None:
        raise ValueError(
            f"{path} has no train/ with folders like n01440764; set data.path to the folder that "
            "holds it, or data.dataset=folder"
        )
    found = images_below(base / "train", settings.follow_links)
    side = _by_folder(found, base / "train")
    names = tuple(sorted(set(side.classes)))
    train = part_of(lambda paths: files_of(base / "train", paths), side, names)
    said = [f"{len(names)} of ImageNet's {CLASSES} classes"] if len(names) != CLASSES else []
    said += filter(None, [found.said()])
    if not (base / "val").is_dir():
        if settings.held_out is None:
            raise ValueError(
                f"{base} has ImageNet's training images and no val/, and none is held out of them "
                "unasked; place val/ there, or set data.held_out, such as data.held_out=10000"
            )
        return Source(*split(train, settings.held_out), names, said="; ".join(said))
    refuse_held_out(settings, "its own val/")
    test = _held_out(base, path, names, settings.follow_links)
    said.append("held out: val/")
    return Source(mixed(train), mixed(test), names, said="; ".join(said))


def _by_folder(found: Found, root: Path) -> Side:
    classes = [path.partition("/")[0] if "/" in path else "" for path in found.paths]
    odd = [name for name in set(classes) if not WNID.fullmatch(name)]
    if odd or not classes:
        what = f"{min(odd) or 'loose images'}, which is" if odd else "no images; there is"
        raise ValueError(
            f"{root} holds {what} no WordNet id such as n01440764; take it out, or set "
            "data.dataset=folder"
        )
    return Side(found.paths, classes)


def _held_out(base: Path, path: Path, names: tuple[str, ...], follow_links: bool) -> Part:
    root = base / "val"
    found = images_below(root, follow_links)
    if not found.paths:
        raise ValueError(f"{root} holds no images; place ImageNet's validation images there")
    if all("/" in name for name in found.paths):
        side = _by_folder(found, root)
    else:
        solution = _solution(base, path)
        ids = [name.rpartition("/")[2].partition(".")[0] for name in found.paths]
        unknown = [name for name in ids if name not in solution]
        if unknown:
            raise ValueError(f"{SOLUTION} has no label of {unknown[0]} of {root}; complete it")
        side = Side(found.paths, [solution[name] for name in ids])
    odd = sorted(set(side.classes) - set(names))
    if odd:
        raise ValueError(f"{root} has images of class {odd[0]}, of which {base / 'train'} has none")
    return part_of(lambda paths: files_of(root, paths), side, names)


def _solution(base: Path, path: Path) -> dict[str, str]:
    """WordNet ids by the names of the validation images."""
    found = beside(path, "imagenet")
    if not found:
        raise ValueError(
            f"{base / 'val'} has no class folders; place {SOLUTION} (of the Kaggle archive) in "
            f"{path}, or sort the images into folders of their WordNet ids"
        )
    (file,) = found
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        try:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{file} has no columns ImageId and PredictionString: {error}"
            ) from error
