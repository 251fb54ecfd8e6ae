"""The stage `extractor`: the network whose features score samples, and its validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import StageError, UsageError
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages.methods import table
from stages.prepare import Data
from stages.weights import MissingWeightsError, weight_file

if TYPE_CHECKING:
    from torch import Tensor

    from stages.features import Extractor as Network
    from stages.prepare import DataSet

WEIGHTS = "extractor.safetensors"
FACTS = "extractor.json"
EMBEDDED = "embedded"
# Real images that are degraded, and those they are compared with, at most.
VALIDATION_IMAGES, VALIDATION_REFERENCE = 500, 1500


class NetworkOptions(Settings):
    """Which network gives the features, and where it runs."""

    kind: table.choice("extractor", table.EXTRACTORS) = Field(
        EMBEDDED,
        description="embedded (a small classifier trained on the training labels, no download), "
        "inception or dinov2-small, -base, -large (weights placed by hand)",
    )
    weights: str | None = Field(
        None,
        description="weight file of an extractor that is not embedded, or the folder that holds "
        "it; unset is the folder weights; its contents, not its place, enter keys",
        json_schema_extra={"keyed": False},
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

    batch_size: int = Field(128, ge=1, le=65536, description="images in one pass")
    shard_size: int = Field(
        5000,
        ge=1,
        description="images of one task; rounded up to whole batches",
        json_schema_extra={"keyed": False},
    )


class ExtractorOptions(NetworkOptions, PassOptions, TrainingOptions):
    """The extractor and its features."""


class ExtractorSettings(NetworkOptions, TrainingOptions):
    """The stage's settings."""

    seed: int = Field(0, ge=0, description="of the embedded one's weights and order of images")


def weight_files(settings: NetworkOptions) -> list[Path]:
    """The files outside the store that settings name.

    Raises UsageError where they are missing, which is before any work.
    """
    if settings.kind == EMBEDDED:
        return []
    try:
        return [weight_file(settings.kind, settings.weights)]
    except MissingWeightsError as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True)
class Identity:
    """What a protocol says of an extractor."""

    name: str
    weights_hash: str
    resize: str
    dimension: int


