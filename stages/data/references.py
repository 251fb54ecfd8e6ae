"""Files with the statistics that published scores are taken against, told apart by what they hold.

An .npz of the ADM suite (mu, sigma, mu_s, sigma_s, arr_0), one of mu and sigma alone, EDM2's .pkl.
Nothing of a file is run: arrays of Python objects are refused, and a pickle may make dictionaries,
numbers and NumPy arrays only.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from stages.data.readers.mapped import FileArray, open_npz
from stages.networks import unpickling

INCEPTION, SPATIAL, DINO = 2048, 2023, 1024  # features of each kind

ADM, UNKNOWN, EDM2 = "adm", "unknown", "edm2"


@dataclass(frozen=True)
class Statistics:
    """mean (d,) and covariance (d, d), float64."""

    mean: np.ndarray
    cov: np.ndarray


@dataclass(frozen=True)
class ReferenceFile:
    """kind: "adm", which says how its Inception resizes; "unknown", mu and sigma of some Inception
    or of DINOv2; "edm2". images: (n, H, W, 3) uint8, mapped, of which precision and recall are
    taken; never of the mean. crop: of the images that it is of, where the file says so."""

    kind: str
    inception: Statistics | None = None
    spatial: Statistics | None = None
    dinov2: Statistics | None = None
    images: FileArray | None = None
    num_images: int | None = None
    crop: str = ""
    resizer: str = ""


def read(path: str | Path, setting: str = "evaluate.reference") -> ReferenceFile:
    """What a file holds.

    Raises UsageError, naming the setting, where it is absent, damaged, or no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"{setting}={path} does not exist; set it to an .npz or .pkl file")
    try:
        if zipfile.is_zipfile(path):
            return _of_npz(open_npz(path), path, setting)
        return _of_pickle(_plain(path), path, setting)
    except ValueError as error:
        raise UsageError(f"{setting}={path} cannot be read: {error}") from error


def _plain(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return unpickling.load(stream, unpickling.arrays())
    except unpickling.RefusedError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"it is neither an .npz nor a pickle of arrays: {error}") from error


def _of_npz(arrays: Mapping[str, FileArray], path: Path, setting: str) -> ReferenceFile:
    if "mu" not in arrays or "sigma" not in arrays:
        if "arr_0" in arrays:
            raise UsageError(
                f"{setting}={path} holds images alone (arr_0) and no mu and sigma; make a "
                "reference of them with `python -m pipeline reference`, or give the published one"
            )
        what = "features (reps)" if "reps" in arrays else f"{', '.join(sorted(arrays))}"
        raise UsageError(
            f"{setting}={path} holds {what}; a reference holds mu and sigma, of ADM's also mu_s, "
            "sigma_s and arr_0"
        )
    found = _statistics(arrays["mu"].array, arrays["sigma"].array, "mu, sigma")
    words = {"crop": str(arrays["crop"].array)} if "crop" in arrays else {}
    if "num_images" in arrays:
        words["num_images"] = int(arrays["num_images"].array)
    if "mu_s" in arrays:
        if "sigma_s" not in arrays:
            raise ValueError("it has mu_s and no sigma_s")
        spatial = _statistics(arrays["mu_s"].array, arrays["sigma_s"].array, "mu_s, sigma_s")
        for given, size, name in ((found, INCEPTION, "mu"), (spatial, SPATIAL, "mu_s")):
            if len(given.mean) != size:
                raise ValueError(f"{name} has {len(given.mean)} numbers, and ADM's have {size}")
        images = arrays.get("arr_0")
        if images is not None and (images.dtype != np.uint8 or len(images.shape) != 4):
            raise ValueError(f"arr_0 is {images.dtype} of shape {images.shape}, not uint8 images")
        return ReferenceFile(ADM, found, spatial, images=images, resizer="tf", **words)
    kinds = {INCEPTION: "inception", DINO: "dinov2"}
    if (size := len(found.mean)) not in kinds:
        raise ValueError(f"mu has {size} numbers, and Inception's have 2048, DINOv2-L's 1024")
    return ReferenceFile(UNKNOWN, **{kinds[size]: found}, **words)


def _of_pickle(held: Any, path: Path, setting: str) -> ReferenceFile:
    if not isinstance(held, dict) or not {"fid", "fd_dinov2"} & held.keys():
        raise UsageError(
            f"{setting}={path} is a pickle without fid and fd_dinov2, which EDM2's references hold"
        )
    found = {}
    for key, name, size in (("fid", "inception", INCEPTION), ("fd_dinov2", "dinov2", DINO)):
        if key in held:
            part = held[key]
            if not isinstance(part, dict) or not {"mu", "sigma"} <= part.keys():
                raise ValueError(f"its {key} lacks mu or sigma")
            found[name] = _statistics(part["mu"], part["sigma"], key)
            if len(found[name].mean) != size:
                raise ValueError(f"its {key} has {len(found[name].mean)} numbers, not {size}")
    count = held.get("num_images")
    return ReferenceFile(
        EDM2, **found, num_images=None if count is None else int(count), resizer="tf"
    )


def _statistics(mean: Any, cov: Any, what: str) -> Statistics:
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean),) * 2:
        raise ValueError(f"{what} have shapes {mean.shape} and {cov.shape}, not (d,) and (d, d)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{what} hold NaN or infinity")
    return Statistics(mean, cov)
