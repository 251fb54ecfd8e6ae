"""The stage `published`: scores of sets of samples under a published protocol.

Against a reference file, so that no training image is read. The means and covariances are the
file's; the images that ADM's files hold serve precision and recall alone, as published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, unkeyed
from stages.artifacts.samples import ExternalSamples, Samples
from stages.artifacts.scores import Scores, row_of, write
from stages.encoders.weights import MissingWeightsError, weight_file
from stages.settings.protocols import CLEAN, PUBLISHED, ProtocolOptions, Published

if TYPE_CHECKING:
    import numpy as np

    from pipeline.graph import Node
    from stages.data.references import ReferenceFile, Statistics
    from stages.methods.protocol import Protocol, Score

AS_GIVEN = "before, by whoever made the files"


class PublishedSettings(ProtocolOptions):
    """The stage's settings."""

    abscissa: Literal["training_step"] = Field(
        "training_step", description="what the sets differ in"
    )
    batch_size: int = unkeyed(50, ge=1, le=65536, description="images in one pass")
    shard_size: int = unkeyed(5000, ge=1, description="images of one task")

    @model_validator(mode="after")
    def _is_published(self) -> PublishedSettings:
        if self.protocol == CLEAN:
            raise ValueError("protocol=clean is the stage evaluate's; choose a published one")
        if self.reference is None:
            raise ValueError(
                f"protocol={self.protocol} takes scores against a reference file: set "
                "evaluate.reference to it (`python -m pipeline reference` makes one of your own "
                "images)"
            )
        return self

    @property
    def published(self) -> Published:
        return PUBLISHED[self.protocol]

    def stated(self, name: str) -> Any:
        """What the user states of `rounding`, `crop`, `classes`, `best_of`, or what is
        published."""
        value = getattr(self, name)
        return getattr(self.published, name) if value is None else value


def files_of(settings: PublishedSettings) -> list[Path]:
    """The reference and the weight file; UsageError, before any work, where one is missing or the
    reference does not go with the protocol."""
    reference_of(settings)
    with raised_as(UsageError, MissingWeightsError):
        kind = settings.published.extractor
        weights = weight_file(kind, settings.weights, "evaluate.weights")
    return [Path(settings.reference), weights]


def reference_of(settings: PublishedSettings) -> ReferenceFile:
    """The reference file, checked against the protocol; UsageError where it does not fit."""
    from stages.data import references

    found, name = references.read(settings.reference), settings.protocol
    where = f"evaluate.reference={settings.reference}"
    if name == "fd-dinov2":
        if found.dinov2 is None:
            raise UsageError(
                f"{where} holds no DINOv2 statistics (mu of 1024 numbers), which "
                "evaluate.protocol=fd-dinov2 takes"
            )
        return found
    if found.inception is None:
        raise UsageError(
            f"{where} holds no Inception statistics (mu of 2048 numbers), which "
            f"evaluate.protocol={name} takes"
        )
    if name == "adm" and found.spatial is None:
        raise UsageError(
            f"{where} has no mu_s and sigma_s, which evaluate.protocol=adm takes; give ADM's own "
            "file, or set evaluate.protocol=edm for the Fréchet distance alone"
        )
    resizer = settings.resizer or found.resizer
    if not resizer:
        raise UsageError(
            f"{where} holds mu and sigma alone, and does not say how its images were resized to "
            "299 pixels: set evaluate.resizer=tf if they are of TensorFlow, StyleGAN, EDM or "
            "torch-fidelity, pytorch if of pytorch-fid, clean if of clean-fid"
        )
    if resizer != "tf":
        raise UsageError(
            f"evaluate.resizer={resizer} and evaluate.protocol={name} contradict each other: "
            "samples would be resized in another way than the reference's images (by TensorFlow's "
            "bilinear rule), and the distance would mean nothing"
        )
    return found


