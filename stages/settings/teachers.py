"""The settings of the teacher that representations are aligned with, what they ask of images and
files, and how much its features take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import UsageError, raised_as
from pipeline.stage import Settings, unkeyed
from stages.artifacts.teacher import ONLINE, STORED
from stages.encoders.weights import MissingWeightsError, weight_file
from stages.methods import table

EMBEDDED, LABELS = "embedded", "labels"
DINO_GRID = (16, 16)  # patches of 14 pixels on images resized to 224
DINO_WIDTHS = {"dinov2-small": 384, "dinov2-base": 768, "dinov2-large": 1024}
STORED_BELOW = 20e9  # bytes of features, unless settings say otherwise
BYTES = {"float32": 4, "float16": 2}


class TeachOptions(Settings):
    """Which teacher, and how its features are computed."""

    kind: table.choice("teacher", table.TEACHERS) = Field(
        EMBEDDED,
        description="embedded (a small ViT trained on the training images, no download; see "
        "objective) or dinov2-small, -base, -large (weights placed by hand)",
    )
    mode: Literal["stored", "online"] | None = Field(
        None,
        description="stored (features of all training images are computed once and kept) or "
        "online (the teacher looks at the images of every batch while a network trains); unset is "
        "stored where features take less than 20 GB",
    )
    weights: str | None = unkeyed(
        None,
        description="weight file of a teacher that is not embedded, or the folder that holds it; "
        "unset is the folder weights; its contents, not its place, enter keys",
    )
    interpolate: bool = Field(
        False,
        description="resample the teacher's features to the trained network's patch grid where "
        "the two differ; unset refuses such a teacher",
    )
    patch: int | None = Field(
        None, ge=1, le=64, description="embedded: side of a patch in pixels; unset is train's"
    )
    width: int = Field(64, ge=8, le=8192, description="embedded: features of a token")
    depth: int = Field(3, ge=1, le=200, description="embedded: blocks")
    heads: int = Field(4, ge=1, le=128, description="embedded: attention heads")
    steps: int = Field(400, ge=1, le=10**7, description="embedded: optimizer steps")
    train_batch_size: int = Field(128, ge=2, le=65536, description="embedded: images a step")
    lr: float = Field(1.5e-3, gt=0, le=1, description="embedded: peak learning rate, then a cosine")
    seed: int | None = Field(
        None,
        ge=0,
        description="embedded: of its weights, order and views; unset is the run's seed. What is "
        "measured of networks that align with it moves with the teacher",
    )
    temperature: float = Field(0.2, gt=0, le=100, description="embedded: of SimCLR's loss")
    objective: Literal["simclr", "labels"] = Field(
        "simclr",
        description="embedded: what it learns from: views of the same image that find each other, "
        "or the classes",
    )
    stem: int = Field(
        0,
        ge=0,
        le=16,
        description="embedded: 3x3 convolutions before its patches; some make it learn in fewer "
        "steps",
    )
    padding: Literal["black", "border", "reflection"] = Field(
        "black", description="embedded: what comes into its views from outside an image"
    )
    jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="embedded: how far its views differ in contrast, brightness and sign; above 0 "
        "where grey levels alone tell images apart",
    )
    batch_size: int = Field(128, ge=1, le=65536, description="images in one pass")
    precision: Literal["float32", "float16"] = Field(
        "float32", description="of stored features; float16 halves their size"
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="in which the teacher computes, and the embedded one is trained"
    )
    compile: bool = Field(
        False, description="embedded: compile the network by its blocks (worth it on a GPU)"
    )
    deterministic: bool = Field(
        False,
        description="on a GPU: only kernels that add up in a fixed order, so that the embedded "
        "one's training and stored features repeat bit for bit; slower",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the teacher runs; online it then runs where the network trains"
    )
    readers: int | None = unkeyed(
        None,
        ge=0,
        le=256,
        description="threads that read the next images meanwhile; 0 reads between passes; unset is "
        "that on a CPU for small sets of plain arrays, else one for each core, at most 8",
    )
    probe_images: int = Field(
        5000, ge=10, description="training and held-out images of the linear probe, at most"
    )
    min_probe: float = Field(
        0.9, ge=0, le=1, description="held-out accuracy that a linear probe must reach"
    )
    min_gain: float = Field(
        0.1,
        ge=-1,
        le=1,
        description="by how much the probe must be above that of the same network untrained; where "
        "that leaves less, by half of what it leaves",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TeachOptions:
        if self.kind != EMBEDDED and self.objective == LABELS:
            raise ValueError(
                f"objective={self.objective} and kind={self.kind} contradict each other: only the "
                "embedded teacher is trained; leave objective unset"
            )
        if self.kind == EMBEDDED and self.weights is not None:
            raise ValueError(
                f"weights={self.weights} and kind=embedded contradict each other: the embedded "
                "teacher is trained, not loaded; leave weights unset, or choose the kind that the "
                "file is of"
            )
        if self.kind != EMBEDDED and self.patch is not None:
            raise ValueError(
                f"patch={self.patch} and kind={self.kind} contradict each other: only the "
                "embedded teacher's patches can be chosen; leave patch unset"
            )
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not divisible by heads={self.heads}; set width to "
                f"{self.width // self.heads * self.heads or self.heads}, say"
            )
        return self


class TeachSettings(TeachOptions):
    """The stage's settings."""

    student_patch: int = Field(ge=1, le=64, description="side of the trained network's patches")
    seed: int = Field(0, ge=0, description="of the embedded one's weights, order and views")

    @property
    def features(self) -> int:
        """How many features a token has."""
        return DINO_WIDTHS.get(self.kind, self.width)

    @property
    def own_patch(self) -> int:
        """Side of the embedded teacher's patches, in pixels."""
        return self.patch or self.student_patch

    @property
    def repeats_on_gpu(self) -> bool:
        """Whether kernels are to be chosen so that it repeats; on a CPU it does."""
        return self.deterministic and self.device == "cuda"

    def keyed(self) -> dict[str, Any]:
        """As the base's; of a teacher that is not embedded, what trains the embedded one left
        out."""
        inherited = super().keyed()
        if not self.repeats_on_gpu:
            del inherited["deterministic"]
        # The key from before there was the choice.
        before = {"compile": False, "padding": "black", "jitter": 0.0}
        before |= {"objective": "simclr", "stem": 0}
        inherited = {k: v for k, v in inherited.items() if k not in before or v != before[k]}
        if self.objective == LABELS:
            del inherited["temperature"]
        if self.kind == EMBEDDED:
            return inherited
        trained = {
            *before,
            "patch",
            "width",
            "depth",
            "heads",
            "steps",
            "train_batch_size",
            "lr",
            "seed",
        }
        return {k: v for k, v in inherited.items() if k not in trained | {"temperature"}}


