"""Folders of one .npy a latent, mean and std, with a dataset.json: EDM2's `img-mean-std-*` and
REPA's `vae-sd`. Their files are the same; the first channel's values tell what was encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.fingerprint import foreign
from stages.data.readers.labels import of_dataset_json
from stages.data.readers.names import Names
from stages.data.readers.source import (
    LatentFacts,
    Part,
    Source,
    number_held_out,
    required,
    split,
)
from stages.data.readers.tree import Found, by_parts, files_below

LOOKED_AT = 256  # latents whose first channel tells the kind
SCALING = 0.18215
# Raw latents of pixels in [0, 1], as EDM2's encoder takes them (Karras et al. 2024).
EDM2_MEAN, EDM2_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
FACTS = {
    "edm2": LatentFacts(
        "stabilityai/sd-vae-ft-mse",
        "[0, 1]",
        tuple(0.5 / std for std in EDM2_STD),
        EDM2_MEAN,
    ),
    "repa": LatentFacts("stabilityai/sd-vae-ft-mse", "[-1, 1]", SCALING, 0.0),
}


@dataclass(frozen=True)
class LatentFiles:
    """Moments of latents, a file each: (2C, h, w) floats, means and then standard deviations."""

    root: str
    names: Names
    shape: tuple[int, int, int]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(k, 2, C, h, w): mean, std. Raises ValueError for a file of another shape or damaged."""
        channels, height, width = self.shape
        out = np.empty((len(indices), 2, *self.shape), self.dtype)
        for row, index in enumerate(indices):
            values = _load(Path(self.root) / self.names[index])
            if values.shape != (2 * channels, height, width):
                raise ValueError(
                    f"{self.root}/{self.names[index]} has shape {values.shape}; the others have "
                    f"{(2 * channels, height, width)}"
                )
            out[row] = values.reshape(2, *self.shape)
        if not np.isfinite(out).all() or (out[:, 1] < 0).any():
            bad = ~np.isfinite(out).reshape(len(out), -1).all(1)
            bad |= (out[:, 1] < 0).reshape(len(out), -1).any(1)
            name = self.names[int(indices[int(np.flatnonzero(bad)[0])])]
            raise ValueError(
                f"{self.root}/{name} holds NaN, or negative standard deviations: its second half "
                "must be standard deviations (not logarithms of variances)"
            )
        return out


def read(settings) -> Source:
    """`settings.path`: the folder with dataset.json. `settings.latents` says whose they are where
    the numbers do not."""
    root = required(settings.path, "latents", "folder of img-mean-std-*.npy and dataset.json")
    paths = sorted(
        (
            path
            for path in files_below(root, settings.follow_links, Found())
            if path.endswith(".npy") and not foreign(path.rpartition("/")[2])
        ),
        key=by_parts,
    )
    if not paths or not (root / "dataset.json").is_file():
        raise ValueError(
            f"{root} has {len(paths)} .npy files and must have some beside a dataset.json; set "
            "data.path to the folder (vae-sd of REPA's)"
        )
    first = _load(root / paths[0])
    if first.ndim != 3 or len(first) % 2 or first.dtype.kind != "f":
        raise ValueError(
            f"{root / paths[0]} has shape {first.shape} and type {first.dtype}; give (2C, h, w) "
            "floats, means and then standard deviations"
        )
    shape = (len(first) // 2, *first.shape[1:])
    images = LatentFiles(str(root), Names.of(paths), shape)
    labels, names = of_dataset_json((root / "dataset.json").read_bytes(), paths)
    kind = settings.latents or _kind(images, root)
    pool = Part(images, labels)
    parts = split(pool, number_held_out(settings, len(pool)))
    said = f"latents of {FACTS[kind].autoencoder} of pixels in {FACTS[kind].pixel_range}"
    return Source(*parts, names, said=said, latents=FACTS[kind])


def _kind(images: LatentFiles, root: Path) -> str:
    """Whose latents these are, by mean and std of the first channel of some."""
    which = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)
    values = images.take(which)[:, 0, 0].astype(np.float64)
    mean, std = values.mean(), values.std()
    if 3.5 < std < 7.5 and abs(mean) < 2.5 and images.shape[0] == 4:
        return "repa"
    if 3.0 < std < 5.5 and 4.5 < mean < 7.1 and images.shape[0] == 4:
        return "edm2"
    raise ValueError(
        f"the first channel of the latents in {root} has mean {mean:.3g} and std {std:.3g}, which "
        "tells neither EDM2's (of pixels in [0, 1]) nor REPA's (in [-1, 1]); set "
        "data.latents=edm2 or data.latents=repa"
    )


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({error}); copy it again") from None
