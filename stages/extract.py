"""The stage `extractor`: the network whose features score samples, and the references' features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages.methods import table
from stages.prepare import Data, Images

if TYPE_CHECKING:
    from torch import Tensor

    from stages.features import Extractor as Network
    from stages.features import Features

WEIGHTS = "extractor.safetensors"
FACTS = "extractor.json"
EMBEDDED = "embedded"


class ExtractorOptions(Settings):
    """Which network gives the features, and how the embedded one is trained."""

    kind: table.choice("extractor", table.EXTRACTORS) = Field(
        EMBEDDED,
        description="embedded (a small classifier trained on the training labels, no download), "
        "inception or dinov2-small, -base, -large (weights placed by hand)",
    )
    weights_dir: str | None = Field(
        None, description="folder with the weight file of an extractor that is not embedded"
    )
    epochs: int = Field(8, ge=1, le=1000, description="embedded: passes over the training images")
    batch_size: int = Field(64, ge=2, le=65536, description="embedded: images a step")
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
    device: Literal["cpu", "cuda"] = Field("cpu", description="where features are computed")

    @model_validator(mode="after")
    def _fits_together(self) -> ExtractorOptions:
        if self.kind != EMBEDDED and self.weights_dir is None:
            raise ValueError(
                f"kind={self.kind} needs weights_dir: set extractor.weights_dir to the folder "
                "that holds its weight file, or use kind=embedded"
            )
        if self.kind == EMBEDDED and self.weights_dir is not None:
            raise ValueError(
                f"weights_dir={self.weights_dir} and kind=embedded contradict each other: the "
                "embedded extractor is trained, not loaded; leave weights_dir unset"
            )
        return self


class ExtractorSettings(ExtractorOptions):
    """The stage's settings."""

    seed: int = Field(0, ge=0, description="of the embedded one's weights and order of images")


@dataclass(frozen=True)
class LoadedExtractor:
    """An extractor with its references.

    network: images (B, C, H, W) in [-1, 1] -> Features; it says its name, weights_hash and resize.
    train, test: (n, d) features of the training and held-out images.
    """

    network: Network
    train: Tensor
    test: Tensor

    def __call__(self, images: Tensor) -> Features:
        """Features of images (n, C, H, W) in [-1, 1], batch by batch."""
        from stages import features

        return features.extract(self.network, images)


class Extractor(Artifact):
    """What the extractor needs to be built again, and features of both sets of images."""

    @cached_property
    def _network(self) -> Network:
        from safetensors.torch import load_file

        kind, device = self.settings["kind"], self.settings["device"]
        build = resolve(table.EXTRACTORS[kind])
        if kind == EMBEDDED:
            return build(load_file(self.path / WEIGHTS), device)
        network = _placed(build, kind, self.settings["weights_dir"], device)
        made_with = json.loads((self.path / FACTS).read_text())["weights_hash"]
        if network.weights_hash != made_with:
            raise StageError(
                f"the weights of {kind} in {self.settings['weights_dir']} are not those that the "
                f"references' features were made with (SHA-256 {made_with[:12]}); put these back, "
                "or make the extractor again with --force extractor"
            )
        return network

    def load(self) -> LoadedExtractor:
        import numpy as np
        import torch

        train, test = (
            torch.from_numpy(np.load(self.path / f"{part}_features.npy"))
            for part in ("train", "test")
        )
        return LoadedExtractor(self._network, train, test)


def _placed(build: Any, kind: str, weights_dir: str, device: str) -> Network:
    return build(kind, weights_dir, setting="extractor.weights_dir", device=device)


def run(context: Context) -> Result:
    """Make the extractor, check it on held-out images, store it and the references' features."""
    import numpy as np

    from stages import features

    settings: ExtractorSettings = context.settings
    data = context.inputs["data"].load()
    metrics: dict[str, float] = {}
    try:
        build = resolve(table.EXTRACTORS[settings.kind])
        if settings.kind == EMBEDDED:
            network = build(_trained_state(context, data), settings.device)
        else:
            network = _placed(build, settings.kind, settings.weights_dir, settings.device)
        for part, images in (("train", data.train), ("test", data.test)):
            found = features.extract(network, _batches(images))
            np.save(context.path / f"{part}_features.npy", found.features.numpy())
            if settings.kind == EMBEDDED:
                right = found.logits.argmax(1) == images.labels
                name = "accuracy" if part == "test" else "train_accuracy"
                metrics[name] = right.double().mean().item()
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
    facts = {k: getattr(network, k) for k in ("name", "weights_hash", "resize", "dimension")}
    (context.path / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True))
    if metrics.get("accuracy", 1.0) < settings.min_accuracy:
        raise StageError(
            f"the extractor classifies {metrics['accuracy']:.3f} of the held-out images, below "
            f"extractor.min_accuracy={settings.min_accuracy}; its distances would mean little: "
            "raise extractor.epochs, or lower extractor.min_accuracy if you accept that"
        )
    return Result(metrics=metrics)


def _batches(images: Images, size: int = 512) -> Iterator[Tensor]:
    return (images[start : start + size] for start in range(0, len(images), size))


def _trained_state(context: Context, data: Any) -> dict[str, Tensor]:
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
        batch_size=settings.batch_size,
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
)