def check_grids(
    options: TeachOptions, image_size: int | None, patch: int, shown_size: int | None = None
) -> None:
    """Raise ValueError where the teacher's grid is known not to be the network's, and is not to be
    resampled. image_size: side of the images, None while unknown. patch: the network's. shown_size:
    side of what the teacher sees, where it is another."""
    if options.interpolate or image_size is None:
        return
    own = (shown_size or image_size) // (options.patch or patch)
    teachers = (own, own) if options.kind == EMBEDDED else DINO_GRID
    ours = (image_size // patch, image_size // patch)
    if teachers != ours:
        raise ValueError(mismatch(teachers, ours))


def mismatch(teachers: tuple[int, int], ours: tuple[int, int]) -> str:
    """What to say of two grids, (rows, columns) of patches, that are not one."""
    return (
        f"the teacher's grid of {teachers[0]}x{teachers[1]} patches is not the network's of "
        f"{ours[0]}x{ours[1]}; set teach.interpolate=true to resample it, or change teach.patch or "
        "train.network.patch"
    )


def weight_files(settings: TeachOptions) -> list[Path]:
    """The files outside the store that settings name.

    Raises UsageError where they are missing, which is before any work.
    """
    if settings.kind == EMBEDDED:
        return []
    with raised_as(UsageError, MissingWeightsError):
        return [weight_file(settings.kind, settings.weights, "teach.weights")]


def feature_bytes(settings: TeachSettings, num_images: int, grid: tuple[int, int]) -> int:
    """What the features of so many images take when they are stored."""
    return num_images * (1 + grid[0] * grid[1]) * settings.features * BYTES[settings.precision]


def mode_of(settings: TeachSettings, num_bytes: int) -> str:
    """The mode that settings name, or that goes with features of so many bytes."""
    return settings.mode or (STORED if num_bytes < STORED_BELOW else ONLINE)
