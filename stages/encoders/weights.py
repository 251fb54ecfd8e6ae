"""Weight files that people place by hand: names, origins, and where they are looked for.

Imports nothing heavy, so that a missing file is found before any work.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.errors import nearest
from pipeline.stage import Weights

__all__ = ["CATALOG", "FOLDER", "KINDS", "WEIGHT_FILES", "MissingWeightsError", "weight_file"]

# Where files are looked for when a setting names no other place.
FOLDER = Path("weights")

# Any one of an extractor's files serves; they hold the same weights.
WEIGHT_FILES: dict[str, tuple[str, ...]] = {
    "inception": ("inception-2015-12-05.pt",),
    "dinov2-small": ("dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2.safetensors"),
    "dinov2-base": ("dinov2_vitb14_pretrain.pth", "vit_base_patch14_dinov2.safetensors"),
    "dinov2-large": ("dinov2_vitl14_pretrain.pth", "vit_large_patch14_dinov2.safetensors"),
}
ORIGINS = {
    "inception": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/",
    "dinov2-small": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/",
    "dinov2-base": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/",
    "dinov2-large": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/",
}
KINDS = ("embedded", *WEIGHT_FILES)


class MissingWeightsError(FileNotFoundError):
    """A weight file has to be placed by hand; the message says which, where and how."""


def weight_file(
    kind: str, weights: str | Path | None = None, setting: str = "extractor.weights"
) -> Path:
    """The weight file of an extractor. Reads nothing.

    weights: the file itself, under any name, or the folder that holds it under one of its own;
    None is the folder `weights` of the current directory. ``setting`` is how people set it.

    Raises ValueError for an unknown kind (with the nearest known one), MissingWeightsError where
    the file is absent.
    """
    if kind not in WEIGHT_FILES:
        known = f"{nearest(kind, KINDS)} (known: {', '.join(KINDS)})"
        raise ValueError(f"unknown extractor {kind!r}{known}")
    place = FOLDER if weights is None else Path(weights).expanduser()
    if place.is_file():
        return place
    for name in WEIGHT_FILES[kind]:
        if (place / name).is_file():
            return place / name
    raise MissingWeightsError(
        f"{kind} needs the file {' or '.join(WEIGHT_FILES[kind])}, which is not there: place it in "
        f"{place.absolute()}, or set {setting} to the file or to its folder"
    )


def _find(kind: str) -> Path | None:
    try:
        return weight_file(kind)
    except MissingWeightsError:
        return None


AUTOENCODER = "sd-vae-ft-ema"  # the folder that presets name

# As diffusers' save_pretrained names them; either serves.
AUTOENCODER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def _find_autoencoder() -> Path | None:
    files = (FOLDER / AUTOENCODER / name for name in AUTOENCODER_FILES)
    return next((file for file in files if file.is_file()), None)


CATALOG = (
    *(
        Weights(
            file=" or ".join(names),
            purpose=f"extractor.kind={kind}",
            remedy=f": get {names[0]} from {ORIGINS[kind]}, place it in {FOLDER}/, or set "
            "extractor.weights to it",
            find=partial(_find, kind),
        )
        for kind, names in WEIGHT_FILES.items()
    ),
    Weights(
        file=f"{AUTOENCODER}/{AUTOENCODER_FILES[0]}",
        purpose="latents.autoencoder",
        remedy=f": get it and config.json from https://huggingface.co/stabilityai/{AUTOENCODER}, "
        f"place both in {FOLDER / AUTOENCODER}/, or set latents.autoencoder to their folder",
        find=_find_autoencoder,
    ),
)
