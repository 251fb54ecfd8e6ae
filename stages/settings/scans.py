"""Settings of what the ICR is measured on: a layer, views of images, their seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.stage import Settings
from stages.settings.sigmas import ABSCISSA, check_sigmas

OVER_STEPS = "training_step"


class ViewOptions(Settings):
    """A layer of the network, and noisy augmented views of images that it sees."""

    layer: str | None = Field(
        None,
        description="the layer measured, by its name in the network, such as inner.mid or "
        "blocks.1; unset is the middle one",
    )
    pooling: Literal["auto", "spatial", "tokens", "class_token"] = Field(
        "auto",
        description="how a layer's output becomes one vector an image; auto takes the mean over "
        "places or tokens",
    )
    strength: Literal["none", "weak", "medium", "strong", "extreme"] = Field(
        "strong",
        description="of the augmentation; weak or noise-only views do not show memorisation",
    )
    padding: Literal["black", "border", "reflection"] = Field(
        "black", description="what augmented images show beyond their edges"
    )
    num_views: int = Field(6, ge=2, le=1000, description="views of each image, V")
    view_seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3),
        min_length=2,
        description="seeds of the views, the same for every checkpoint, noise level and run: "
        "errors are over them",
    )
    images: Literal["held_out", "training"] = Field(
        "held_out",
        description="the images viewed; the paper views those trained on, where ICR warns later",
    )
    num_images: int = Field(
        256, ge=2, description="images, the first ones, n; of training images all there are at most"
    )
    tau: float | None = Field(
        None,
        ge=0,
        description="added to the diagonal of the covariance within images, in squared feature "
        "units; unset is 1e-6 of its mean, 1e-3 where n (V - 1) is below twice the features",
    )
    batch_size: int = Field(
        256, ge=1, le=65536, description="views of one network call; others differ by rounding"
    )

    sigma: float = Field(
        0.2,
        gt=0,
        le=1000,
        description="noise level over checkpoints, in standard deviations of the training pixels "
        "(digits: 0.2 is 0.15 of images in [-1, 1])",
    )
    alarm_errors: float = Field(
        2.5,
        gt=0,
        le=100,
        description="standard errors, of views or of the training's jitter, by which ICR falls and "
        "then rises to confirm the alarm",
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> ViewOptions:
        if len(set(self.view_seeds)) < len(self.view_seeds):
            raise ValueError(f"view_seeds={self.view_seeds} repeats a seed; leave it out")
        return self


class ScannedOptions(ViewOptions):
    """A scan that is to come: what it needs is checked before its network is trained."""

    components: int | None = Field(
        None, ge=1, description="principal components the features are projected on; unset is none"
    )


class LiveOptions(ViewOptions):
    """The ICR measured during training: when, and whether its alarm ends the training."""

    every: int | None = Field(
        None, ge=1, description="steps between measurements; unset measures every kept checkpoint"
    )
    stop: bool = Field(False, description="end the training once the alarm stands")
    stop_confirmations: int = Field(
        1,
        ge=1,
        le=1000,
        description="measurements in a row that confirm the same minimum before training stops",
    )


class ScanOptions(ViewOptions):
    """The noise level of checkpoint scans, and what is measured beside the ICR."""

    loss_draws: int = Field(
        1, ge=1, le=1000, description="noises an image of the held-out denoising error"
    )
    probe: bool = Field(True, description="measure a linear probe of the layer")
    probe_images: int = Field(
        5000, ge=10, description="training images of the probe, and held-out ones, at most"
    )
    memorized: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="memorisation ratio above which a checkpoint counts as memorising",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the network runs")


class ScanSettings(ScanOptions):
    """The stage's settings."""

    steps: tuple[int, ...] = Field(
        (), description="checkpoints; unset is all of them, or the last one over several sigmas"
    )
    sigmas: tuple[float, ...] = Field(
        (), description="scan over these noise levels at one checkpoint, instead of over steps"
    )
    components: int | None = Field(
        None, ge=1, description="principal components the features are projected on; unset is none"
    )

    @model_validator(mode="after")
    def _one_abscissa(self) -> ScanSettings:
        if self.sigmas:
            check_sigmas(self.sigmas)
        if len(self.sigmas) > 1 and len(self.steps) > 1:
            raise ValueError(
                f"sigmas={self.sigmas} and steps={self.steps} contradict each other: a scan goes "
                "over noise levels at one checkpoint, or over checkpoints at one level; leave one "
                "of them out"
            )
        return self

    @property
    def abscissa(self) -> str:
        """What the rows differ in."""
        return ABSCISSA if self.sigmas else OVER_STEPS


class ScanPreset(ScanOptions):
    """How scans are made, and whether trainings are watched by the same measurement."""

    live: bool = Field(
        False,
        description="measure the ICR in every training too, with its alarm in the terminal and as "
        "a tag in MLflow; networks with a class token are not watched",
    )
    live_every: int | None = Field(
        None, ge=1, description="live: steps between measurements; unset is every kept checkpoint"
    )
    stop: bool = Field(
        False,
        description="live: end a U-Net's training once its alarm stands; trainings that are "
        "compared at equal steps go on",
    )
    stop_confirmations: int = Field(
        1, ge=1, le=1000, description="stop: measurements in a row that confirm the same minimum"
    )

    @model_validator(mode="after")
    def _live_is_on(self) -> ScanPreset:
        given = [name for name in ("live_every", "stop") if getattr(self, name)]
        if given and not self.live:
            raise ValueError(
                f"{given[0]}={getattr(self, given[0])} and live=false contradict each other: only "
                "a training that is watched reads it; set live=true"
            )
        return self

    def watch(self, may_stop: bool = False) -> LiveOptions | None:
        """What a training is watched with, and whether that may end it; None unless live."""
        if not self.live:
            return None
        return LiveOptions(
            **self.shared_with(ViewOptions),
            every=self.live_every,
            stop=self.stop and may_stop,
            stop_confirmations=self.stop_confirmations,
        )