def run(context: Context) -> Result:
    """Features of all sets and of the reference's images, and the scores."""
    settings: PublishedSettings = context.settings
    samples: Mapping[str, Samples] = context.inputs["samples"]
    with raised_as(StageError, UsageError, ValueError, OSError):
        reference = reference_of(settings)
        rows = []
        for node, artifact in samples.items():
            _check_count(node, artifact, settings)
            protocol = protocol_of(settings, reference, artifact)
            context.log(f"{node}: protocol {protocol.name}, {protocol.rules}")
            for score in _scores(context, artifact, reference, protocol):
                rows.append(row_of(node, artifact.description, score))
    for row in rows:
        context.log(f"{row.node}: {row.score}")
    write(context.path, rows, rows)
    return Result(
        metrics={row.score.metric: row.score.value for row in rows if row.node == rows[-1].node}
    )


def _check_count(node: str, samples: Samples, settings: PublishedSettings) -> None:
    count, sets = samples.description["num_samples"], settings.stated("best_of")
    if count < (wanted := sets * settings.protocol_samples):
        several = (
            f" ({sets} sets of evaluate.protocol_samples={settings.protocol_samples}; "
            "evaluate.best_of=1 takes one set, which is another protocol)"
            if sets > 1
            else ""
        )
        raise StageError(
            f"{node} holds {count} samples, and evaluate.protocol={settings.protocol} takes "
            f"{wanted}{several}; give more samples, or lower evaluate.protocol_samples"
        )


def protocol_of(
    settings: PublishedSettings, reference: ReferenceFile, samples: Samples
) -> Protocol:
    """How the scores of a set are measured."""
    from stages.encoders import suites
    from stages.encoders.pretrained import file_hash
    from stages.methods.protocol import Protocol

    suite = suites.load(settings.published.extractor, settings.weights, settings.device)
    rounding = settings.stated("rounding")
    if settings.rounding is None and samples.is_rounded:
        rounding = AS_GIVEN
    return Protocol(
        name=f"{settings.protocol}-{settings.protocol_samples}",
        extractor=suite.name,
        extractor_hash=suite.weights_hash,
        resize=suite.resize,
        reference=f"reference file {file_hash(Path(settings.reference))[:12]}",
        num_reference=reference.num_images,
        num_samples=settings.protocol_samples,
        rounding=rounding,
        crop=settings.crop or reference.crop or settings.published.crop,
        classes=settings.classes
        or samples.description.get("classes")
        or settings.published.classes,
        best_of=settings.stated("best_of"),
    )


@dataclass(frozen=True)
class Found:
    """Features of one set; arrays as `Features` holds them."""

    features: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray | None


def _scores(
    context: Context, samples: Samples, reference: ReferenceFile, protocol: Protocol
) -> Iterator[Score]:
    """The scores of the set of the least distance."""
    from stages.methods.protocol import Score

    settings: PublishedSettings = context.settings
    statistics = reference.dinov2 if settings.protocol == "fd-dinov2" else reference.inception
    sets = [
        range(i * settings.protocol_samples, (i + 1) * settings.protocol_samples)
        for i in range(protocol.best_of)
    ]
    found = [_features(context, samples, which) for which in sets]
    gaussian = _gaussian(statistics)
    distances = [_distance(one.features, gaussian) for one in found]
    best = min(range(len(sets)), key=distances.__getitem__)
    values = {"fid": (distances[best], "")}
    if len(sets) > 1:
        # No part of the protocol: two scores of it may be compared.
        context.log("distances of the sets: " + ", ".join(f"{one:.6g}" for one in distances))
    if settings.protocol == "adm":
        values |= _adm(context, found[best], reference)
    for metric, (value, details) in values.items():
        yield Score(
            metric=metric,
            value=value,
            protocol=replace(protocol, details=details),
            error=None,
            error_kind="none",
            caution=_caution(settings),
        )


def _caution(settings: PublishedSettings) -> str:
    """Empty, or why the numbers are none that were published."""
    if settings.protocol_samples == (wanted := settings.published.num_samples):
        return ""
    return (
        f"{settings.protocol_samples} samples, where published numbers are of {wanted}: not "
        "comparable with them"
    )


