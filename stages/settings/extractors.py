"""Settings of the networks whose features score samples, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.errors import UsageError, raised_as
from pipeline.stage import Settings, unkeyed
from stages.artifacts.extractor import EMBEDDED
from stages.encoders.weights import MissingWeightsError, weight_file
from stages.methods import table


class NetworkOptions(Settings):
    """Which network gives the features, and where it runs."""

    kind: table.choice("extractor", table.EXTRACTORS) = Field(
        EMBEDDED,
        description="embedded (a small classifier trained on the training labels, no download), "
        "inception or dinov2-small, -base, -large (weights placed by hand)",
    )
    weights: str | None = unkeyed(
        None,
        description="weight file of an extractor that is not embedded, or the folder that holds "
        "it; unset is the folder weights; its contents, not its place, enter keys",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where features are computed")

    @model_validator(mode="after")
    def _fits_together(self) -> NetworkOptions:
        if self.kind == EMBEDDED and self.weights is not None:
            raise ValueError(
                f"weights={self.weights} and kind=embedded contradict each other: the embedded "
                "extractor is trained, not loaded; leave weights unset, or choose the kind that "
                "the file is of"
            )
        return self


class TrainingOptions(Settings):
    """How the embedded extractor is trained."""

    epochs: int = Field(8, ge=1, le=1000, description="embedded: passes over the training images")
    train_batch_size: int = Field(64, ge=2, le=65536, description="embedded: images a step")
    lr: float = Field(4e-3, gt=0, le=1, description="embedded: peak learning rate of AdamW")
    shift_pixels: int = Field(
        0, ge=0, le=32, description="embedded: random shift while training, in pixels"
    )
    min_accuracy: float = Field(
        0.98,
        ge=0,
        le=1,
        description="embedded: share of held-out images it must classify, or it is refused",
    )


class PassOptions(Settings):
    """How images go through the extractor."""

    batch_size: int = Field(
        128, ge=1, le=65536, description="images in one pass; fewer of large ones on a CPU"
    )
    nearest_among: int | None = Field(
        None,
        ge=0,
        description="the first so many training images are compared with every image, pixel by "
        "pixel, for the memorisation ratio and the nearest ones; 0 leaves both out; unset is all "
        "where that takes less than about an hour of a core, or of a GPU where device=cuda, and "
        "none where it takes longer",
    )
    shard_size: int = unkeyed(
        5000, ge=1, description="images of one task; rounded up to whole batches"
    )
    readers: int | None = unkeyed(
        None,
        ge=0,
        le=256,
        description="threads of each task that read and resize the next images meanwhile; 0 reads "
        "between passes; unset is that on a CPU, and on a GPU one for each core, shared by the "
        "machine's GPUs, 16 at most",
    )


class ExtractorOptions(NetworkOptions, PassOptions, TrainingOptions):
    """The extractor and its features."""


def weight_files(settings: NetworkOptions) -> list[Path]:
    """The files outside the store that settings name.

    Raises UsageError where they are missing, which is before any work.
    """
    if settings.kind == EMBEDDED:
        return []
    with raised_as(UsageError, MissingWeightsError):
        return [weight_file(settings.kind, settings.weights)]