class Extractor(Artifact):
    """An extractor: its weights if it was trained here, what it is, and its validation."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """Plain facts: name, weights_hash, resize, dimension, and validation, `{kind: [[strength,
        distance], ...]}` of degraded real images (stages.methods.degradation)."""
        return json.loads((self.path / FACTS).read_text())

    @property
    def identity(self) -> Identity:
        return Identity(**{name: self.description[name] for name in Identity.__annotations__})

    @property
    def caution(self) -> str:
        """Empty, or a sentence on which degradations its distance does not rise with."""
        return _caution(self.description)

    def load(self, weights: str | None = None, device: str = "cpu") -> Network:
        """The network: images (B, C, H, W) in [-1, 1] -> Features.

        weights: where the weight file of one that was not trained here lies now.

        Raises StageError when that file holds other weights than those it was made with.
        """
        from safetensors.torch import load_file

        kind = self.settings["kind"]
        build = resolve(table.EXTRACTORS[kind])
        if kind == EMBEDDED:
            return build(load_file(self.path / WEIGHTS), device)
        network = build(kind, weights, device)
        if network.weights_hash != self.identity.weights_hash:
            raise StageError(
                f"the weights of {kind} are not those that this extractor was made with (SHA-256 "
                f"{self.identity.weights_hash[:12]}); set extractor.weights to these"
            )
        return network


def run(context: Context) -> Result:
    """Make the extractor, check it on held-out and on degraded images, store it."""
    settings: ExtractorSettings = context.settings
    data = context.inputs["data"].load()
    _check_labels(settings, data)
    metrics: dict[str, float] = {}
    try:
        build = resolve(table.EXTRACTORS[settings.kind])
        if settings.kind == EMBEDDED:
            network = build(_trained_state(context, data), settings.device)
            metrics = _accuracies(network, data, settings)
        else:
            network = build(settings.kind, settings.weights, settings.device)
        validation = _validation(network, data, settings.seed)
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
    facts = asdict(_identity(network)) | {"validation": validation}
    (context.path / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True))
    caution = _caution(facts)
    context.log(caution or f"its distance rises with every step of {', '.join(validation)}")
    return Result(metrics=metrics | {"distance_monotone": float(not caution)})


def _check_labels(settings: ExtractorSettings, data: DataSet) -> None:
    """Raise StageError where the embedded extractor has no classes to be trained on."""
    if settings.kind == EMBEDDED and not data.num_classes:
        raise StageError(
            "extractor.kind=embedded is trained to tell the data's classes apart, and the data "
            "have none; set extractor.kind=inception or dinov2-base, or give labels (y_train in an "
            ".npz file, class folders in a folder)"
        )


def _caution(facts: Mapping[str, Any]) -> str:
    from stages.methods.degradation import is_monotone

    failed = [kind for kind, curve in facts["validation"].items() if not is_monotone(curve)]
    if not failed:
        return ""
    return (
        f"the distance of the extractor {facts['name']} does not rise with every step of "
        f"{' and '.join(failed)}: trust small differences less"
    )


def _identity(network: Network) -> Identity:
    return Identity(**{name: getattr(network, name) for name in Identity.__annotations__})


def _accuracies(network: Network, data: DataSet, settings: ExtractorSettings) -> dict[str, float]:
    """Shares of training and held-out images it classifies; StageError below min_accuracy."""
    from stages import features

    found = {}
    for name, images in (("train_accuracy", data.train), ("accuracy", data.test)):
        batches = (images[start : start + 512] for start in range(0, len(images), 512))
        right = features.extract(network, batches).logits.argmax(1) == images.labels
        found[name] = right.double().mean().item()
    if found["accuracy"] < settings.min_accuracy:
        raise StageError(
            f"the extractor classifies {found['accuracy']:.3f} of the held-out images, below "
            f"extractor.min_accuracy={settings.min_accuracy}; its distances would mean little: "
            "raise extractor.epochs, or lower extractor.min_accuracy if you accept that"
        )
    return found


def _validation(network: Network, data: DataSet, seed: int) -> dict[str, Any]:
    """Distances of degraded held-out images to training images, by kind and strength."""
    import torch

    from stages import features
    from stages.methods.degradation import validate

    def compute(images: Tensor) -> Tensor:
        return features.extract(network, images).features

    held_out = slice(VALIDATION_IMAGES)
    return validate(
        compute,
        compute(data.train[slice(VALIDATION_REFERENCE)]),
        data.test[held_out],
        data.test.labels[held_out],
        torch.Generator().manual_seed(seed),
    )


def _trained_state(context: Context, data: DataSet) -> dict[str, Tensor]:
    """Train the embedded classifier, write its weights, return them."""
    from safetensors.torch import save_file

    from stages.methods.classifier import ClassifierProgress, train_classifier

    def progress(at: ClassifierProgress) -> None:
        note = f"loss {at.loss:.3f}, accuracy {at.accuracy:.3f}"
        context.progress(at.epoch, at.epochs, "epochs", note)
        context.log(f"epoch {at.epoch} of {at.epochs}: {note}")

    settings: ExtractorSettings = context.settings
    network = train_classifier(
        data.train[:].to(settings.device),
        data.train.labels.to(settings.device),
        data.num_classes,
        epochs=settings.epochs,
        seed=settings.seed,
        batch_size=settings.train_batch_size,
        learning_rate=settings.lr,
        shift_pixels=settings.shift_pixels,
        progress=progress,
    )
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    save_file(state, context.path / WEIGHTS)
    return state


STAGE = Stage(
    name="extractor",
    settings=ExtractorSettings,
    output=Extractor,
    run="stages.extract:run",
    inputs={"data": Input(Data)},
    sources=lambda settings: [table.EXTRACTORS[settings.kind]],
    files=weight_files,
    version=2,
)
