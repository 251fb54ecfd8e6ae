"""What ICR's recipe and its part of the recipe full can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from pipeline.stage import Settings
from stages.scoring import evaluate
from stages.settings.networks import NetworkSettings
from stages.settings.sigmas import check_sigmas
from stages.training.train import TrainOptions

FIRST_CHECKPOINT = 25

UNET = TrainOptions(
    method="edm",
    network=NetworkSettings(kind="unet", width=32),
    conditional=False,
    label_dropout=0.0,
    lr=1e-3,
    betas=(0.9, 0.999),
    warmup_steps=20,
    batch_size=64,
    steps=1333,
    ema=0.99,
    save_every=100,
)


class ICROptions(Settings):
    """The two trainings that are scanned, and what is measured beside."""

    in_full: bool = Field(True, description="recipe full: train both U-Nets and scan them")
    num_seeds: int = Field(
        3,
        ge=0,
        le=100,
        description="recipe icr: seeds of both trainings, counted from the run's own; 0 trains "
        "nothing",
    )
    paths: tuple[str, ...] = Field(
        (),
        description="recipe icr: further networks trained elsewhere to scan too, of formats that "
        "are recognised; networks.path is one in place of trainings",
    )
    train: TrainOptions = Field(
        UNET,
        description="of both U-Nets; where it runs (device, workers) is train's. Unset, "
        "checkpoints are at 25 and on by factors of the root of 2",
    )
    full_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="recipe full: the checkpoints, the last of which ends the trainings in place "
        "of train.steps; unset is as in recipe icr",
    )
    limited: int = Field(64, ge=2, description="training images of the limited run, the first ones")
    nfe: int = Field(12, ge=1, le=10_000, description="evaluations of samples, DPM-Solver++ 2M")
    num_samples: int = Field(
        256, ge=evaluate.FEWEST, le=10**7, description="samples of a checkpoint, which are scored"
    )
    sigmas: tuple[float, ...] = Field(
        (0.03, 0.07, 0.13, 0.2, 0.3, 0.4, 0.7, 1.0),
        min_length=2,
        description="noise levels of the scan over sigma, in standard deviations of the training "
        "pixels",
    )
    components: int | None = Field(
        16, ge=1, description="principal components of the scan over sigma; unset is none"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _over_the_default(cls, given: Any) -> Any:
        """What is given changes the U-Net's training, not that of the section train."""
        if not isinstance(given, Mapping):
            return given
        default = UNET.model_dump()
        nested = {
            k: {**(default[k] or {}), **v} for k, v in given.items() if isinstance(v, Mapping)
        }
        return default | dict(given) | nested

    @model_validator(mode="after")
    def _fits_together(self) -> ICROptions:
        check_sigmas(self.sigmas)
        if max(self.full_steps, default=self.train.warmup_steps) < self.train.warmup_steps:
            raise ValueError(
                f"full_steps={self.full_steps} ends below train.warmup_steps="
                f"{self.train.warmup_steps}; raise its last step, or lower the warm-up"
            )
        if self.train.limit is not None and self.limited >= self.train.limit:
            raise ValueError(
                f"limited={self.limited} is not below train.limit={self.train.limit}, the images "
                "of the rich run; lower limited"
            )
        return self

    def shortened(self) -> ICROptions:
        """The options of recipe full: trainings that end at the last of full_steps."""
        if not self.full_steps:
            return self
        steps = tuple(sorted({*self.full_steps}))
        return self.revised(
            train=self.train.model_dump() | {"steps": steps[-1], "checkpoint_steps": steps}
        )

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that are kept, scanned and sampled."""
        options = self.train
        if options.checkpoint_steps:
            return options.kept_steps
        kept, k = {options.steps}, 0
        while (step := round(FIRST_CHECKPOINT * 2 ** (k / 2))) < options.steps:
            kept.add(step)
            k += 1
        return tuple(sorted(kept))
