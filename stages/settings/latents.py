"""The autoencoder between pixels and latents: its settings, its files, and what these say of it.

Reads nothing but the small `config.json`, so that what does not fit is refused before any work.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import UsageError
from pipeline.stage import Place, Settings, unkeyed
from stages.encoders.weights import AUTOENCODER_FILES as WEIGHTS

CONFIG = "config.json"


class CodingOptions(Settings):
    """How images go through the autoencoder."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="in which the autoencoder computes; never float16, in which many decoders "
        "overflow",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="images in one pass")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the autoencoder runs")


class LatentOptions(CodingOptions):
    """The autoencoder in whose latents networks are trained, if there is one."""

    autoencoder: Place | None = unkeyed(
        None,
        description="folder of an AutoencoderKL as diffusers saves it (config.json and "
        "diffusion_pytorch_model.safetensors, or .bin): pixels are encoded before training and "
        "samples decoded before they are scored; its contents, not its place, enter keys; unset "
        "trains on data as they are",
    )
    flips: bool = Field(
        False,
        description="encode every training image mirrored too: of n images, image n + i is the "
        "mirrored image i, and training draws from all 2n, unless train.limit is at most n",
    )
    encode_shard: int = Field(
        20_000, ge=1, description="images of one file of latents, which one task encodes"
    )
    decode_shard: int = unkeyed(
        1_000, ge=1, description="samples that one task decodes; results do not depend on it"
    )


@dataclass(frozen=True)
class Geometry:
    """What an autoencoder's config says. channels: of images; latent_channels: of latents; factor:
    pixels of a side for one of a latent; widths: channels of its levels, the outermost first."""

    channels: int
    latent_channels: int
    factor: int
    widths: tuple[int, ...]
    layers: int

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images (C, H, W). ValueError for images that do not fit."""
        channels, *sides = shape
        if channels != self.channels:
            raise ValueError(
                f"the autoencoder reads images of {self.channels} channels, and these have "
                f"{channels}; set latents.autoencoder to one of such images"
            )
        if any(side % self.factor for side in sides):
            raise ValueError(
                f"the autoencoder divides sides by {self.factor}, which does not divide "
                f"{' x '.join(map(str, sides))}; set data.size to a multiple of {self.factor}"
            )
        return (self.latent_channels, *(side // self.factor for side in sides))


def autoencoder_files(place: str) -> list[Path]:
    """Weights and config in a folder. Raises UsageError where one of them is missing, which is
    before any work."""
    if importlib.util.find_spec("diffusers") is None:
        raise UsageError(
            "latents.autoencoder is read by diffusers, which is not installed: "
            "pip install 'diffusion-bench[latents]', or leave latents.autoencoder unset"
        )
    folder = Path(place)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG).is_file():
        missing = CONFIG if weights is not None else WEIGHTS[0]
        raise UsageError(
            f"the autoencoder's {missing} is not in {folder}: nothing is downloaded; place "
            f"{CONFIG} and {WEIGHTS[0]} there (of stabilityai/sd-vae-ft-ema, say, from "
            "huggingface.co), or set latents.autoencoder to the folder that holds them"
        )
    return [weights, folder / CONFIG]


def geometry(place: str) -> Geometry:
    """What the config in a folder says. Raises UsageError where it is none of an AutoencoderKL."""
    file = Path(place) / CONFIG
    config = _read(file, file.stat().st_mtime_ns)
    try:
        kind, widths = config.get("_class_name"), tuple(map(int, config["block_out_channels"]))
        if kind != "AutoencoderKL" or not widths:
            raise KeyError(kind)
        return Geometry(
            channels=int(config.get("in_channels", 3)),
            latent_channels=int(config.get("latent_channels", 4)),
            factor=2 ** (len(widths) - 1),
            widths=widths,
            layers=int(config.get("layers_per_block", 1)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"latents.autoencoder: {file} does not describe an AutoencoderKL of diffusers; give a "
            "folder that its save_pretrained wrote"
        ) from error


def known_geometry(place: str | None) -> Geometry | None:
    """The same where there is an autoencoder, and its files are there already."""
    if place is None or not (Path(place) / CONFIG).is_file():
        return None
    return geometry(place)


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Mapping[str, Any]:
    """A config, read again where its time of change is another."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"latents.autoencoder: {file} is not readable JSON ({error})") from error
