"""What settings say of a data set: which it is, where it lies, and how much of it is taken."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from pipeline.errors import UsageError
from pipeline.stage import Place, Settings, unkeyed
from stages.methods import table

OWN_SIZES = {"digits": 8, "mnist": 28, "cifar10": 32, "photographs": 16}

DIGITS = 1797  # images, of which HELD_OUT are held out unless settings say otherwise

HELD_OUT = 297

OWN_SPLITS = frozenset({"mnist", "cifar10", "photographs"})

OWN_CHANNELS = {"digits": 1, "mnist": 1, "cifar10": 3, "photographs": 3}

NEED_PATH = frozenset({"mnist", "cifar10", "folder", "npz"})

LARGEST_PATCH = 160  # the held-out quarter of a photograph's width


class PrepareSettings(Settings):
    """Which data, of what size, and how much of it. The split does not depend on a run's seed."""

    dataset: table.choice("data set", table.DATASETS) = Field(
        "digits",
        description="digits (scikit-learn's, no download), photographs (patches of scikit-learn's "
        "two), mnist (IDX files), cifar10 (python version), folder (class folders of images) or "
        "npz",
    )
    path: Place | None = unkeyed(
        None,
        description="file or folder of the data; digits and photographs need none; its contents, "
        "not its place, enter keys",
    )
    size: int | None = Field(
        None,
        ge=4,
        le=4096,
        description="side in pixels to resize to; unset keeps the data's own; photographs: side of "
        "the patches, unset is 16",
    )
    limit: int | None = Field(
        None, ge=2, description="training images to keep, the first of the split; unset keeps all"
    )
    limit_held_out: int | None = Field(
        None, ge=2, description="held-out images to keep; unset keeps all"
    )
    held_out: int | None = Field(
        None,
        ge=1,
        description="images to hold out of data without a split of its own; unset is 297 for "
        "digits and a sixth for others",
    )
    grey: bool = Field(False, description="photographs: the mean of the three colours")
    latent: bool = Field(
        False,
        description="npz: the images are latents of an autoencoder, not pixels; any number of "
        "channels, any finite values",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareSettings:
        if self.latent and (self.dataset != "npz" or self.size is not None):
            other = f"size={self.size}" if self.dataset == "npz" else f"dataset={self.dataset}"
            raise ValueError(
                f"latent=true and {other} contradict each other: latents come as npz and are not "
                "resized; leave latent or the other unset"
            )
        if self.grey and self.dataset != "photographs":
            raise ValueError(
                f"grey=true and dataset={self.dataset} contradict each other: only photographs "
                "are made grey; leave grey unset"
            )
        if self.dataset == "photographs" and self.image_size > LARGEST_PATCH:
            raise ValueError(
                f"size={self.size} and dataset=photographs contradict each other: patches wider "
                f"than the held-out quarter do not fit; set size to at most {LARGEST_PATCH}"
            )
        if self.path is not None and self.dataset not in NEED_PATH:
            raise ValueError(
                f"path={self.path} and dataset={self.dataset} contradict each other: "
                f"{self.dataset} reads no file; leave path unset or choose another dataset"
            )
        if self.path is None and self.dataset in NEED_PATH:
            raise ValueError(f"dataset={self.dataset} needs path: set data.path to where it is")
        if self.held_out is not None and self.dataset in OWN_SPLITS:
            raise ValueError(
                f"held_out={self.held_out} and dataset={self.dataset} contradict each other: "
                f"{self.dataset} brings its own test images; leave held_out unset"
            )
        return self

    @property
    def image_size(self) -> int | None:
        """The side of the images, where it is known before they are read."""
        return self.size or OWN_SIZES.get(self.dataset)

    @property
    def image_channels(self) -> int | None:
        """The channels of the images, where they are known before they are read."""
        return 1 if self.grey else OWN_CHANNELS.get(self.dataset)

    @property
    def most_train(self) -> int | None:
        """The most training images that there can be, where it is known before they are read."""
        bounds = [] if self.limit is None else [self.limit]
        if self.dataset == "digits":
            bounds.append(DIGITS - (self.held_out or HELD_OUT))
        return min(bounds, default=None)


def sources_of(settings: PrepareSettings) -> list[Path]:
    """The file or folder to read, if any; UsageError where it is absent or of the other kind, which
    is before any work."""
    if settings.path is None:
        return []
    path = Path(settings.path)
    if not path.exists():
        raise UsageError(
            f"the data {path} do not exist; set data.path (of a teacher's own images: "
            "teach.pixels.path) to where they are"
        )
    if (settings.dataset == "npz") != path.is_file():
        here, kind = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise UsageError(
            f"the data {path} are a {here}, and dataset={settings.dataset} is read from a {kind}; "
            "set data.path to it, or choose another data.dataset"
        )
    return [path]
