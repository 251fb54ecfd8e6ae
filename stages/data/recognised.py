"""Which data set lies at a path, by a look at names and first bytes: `data.dataset=auto`."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from itertools import islice
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.fingerprint import foreign
from stages.data.readers.tree import IMAGES

LOOKED_AT = 2000  # entries of a folder
MNIST = re.compile(r"(train|t10k)-images[-.]idx3-ubyte(\.gz)?")
WNID = re.compile(r"n\d{8}")
SOLUTION = "LOC_val_solution.csv"
LATENT = re.compile(r"img-mean-std-\d+\.npy")
KNOWN = (
    "a folder of images or of class folders, ImageNet's tree, an .npz, .npy, .zip, .tar or "
    ".parquet file or a folder of the latter two, CIFAR's or MNIST's files, an LMDB, a folder of "
    "save_to_disk, or one of latents (img-mean-std-*.npy)"
)
SUFFIXES = {
    ".npz": "npz",
    ".npy": "npz",
    ".zip": "zip",
    ".tar": "webdataset",
    ".parquet": "parquet",
}


def recognised(path: Path, setting: str = "data.path") -> str:
    """The name of the reader, a key of table.DATASETS. setting: the one that gave the path.

    Raises UsageError where nothing is known of it, or where it could be more than one.
    """
    try:
        status = path.stat()
        return _recognised(path, setting, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise UsageError(f"the data {path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _recognised(path: Path, setting: str, *state: int) -> str:
    return _of_file(path, setting) if path.is_file() else _of_folder(path, setting)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES


def _of_file(path: Path, setting: str) -> str:
    name = path.name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    if name.endswith((".tar.gz", ".tgz")):
        for part, kind in (("cifar-100", "cifar100"), ("cifar-10", "cifar10")):
            if part in name:
                return kind
        raise UsageError(f"{setting}={path} is a compressed archive; unpack it, and set {setting}")
    raise UsageError(f"{setting}={path} is of no kind that is known; it can be {KNOWN}")


def _of_folder(path: Path, setting: str) -> str:
    names = _names(path)
    kinds = _kinds(path, names)
    if len(kinds) > 1:
        choices = " or ".join(f"data.dataset={kind}" for kind in kinds)
        remedy = f"set {choices}" if setting == "data.path" else "leave one of them there"
        raise UsageError(f"{setting}={path} could be {' or '.join(kinds)}; {remedy}")
    if kinds:
        return kinds[0]
    arrays = [name for name in names if name.endswith((".npz", ".npy"))]
    if arrays and not _has_images(path, names):
        raise UsageError(
            f"{setting}={path} is a folder with {arrays[0]}, a file of images; set {setting}="
            f"{path / arrays[0]}"
        )
    return "folder"


def _kinds(path: Path, names: list[str]) -> list[str]:
    """The special kinds that a folder could be."""
    known = set(names)
    kinds = []
    if "cifar-10-batches-py" in known or "data_batch_1" in known:
        kinds.append("cifar10")
    if "cifar-100-python" in known or {"train", "test", "meta"} <= _files(path, known):
        kinds.append("cifar100")
    if mnist_folder(path) is not None:
        kinds.append("mnist")
    if "data.mdb" in known or any(n.endswith("_lmdb") for n in known):
        kinds.append("lsun")
    if "dataset_dict.json" in known or {"state.json", "dataset_info.json"} <= known:
        kinds.append("saved")
    if _is_latents(path, known):
        kinds.append("latents")
    if {"images", "vae-sd"} <= known and _is_latents(path / "vae-sd", {"dataset.json"}):
        raise UsageError(
            f"the data {path} are REPA's images and latents; set data.path={path / 'vae-sd'} for "
            f"the latents or data.path={path / 'images'} for the pixels"
        )
    if imagenet_base(path) is not None:
        kinds.append("imagenet")
    if kinds and not {"lsun"} & set(kinds):
        return kinds
    for suffix, kind in ((".parquet", "parquet"), (".tar", "webdataset")):
        if any(n.endswith(suffix) for n in _some_below(path, names)):
            kinds.append(kind)
    if kinds and any(_is_image(name) and not foreign(name) for name in names):
        kinds.append("folder")
    return kinds


def mnist_folder(path: Path) -> Path | None:
    """The folder of the IDX files: `path`, or one below as torchvision lays them. Raises UsageError
    where there are several."""
    places = [path, path / "raw", *sorted(path.glob("*/raw"))]
    found = [p for p in places if any(MNIST.fullmatch(name) for name in _names(p))]
    if len(found) > 1:
        names = " and ".join(str(p) for p in found[:2])
        raise UsageError(f"there are IDX files in {names}; set data.path to one of them")
    return found[0] if found else None


def beside(path: Path, kind: str) -> list[Path]:
    """Files that a data set is read from though they do not lie in `path`: the labels of an .npy,
    and those of ImageNet's validation images."""
    if kind == "npz" and path.suffix.lower() == ".npy":
        stems = [f"{path.stem}_labels", f"{path.stem}-labels", *_label_stems(path.stem)]
        places = [path.with_name(f"{stem}.npy") for stem in (*stems, "labels", "y")]
        return [place for place in places if place.is_file() and place != path][:1]
    if kind == "imagenet" and (base := imagenet_base(path)) is not None:
        places = [folder / SOLUTION for folder in (path, base, *list(base.parents)[:3])]
        return [place for place in places if place.is_file()][:1]
    return []


def _label_stems(stem: str) -> list[str]:
    """Names of the labels of images of this name: y_train of x_train, labels of images."""
    pairs = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"), ("image", "label"))
    pairs += (("imgs", "labels"), ("imgs", "lbls"), ("data", "labels"), ("samples", "labels"))
    found = [re.sub(rf"(?<![a-zA-Z]){a}(?![a-zA-Z])", b, stem) for a, b in pairs]
    return [other for other in found if other != stem]


def imagenet_base(path: Path) -> Path | None:
    """The folder with train/WNID, in `path` or where its archive unpacks to; None without one."""
    for inside in ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "ILSVRC2012", "imagenet"):
        train = path / inside / "train"
        first = [name for name in _names(train, 20) if not foreign(name)]
        if first and all(WNID.fullmatch(name) for name in first) and (train / first[0]).is_dir():
            return path / inside
    return None


def _is_latents(path: Path, names: set[str]) -> bool:
    if "dataset.json" not in names:
        return False
    return any(
        LATENT.fullmatch(leaf)
        for name in sorted(names)[:5]
        for leaf in (_names(path / name, 20) if "." not in name else [name])
    ) or any(LATENT.fullmatch(name) for name in _names(path / "00000", 20))


def _has_images(path: Path, names: list[str]) -> bool:
    return any(map(_is_image, names)) or any(
        (path / name).is_dir() for name in names if not foreign(name)
    )


def _some_below(path: Path, names: list[str]) -> list[str]:
    """Names in the folder, and in its first folders."""
    below = list(names)
    for name in [n for n in names if not foreign(n)][:20]:
        below += _names(path / name, 50)
    return [name for name in below if not foreign(name)]


def _files(path: Path, names: set[str]) -> set[str]:
    return {n for n in names & {"train", "test", "meta"} if (path / n).is_file()}


def _names(path: Path, most: int = LOOKED_AT) -> list[str]:
    """Names of the first entries of a folder, sorted; none where it is none."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in islice(entries, most))
    except (NotADirectoryError, FileNotFoundError):
        return []
