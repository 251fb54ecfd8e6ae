"""What settings say of a data set: which it is, where it lies, and how much of it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import UsageError
from pipeline.stage import Place, Settings, unkeyed
from stages.data.readers.tree import may_be_images
from stages.data.recognised import beside, recognised
from stages.methods import table

AUTO = "auto"

OWN_SIZES = {
    "digits": 8,
    "mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "photographs": 16,
    "glyphs": 32,
}

DIGITS = 1797  # images, of which HELD_OUT are held out unless settings say otherwise

HELD_OUT = 297

OWN_SPLITS = frozenset({"mnist", "cifar10", "cifar100", "photographs", "glyphs"})

OWN_CHANNELS = {
    "digits": 1,
    "mnist": 1,
    "cifar10": 3,
    "cifar100": 3,
    "photographs": 3,
    "glyphs": 1,
}

NEED_NONE = frozenset({"digits", "photographs", "glyphs"})

# What is read from a file alone, and from a folder or a file; all others are folders.
FILES = frozenset({"npz", "zip"})

EITHER = frozenset({"parquet", "webdataset", "cifar10", "cifar100"})

# What a setting is for, where it is not for all.
ONLY_OF = {
    "grey": ({"photographs"}, "only photographs are made grey"),
    "axes": ({"npz"}, "only arrays have axes"),
    "range": ({"npz"}, "only arrays have a range of values"),
    "label": ({"parquet", "saved"}, "only tables have columns"),
    "latents": ({"latents"}, "only folders of latents are of a kind"),
}

LARGEST_PATCH = 160  # the held-out quarter of a photograph's width


class PrepareSettings(Settings):
    """Which data, of what size, and how much of it. The split does not depend on a run's seed."""

    dataset: table.choice("data set", {AUTO: "", **table.DATASETS}) = Field(
        AUTO,
        description="auto (what lies at data.path; without it digits), digits (scikit-learn's, no "
        "download), photographs (patches of scikit-learn's two), glyphs (letters and digits of "
        "matplotlib's fonts, drawn askew, as many as data.limit says), mnist (IDX files), cifar10, "
        "cifar100 (python version), folder (images, in class folders or not, with a split or "
        "not), imagenet (ILSVRC's tree), zip (of images, EDM's too), npz (arrays, .npy too), "
        "parquet and saved (Hugging Face), webdataset (tars), lsun (LMDB) or latents "
        "(img-mean-std-*.npy of EDM2 and REPA)",
    )
    path: Place | None = unkeyed(
        None,
        description="file or folder of the data; digits, photographs and glyphs need none; its "
        "contents, not its place, enter keys",
    )
    size: int | None = Field(
        None,
        ge=4,
        le=4096,
        description="side in pixels to resize to; unset keeps the data's own; photographs: side of "
        "the patches, unset is 16",
    )
    crop: Literal["adm", "resize", "lanczos"] | None = Field(
        None,
        description="how images are brought to size: adm (guided diffusion's, which SiT, DiT, REPA "
        "and EDM2 use), lanczos (EDM's centre square) or resize (one bicubic step, then the "
        "centre); unset is adm for imagenet, resize for others",
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
        "digits and for others a sixth, at most 10,000; a million images and more, and imagenet "
        "without val/, ask for it",
    )
    skip_damaged: int = unkeyed(
        0,
        ge=0,
        description="how many damaged files may be left out; each is named in the log, and more of "
        "them end the run",
    )
    mapped_gib: float = Field(
        1.0,
        ge=0,
        description="8-bit images above this size as arrays are kept as encoded files, packed, and "
        "decoded when they are read; smaller sets, and all of floating-point numbers, as one "
        "mapped array",
    )
    memory_gib: float = unkeyed(
        1.0,
        gt=0,
        description="what all processes of the conversion may take beside what they import, 64 MiB "
        "each: it says how many run at once",
    )
    follow_links: bool = Field(
        True, description="whether links that leave the folder are followed, or refused"
    )
    grey: bool = Field(False, description="photographs: the mean of the three colours")
    latent: bool = Field(
        False,
        description="npz: the images are latents of an autoencoder, not pixels; any number of "
        "channels, any finite values",
    )
    axes: Literal["nhwc", "nchw"] | None = Field(
        None, description="npz: the order of axes where the shape alone does not tell"
    )
    range: Literal["signed", "unit", "bytes"] | None = Field(
        None,
        description="npz: what the values span where they do not tell: signed (-1 to 1), unit (0 "
        "to 1) or bytes (0 to 255)",
    )
    label: str | None = Field(
        None, description="parquet, saved: the column of the labels where there are several"
    )
    latents: Literal["edm2", "repa"] | None = Field(
        None, description="latents: whose they are where the numbers do not tell"
    )

    @model_validator(mode="before")
    @classmethod
    def _found_out(cls, given: Any) -> Any:
        """What auto stands for: the contents of the path, if it is there, else digits."""
        if not isinstance(given, dict) or given.get("dataset", AUTO) != AUTO:
            return given
        path = given.get("path")
        if path is None:
            return given | {"dataset": "digits"}
        place = Path(str(path)).expanduser()
        try:
            return given | {"dataset": recognised(place) if place.exists() else AUTO}
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareSettings:
        self._check_latent()
        for name, (kinds, why) in ONLY_OF.items():
            value = getattr(self, name)
            if value not in (None, False) and self.dataset not in {*kinds, AUTO}:
                shown = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(
                    f"{name}={shown} and dataset={self.dataset} contradict each other: {why}; "
                    f"leave {name} unset"
                )
        if self.dataset == "photographs" and self.image_size > LARGEST_PATCH:
            raise ValueError(
                f"size={self.size} and dataset=photographs contradict each other: patches wider "
                f"than the held-out quarter do not fit; set size to at most {LARGEST_PATCH}"
            )
        if self.path is not None and self.dataset in NEED_NONE:
            raise ValueError(
                f"path={self.path} and dataset={self.dataset} contradict each other: "
                f"{self.dataset} reads no file; leave path unset or choose another dataset, such "
                "as dataset=auto"
            )
        if self.path is None and self.dataset not in NEED_NONE:
            raise ValueError(f"dataset={self.dataset} needs path: set data.path to where it is")
        if self.held_out is not None and self.dataset in OWN_SPLITS:
            raise ValueError(
                f"held_out={self.held_out} and dataset={self.dataset} contradict each other: "
                f"{self.dataset} brings its own test images; leave held_out unset"
            )
        if self.crop is not None and self.size is None:
            raise ValueError(f"crop={self.crop} needs size: set data.size, or leave crop unset")
        return self

    def _check_latent(self) -> None:
        latent = self.holds_latents
        if self.latent and self.dataset not in ("npz", "latents", AUTO):
            other = f"dataset={self.dataset}"
        elif latent and self.size is not None:
            other = f"size={self.size}"
        else:
            return
        raise ValueError(
            f"latent=true and {other} contradict each other: latents come as npz and are not "
            "resized; leave latent or the other unset"
        )

    @property
    def holds_latents(self) -> bool:
        """Whether the images are latents, as far as settings tell."""
        return self.latent or self.dataset == "latents"

    @property
    def cropping(self) -> str:
        """How images are brought to size."""
        return self.crop or ("adm" if self.dataset == "imagenet" else "resize")

    @property
    def title(self) -> str:
        """What the data are called: data set, size, and the crop where it is not the usual one."""
        size = "" if self.size is None else str(self.size)
        crop = "" if self.size is None or self.cropping == "resize" else f"-{self.cropping}"
        return f"{self.dataset}{size}{crop}"

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


def readers_of(settings: PrepareSettings) -> list[str]:
    """The reader's place in the code; UsageError where the data are absent."""
    if settings.dataset == AUTO:
        sources_of(settings)
    return [table.DATASETS[settings.dataset]]


def sources_of(settings: PrepareSettings) -> list[Path]:
    """The file or folder to read, if any; UsageError where it is absent, empty or of the other
    kind, which is before any work."""
    if settings.path is None:
        return []
    path = Path(settings.path)
    if not path.exists() or settings.dataset == AUTO:
        raise UsageError(
            f"the data {path} do not exist; set data.path (of a teacher's own images: "
            "teach.pixels.path) to where they are"
        )
    if settings.dataset not in EITHER and (settings.dataset in FILES) != path.is_file():
        here, kind = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise UsageError(
            f"the data {path} are a {here}, and dataset={settings.dataset} is read from a {kind}; "
            "set data.path to it, or choose another data.dataset"
        )
    if settings.dataset == "folder" and not may_be_images(path, most=1):
        raise UsageError(
            f"the folder {path} holds no images; set data.path (of a teacher's own images: "
            "teach.pixels.path) to one that does"
        )
    return [path, *beside(path, settings.dataset)]