def _gaussian(statistics: Statistics) -> Any:
    import torch

    from stages.methods.frechet import reference_gaussian

    mean, cov = torch.tensor(statistics.mean), torch.tensor(statistics.cov)
    return reference_gaussian(mean, cov)


def _distance(features: np.ndarray, reference: Any) -> float:
    import torch

    from stages.methods.frechet import distance_to

    return distance_to(torch.from_numpy(features), reference)


def _adm(context: Context, found: Found, reference: ReferenceFile) -> dict[str, tuple[float, str]]:
    """sFID and the Inception score, and precision and recall where the file holds images."""
    import torch

    from stages.methods import suite

    maps = suite.flattened(torch.from_numpy(found.spatial))
    values = {
        "sfid": (_distance(maps.numpy(), _gaussian(reference.spatial)), ""),
        "inception_score": (
            suite.inception_score(torch.from_numpy(found.logits)),
            f"splits of {suite.SPLIT}, classifier without bias",
        ),
    }
    if reference.images is not None:
        theirs = _features(context, reference, range(len(reference.images)))
        shares = suite.precision_recall(
            torch.from_numpy(found.features), torch.from_numpy(theirs.features)
        )
        details = f"k={suite.NEIGHBOURS}, against {len(reference.images)} images"
        for metric, share in zip(("precision", "recall"), shares, strict=True):
            values[metric] = (share, details)
    return values


def _features(context: Context, of: Samples | ReferenceFile, which: range) -> Found:
    """Features of the images `which`, computed in shards of whole batches."""
    import numpy as np

    from stages.shards import shards

    settings: PublishedSettings = context.settings
    spans = [
        which[first:last]
        for first, last in shards(len(which), settings.batch_size, settings.shard_size)
    ]
    parts = context.map(features_shard, spans, of, settings)

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Found(*(joined(name) for name in Found.__annotations__))


def features_shard(span: range, of: Samples | ReferenceFile, settings: PublishedSettings) -> Found:
    """Features of images span.start to span.stop - 1."""
    import torch

    from stages.encoders import suites
    from stages.encoders.embedded import Features
    from stages.shards import blocks

    suite = suites.load(settings.published.extractor, settings.weights, settings.device)
    parts = []
    for first, last in blocks(len(span), settings.batch_size):
        pixels = torch.from_numpy(pixels_of(of, span[first:last], settings.stated("rounding")))
        part = suite(pixels)
        if not part.features.isfinite().all():
            raise StageError(
                f"features of images {span[first]} to {span[last - 1]} are NaN or infinite; look "
                "at what made them"
            )
        parts.append(part)
    arrays = {}
    for name in Features.__annotations__:
        tensors = [getattr(part, name) for part in parts]
        arrays[name] = None if tensors[0] is None else torch.cat(tensors).numpy()
    return Found(**arrays)


def pixels_of(of: Samples | ReferenceFile, which: Sequence[int], rounding: str) -> np.ndarray:
    """uint8 (n, C, H, W) of images, those of an archive or folder in the order of its files."""
    import numpy as np
    import torch

    from stages.data.readers.order import mixed_order
    from stages.methods import suite

    if not isinstance(of, Samples):
        return np.ascontiguousarray(of.images.array[which[0] : which[-1] + 1].transpose(0, 3, 1, 2))
    stored = of.stored()
    at = np.asarray(which)
    if isinstance(of, ExternalSamples):
        at = np.argsort(mixed_order(len(stored)))[at]
    taken = np.array(stored[at])
    if taken.dtype == np.uint8:
        return taken
    return suite.rounded(torch.from_numpy(taken), rounding).numpy()


def _metrics(node: Node) -> tuple[str, ...]:
    return node.settings.published.metrics


STAGE = Stage(
    name="published",
    settings=PublishedSettings,
    output=Scores,
    run="stages.scoring.published:run",
    inputs={"samples": Input(Samples, many=True)},
    files=files_of,
    metrics=_metrics,
)
