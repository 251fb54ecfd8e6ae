"""The stage `extractor`: the network whose features score samples, and its validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, resolve
from stages.artifacts.data import Data
from stages.artifacts.extractor import EMBEDDED, WEIGHTS, Extractor, Identity
from stages.methods import table
from stages.methods.fewest import FEWEST_IMAGES, FEWEST_SCORED
from stages.settings.extractors import NetworkOptions, TrainingOptions, weight_files
from stages.shards import blocks

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.graph import Node
    from stages.artifacts.data import DataSet, Images
    from stages.encoders.embedded import FeatureNetwork

# Real images that are degraded, and those they are compared with, at most.
VALIDATION_IMAGES, VALIDATION_REFERENCE = 500, 1500
MOST_AT_ONCE, MOST_VALUES = 512, 2**21  # images of a pass that are in memory, and their values


class ExtractorSettings(NetworkOptions, TrainingOptions):
    """The stage's settings."""

    seed: int = Field(0, ge=0, description="of the embedded one's weights and order of images")


def run(context: Context) -> Result:
    """Make the extractor, check it on held-out and on degraded images, store it."""
    settings: ExtractorSettings = context.settings
    data = context.inputs["data"].load()
    _check_labels(settings, data)
    _check_counts(len(data.train), len(data.test))
    metrics: dict[str, float] = {}
    with raised_as(StageError, ValueError, OSError):
        build = resolve(table.EXTRACTORS[settings.kind])
        if settings.kind == EMBEDDED:
            network = build(_trained_state(context, data), settings.device)
            metrics = _accuracies(network, data, settings)
        else:
            network = build(settings.kind, settings.weights, settings.device)
        validation = _validation(network, data, settings.seed)
    identity = {name: getattr(network, name) for name in Identity.__annotations__}
    facts = identity | {"validation": validation}
    Extractor.describe(context.path, facts)
    caution = caution_of(facts)
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


def _check_counts(num_train: int, num_held_out: int) -> None:
    """Raise StageError for fewer real images than scores can be taken against."""
    if num_held_out < FEWEST_IMAGES:
        raise StageError(
            f"the data have {num_held_out} held-out images, and scores need at least "
            f"{FEWEST_IMAGES}: raise data.held_out (or data.limit_held_out), or give more images"
        )
    if num_train < FEWEST_SCORED:
        raise StageError(
            f"the data have {num_train} training images, and scores need at least "
            f"{FEWEST_SCORED}: raise data.limit, lower data.held_out, or give more images"
        )


def _accuracies(
    network: FeatureNetwork, data: DataSet, settings: ExtractorSettings
) -> dict[str, float]:
    """Shares of training and held-out images it classifies; StageError below min_accuracy."""
    from stages.encoders import embedded

    accuracies = {}
    for name, images in (("train_accuracy", data.train), ("accuracy", data.test)):
        right = (
            embedded.extract(network, _batches(images, len(images))).logits.argmax(1)
            == images.labels
        )
        accuracies[name] = right.double().mean().item()
    if accuracies["accuracy"] < settings.min_accuracy:
        raise StageError(
            f"the extractor classifies {accuracies['accuracy']:.3f} of the held-out images, below "
            f"extractor.min_accuracy={settings.min_accuracy}; its distances would mean little: "
            "raise extractor.epochs, or lower extractor.min_accuracy if you accept that"
        )
    return accuracies


def _batches(images: Images, count: int, most: int = MOST_AT_ONCE) -> Iterator[Tensor]:
    """The first `count` images, `most` at once or fewer where they are large."""
    size = max(1, min(most, MOST_VALUES // math.prod(images.shape)))
    return (images[first:last] for first, last in blocks(min(count, len(images)), size))


def caution_of(facts: Mapping[str, Any]) -> str:
    """Empty, or a sentence on which degradations an extractor's distance does not rise with.

    facts: an `Extractor`'s description.
    """
    from stages.methods.degradation import is_monotone

    failed = [kind for kind, curve in facts["validation"].items() if not is_monotone(curve)]
    if not failed:
        return ""
    return (
        f"the distance of the extractor {facts['name']} does not rise with every step of "
        f"{' and '.join(failed)}: trust small differences less"
    )


def _validation(network: FeatureNetwork, data: DataSet, seed: int) -> dict[str, Any]:
    """Distances of degraded held-out images to training images, by kind and strength."""
    import torch

    from stages.encoders import embedded
    from stages.methods.degradation import validate

    def compute(images: Tensor | Iterator[Tensor]) -> Tensor:
        return embedded.extract(network, images).features

    held_out = slice(VALIDATION_IMAGES)
    return validate(
        compute,
        compute(_batches(data.train, VALIDATION_REFERENCE, 128)),
        data.test[held_out],
        data.test.labels[held_out],
        torch.Generator().manual_seed(seed),
    )


def _trained_state(context: Context, data: DataSet) -> dict[str, Tensor]:
    """Train the embedded classifier, write its weights, return them."""
    from safetensors.torch import save_file

    from stages.encoders.classifier import ClassifierProgress, train_classifier

    def progress(at: ClassifierProgress) -> None:
        note = f"loss {at.loss:.3f}, accuracy {at.accuracy:.3f}"
        context.progress(at.epoch, at.epochs, "epochs", note)
        context.log(f"epoch {at.epoch} of {at.epochs}: {note}")

    settings: ExtractorSettings = context.settings
    context.progress(0, settings.epochs, "epochs")
    network = train_classifier(
        data.train,
        data.train.labels,
        data.num_classes,
        epochs=settings.epochs,
        seed=settings.seed,
        batch_size=settings.train_batch_size,
        learning_rate=settings.lr,
        shift_pixels=settings.shift_pixels,
        device=settings.device,
        progress=progress,
    )
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    save_file(state, context.path / WEIGHTS)
    return state


def _metrics(node: Node) -> tuple[str, ...]:
    accuracies = ("accuracy", "train_accuracy") if node.settings.kind == EMBEDDED else ()
    return (*accuracies, "distance_monotone")


STAGE = Stage(
    name="extractor",
    settings=ExtractorSettings,
    output=Extractor,
    run="stages.scoring.extractor:run",
    inputs={"data": Input(Data)},
    sources=lambda settings: [table.EXTRACTORS[settings.kind]],
    files=weight_files,
    version=2,
    metrics=_metrics,
    estimate="stages.settings.costs:extractor",
)
