"""The nodes of the ICR: two U-Nets, on all and on few images, their samples, scores and scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from pipeline.graph import Node
from pipeline.stage import Settings
from stages import evaluate, sample, scan, train
from stages.architectures import NetworkSettings
from stages.evaluate import EvaluateSettings
from stages.sample import SampleSettings
from stages.scan import ScanOptions, ScanSettings
from stages.scoring_nodes import settings_of
from stages.sigmas import check_sigmas
from stages.train import TrainOptions, TrainSettings

if TYPE_CHECKING:
    from stages.table import Bench

RICH, LIMITED = "unet-rich", "unet-limited"
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
    train: TrainOptions = Field(
        UNET,
        description="of both U-Nets; where it runs (device, workers) is train's. Unset, "
        "checkpoints are at 25 and on by factors of the root of 2",
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
        nested = {k: {**default[k], **v} for k, v in given.items() if isinstance(v, Mapping)}
        return default | dict(given) | nested

    @model_validator(mode="after")
    def _fits_together(self) -> ICROptions:
        check_sigmas(self.sigmas)
        if self.train.limit is not None and self.limited >= self.train.limit:
            raise ValueError(
                f"limited={self.limited} is not below train.limit={self.train.limit}, the images "
                "of the rich run; lower limited"
            )
        return self

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that are kept, scanned and sampled."""
        options = self.train
        if options.checkpoint_steps:
            return options.kept_steps
        found, k = {options.steps}, 0
        while (step := round(FIRST_CHECKPOINT * 2 ** (k / 2))) < options.steps:
            found.add(step)
            k += 1
        return tuple(sorted(found))


def full_nodes(bench: Bench) -> list[Node]:
    """Both trainings with samples and scores of every checkpoint, and the three scans."""
    nodes = []
    for model, limit in ((RICH, bench.icr.train.limit), (LIMITED, bench.icr.limited)):
        nodes.append(train_node(bench, model, limit))
        scored = [*_scored_nodes(bench, model)]
        nodes += [*scored, scan_node(bench, model, scores=scored[-1].name)]
    return [*nodes, sigma_node(bench, RICH)]


def train_node(bench: Bench, model: str, limit: int | None) -> Node:
    """`train/MODEL` on the first `limit` images; checkpoints at powers of the root of 2."""
    options = bench.icr.train
    where = {name: getattr(bench.train, name) for name in ("device", "num_workers")}
    changed = {"limit": limit, "checkpoint_steps": bench.icr.checkpoints, "seed": bench.seed}
    changed |= {"live": bench.scan.watch(options.method)}
    settings = TrainSettings.model_validate(options.model_dump() | where | changed)
    tags = {"method": settings.method, "data": "all" if limit is None else f"{limit} images"}
    inputs = {"data": "prepare"}
    return Node(f"train/{model}", train.STAGE, settings, inputs, bench.resources.train, tags)


def _scored_nodes(bench: Bench, model: str) -> Iterator[Node]:
    """Samples of every checkpoint, and then their scores over training steps."""
    options, names = bench.icr, []
    tags = {"method": options.train.method, "solver": "dpmpp2m", "grid": "edm"}
    # Where an alarm may end a training, only its last checkpoint is known to be there.
    for step in (None,) if bench.scan.stop else options.checkpoints:
        settings = SampleSettings(
            solver="dpmpp2m",
            grid="edm",
            nfe=options.nfe,
            num_samples=options.num_samples,
            block_size=min(256, options.num_samples),
            device=bench.sample.device,
            step=step,
            seed=bench.seed,
        )
        names.append(f"sample/{model}-" + ("last" if step is None else f"step{step}"))
        inputs = {"model": f"train/{model}"}
        yield Node(names[-1], sample.STAGE, settings, inputs, bench.resources.sample, tags)
    scores = settings_of(
        EvaluateSettings,
        bench.evaluate.revised(num_samples=options.num_samples),
        seed=bench.seed,
        abscissa="training_step",
    )
    inputs = {"samples": names}
    resources = bench.resources.evaluate
    yield Node(f"evaluate/{model}", evaluate.STAGE, scores, inputs, resources, tags)


def scan_node(bench: Bench, model: str, scores: str | None = None) -> Node:
    """`scan/MODEL`: over all checkpoints, with the scores of their samples beside."""
    inputs = {"model": f"train/{model}", "data": "prepare"}
    inputs |= {} if scores is None else {"scores": scores}
    return _node(bench, f"scan/{model}", inputs)


def sigma_node(bench: Bench, model: str) -> Node:
    """`scan/MODEL-sigma`: over noise levels at the last checkpoint."""
    more = {"sigmas": bench.icr.sigmas, "components": bench.icr.components}
    inputs = {"model": f"train/{model}", "data": "prepare"}
    return _node(bench, f"scan/{model}-sigma", inputs, **more)


def _node(bench: Bench, name: str, inputs: dict[str, str], **more: object) -> Node:
    common = {field: getattr(bench.scan, field) for field in ScanOptions.model_fields}
    settings = ScanSettings(**common | more)
    tags = {"method": bench.icr.train.method}
    return Node(name, scan.STAGE, settings, inputs, bench.resources.scan, tags)


def shown_samples(bench: Bench, nodes: Sequence[Node]) -> list[str]:
    """Names of the sample nodes that the report shows: of scanned models only the last step's."""
    scanned = {name for node in nodes if node.stage is scan.STAGE for name in node.slot("model")}
    last = bench.icr.checkpoints[-1]
    return [
        node.name
        for node in nodes
        if node.stage is sample.STAGE
        and (node.inputs["model"] not in scanned or node.settings.step in (None, last))
    ]
