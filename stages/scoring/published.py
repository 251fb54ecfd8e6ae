"""The stage `published`: scores of sets of samples under a published protocol.

Against a reference file, so that no training image is read. The means and covariances are the
file's; the images that ADM's files hold serve precision and recall alone, as published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, unkeyed
from stages.artifacts.samples import Samples
from stages.artifacts.scores import Row, Scores, headline, mean_over_seeds, row_of, write
from stages.encoders.weights import MissingWeightsError, weight_file
from stages.scoring.against import Job, scores
from stages.scoring.evaluate import check_noise, summaries, times
from stages.scoring.judge import Scored, apart
from stages.settings.protocols import CLEAN, PUBLISHED, ProtocolOptions, Published

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.data.references import ReferenceFile
    from stages.methods.protocol import Protocol, Score

AS_GIVEN = "before, by whoever made the files"


class PublishedSettings(ProtocolOptions):
    """The stage's settings."""

    abscissa: Literal["training_step", "nfe"] = Field(
        "training_step", description="what the sets differ in, and the curves are drawn over"
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
    """The scores of every set of samples, in the order of the abscissa."""
    settings: PublishedSettings = context.settings
    samples: Mapping[str, Samples] = context.inputs["samples"]
    other: Samples | None = context.inputs.get("reference")
    over = settings.abscissa
    sets = sorted(samples, key=lambda name: (samples[name].description[over], name))
    with raised_as(StageError, UsageError, ValueError, OSError):
        job = Job(context, reference_of(settings))
        singles = []
        for done, node in enumerate(sets):
            context.progress(done, len(sets), "sets")
            singles += _rows(job, node, samples[node], other)
    context.progress(len(sets), len(sets), "sets")
    rows = mean_over_seeds(singles, {node: samples[node].description for node in sets})
    for line in summaries(rows):
        context.log(line)
    write(context.path, singles, rows)
    return Result(
        metrics={name: value for name, value in headline(rows).items() if value is not None},
        curves=[(row.score.metric, getattr(row, over), row.score.value) for row in rows],
        abscissa=over,
        timings=times(samples, over),
    )


def _rows(job: Job, node: str, samples: Samples, other: Samples | None) -> Iterator[Row]:
    """The scores of one set; other: the samples that trajectory_rms refers to."""
    settings = job.settings
    if said := too_few(samples.description["num_samples"], settings):
        raise StageError(f"{node} {said}")
    protocol = protocol_of(settings, job.reference, samples)
    job.context.log(f"{node}: protocol {protocol.name}, {protocol.rules}")
    for score in scores(job, node.replace("/", "-"), samples, protocol, _caution(settings)):
        yield row_of(node, samples.description, score)
    if other is not None:
        check_noise(node, samples.description, other.description)
        score = trajectory(Scored(samples, settings.protocol_samples), other, protocol)
        yield row_of(node, samples.description, score)


def trajectory(scored: Scored, other: Samples, protocol: Protocol) -> Score:
    """trajectory_rms, which is no part of any published protocol: of samples alone."""
    import torch

    from stages.methods.influence import standard_error
    from stages.methods.protocol import Score

    value, psi, details = apart(scored, other)
    return Score(
        metric="trajectory_rms",
        value=value,
        protocol=replace(protocol, details=details),
        error=standard_error(psi, torch.from_numpy(scored.labels)),
        error_kind="influence",
        influence=scored.influence(psi),
    )


def wanted(settings: PublishedSettings) -> int:
    """How many samples a set has to have."""
    return settings.stated("best_of") * settings.protocol_samples


def too_few(count: int, settings: PublishedSettings) -> str:
    """What is said of a set of fewer samples than the protocol takes; empty of others."""
    if count >= wanted(settings):
        return ""
    sets = settings.stated("best_of")
    several = (
        f" ({sets} sets of evaluate.protocol_samples={settings.protocol_samples}; "
        "evaluate.best_of=1 takes one set, which is another protocol)"
        if sets > 1
        else ""
    )
    return (
        f"holds {count} samples, and evaluate.protocol={settings.protocol} takes "
        f"{wanted(settings)}{several}; give more samples, or lower evaluate.protocol_samples"
    )


def protocol_of(
    settings: PublishedSettings, reference: ReferenceFile, samples: Samples
) -> Protocol:
    """How the scores of a set are measured.

    Raises StageError for samples of this project that were drawn or rounded in another way than
    the settings state.
    """
    from stages.encoders import suites
    from stages.encoders.pretrained import file_hash
    from stages.methods.protocol import Protocol

    kind = settings.published.extractor
    with raised_as(StageError, MissingWeightsError):
        weights = weight_file(kind, settings.weights, "evaluate.weights")
    told = samples.description
    for name in ("rounding", "classes"):
        if told.get(name, stated := settings.stated(name)) != stated:
            raise StageError(
                f"evaluate.protocol={settings.protocol} takes {name} {stated}, and the samples' is "
                f"{told[name]}; set evaluate.{name}={told[name]}, or make them anew"
            )
    rounding = settings.stated("rounding")
    if settings.rounding is None and samples.is_rounded and "rounding" not in told:
        rounding = AS_GIVEN
    return Protocol(
        name=f"{settings.protocol}-{settings.protocol_samples}",
        extractor=kind,
        extractor_hash=file_hash(weights),
        resize=suites.RESIZES[kind],
        reference=f"reference file {file_hash(Path(settings.reference))[:12]}",
        num_reference=reference.num_images,
        num_samples=settings.protocol_samples,
        rounding=rounding,
        crop=settings.crop or reference.crop or settings.published.crop,
        classes=settings.stated("classes"),
        best_of=settings.stated("best_of"),
    )


def _caution(settings: PublishedSettings) -> str:
    """Empty, or why the numbers are none that were published."""
    if settings.protocol_samples == (usual := settings.published.num_samples):
        return ""
    return (
        f"{settings.protocol_samples} samples, where published numbers are of {usual}: not "
        "comparable with them"
    )


def _metrics(node: Node) -> tuple[str, ...]:
    more = ("trajectory_rms",) if node.slot("reference") else ()
    return node.settings.published.metrics + more


STAGE = Stage(
    name="published",
    settings=PublishedSettings,
    output=Scores,
    run="stages.scoring.published:run",
    fans_out=True,
    inputs={"samples": Input(Samples, many=True), "reference": Input(Samples, optional=True)},
    version=2,
    files=files_of,
    estimate="stages.settings.costs:published",
    metrics=_metrics,
)
