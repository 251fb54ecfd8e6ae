"""The settings of a preset: what the common bench can be told, and what each paper adds to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model, field_validator, model_validator

from pipeline.errors import nearest
from pipeline.stage import Resources, Settings, Stage
from stages.data.options import PrepareSettings
from stages.data.spectrum import SpectrumSettings
from stages.paper import Paper
from stages.report.report import ReportOptions
from stages.sampling.sweep import SampleSweep
from stages.scoring.options import Evaluation
from stages.settings.elsewhere import NetworkOptions
from stages.settings.extractors import ExtractorOptions
from stages.settings.latents import Geometry, LatentOptions, known_geometry
from stages.settings.networks import TRANSFORMERS
from stages.settings.protocols import CLEAN
from stages.settings.scans import ScanPreset
from stages.training.teach import TeacherOptions
from stages.training.train import TrainOptions


class Bench(Settings):
    """What every preset holds; `bench_of` adds the sections of papers, and resources by stage."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    # The section that says on which device the nodes of a stage run, by stage.
    devices: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("extractor", "teach", "train", "sample")},
        "features": "extractor",
        "encode": "latents",
        "decode": "latents",
        "evaluate": "evaluate",
        "published": "evaluate",
    }

    # torch takes seeds below 2^64, and those of nodes count on from this one.
    seed: int = Field(0, ge=0, lt=2**62, description="of all randomness but the data's split")
    data: PrepareSettings = Field(PrepareSettings(), description="the data set")
    latents: LatentOptions = Field(
        LatentOptions(), description="the autoencoder in whose latents networks are trained"
    )
    extractor: ExtractorOptions = Field(
        ExtractorOptions(), description="the network whose features score samples"
    )
    teach: TeacherOptions = Field(
        TeacherOptions(), description="the teacher that REPA, REG and MaskAlign align with"
    )
    train: TrainOptions = Field(TrainOptions(), description="training")
    networks: NetworkOptions = Field(
        NetworkOptions(), description="a network trained elsewhere, run instead of training one"
    )
    spectrum: SpectrumSettings = Field(
        SpectrumSettings(), description="the data's power spectrum, which CSFlow starts from"
    )
    sample: SampleSweep = Field(SampleSweep(), description="sampling")
    scan: ScanPreset = Field(ScanPreset(), description="views of which the ICR is taken")
    evaluate: Evaluation = Field(Evaluation(), description="scores")
    report: ReportOptions = Field(ReportOptions(), description="the HTML report")
    hints: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {},
        description="seconds a node may take at the preset's own sizes until one was measured, by "
        "how its name begins; the longest beginning counts, and other sizes take by as much longer",
    )

    @property
    def is_latent(self) -> bool:
        """Whether networks are trained on latents."""
        return self.data.holds_latents or self.latents.autoencoder is not None

    @property
    def geometry(self) -> Geometry | None:
        """Of the autoencoder, where there is one and its files are there."""
        return known_geometry(self.latents.autoencoder)

    @property
    def shrink(self) -> int:
        """Pixels of a side for one of what networks are trained on."""
        return self.geometry.factor if self.geometry else 1

    @property
    def pictures(self) -> PrepareSettings:
        """The settings of the pixels that teachers and scores see."""
        given = self.data.holds_latents and self.teach.pixels
        return given or self.data

    @property
    def network_shape(self) -> tuple[int | None, int | None]:
        """Side and channels of what networks are trained on, where known before it is read."""
        if self.latents.autoencoder is None:
            return self.data.image_size, self.data.image_channels
        if self.geometry is None:
            return None, None
        size = self.pictures.image_size
        return size and size // self.shrink, self.geometry.latent_channels

    @field_validator("hints")
    @classmethod
    def _hints_meet_nodes(cls, hints: dict[str, float]) -> dict[str, float]:
        """Names of nodes begin with their stage's; recipes differ in what follows."""
        stages = tuple(cls.model_fields["resources"].annotation.model_fields)
        for key in hints:
            stage = key.partition("/")[0]
            if stage not in stages and not any(name.startswith(key) for name in stages):
                raise ValueError(
                    f"no node's name begins with '{key}'{nearest(stage, stages)} (names begin with "
                    f"{', '.join(stages)})"
                )
        return hints

    @model_validator(mode="after")
    def _patches_fit(self) -> Bench:
        (size, _), network = self.network_shape, self.train.network
        if size is not None and size % (unit := network.divisor):
            name = (
                f"patch={unit}"
                if network.kind in TRANSFORMERS
                else f"multipliers (a division by {unit})"
            )
            raise ValueError(
                f"train.network.{name} does not divide the images' side of {size} pixels; "
                f"change it, or set data.size to a multiple such as "
                f"{(size // unit + 1) * unit * self.shrink}"
            )
        return self

    @model_validator(mode="after")
    def _devices_fit(self) -> Bench:
        unused = "published" if self.evaluate.protocol == CLEAN else "evaluate"
        for name, owner in self.devices.items():
            if name == unused:
                continue
            device, gpus = getattr(self, owner).device, getattr(self.resources, name).gpus
            workers = self.train.num_workers if name == "train" else 0
            if workers and gpus:
                raise ValueError(
                    f"resources.train.gpus={gpus:g} and train.num_workers={workers} contradict "
                    "each other: the workers ask for their own GPUs; set resources.train.gpus=0"
                )
            if device == "cuda" and not gpus and not workers:
                raise ValueError(
                    f"{owner}.device=cuda, but resources.{name}.gpus=0; set resources.{name}.gpus=1"
                )
            if device == "cpu" and gpus:
                raise ValueError(
                    f"resources.{name}.gpus={gpus:g}, but {owner}.device=cpu would leave it idle; "
                    f"set {owner}.device=cuda"
                )
        return self


def bench_of(stages: Iterable[Stage], papers: Sequence[Paper]) -> type[Bench]:
    """The settings of a preset over these stages and papers."""
    resources = create_model(
        "StageResources",
        __base__=Settings,
        __doc__="Resources by stage.",
        **{stage.name: _field(Resources, f"of {stage.name} nodes") for stage in stages},
    )
    sections = {
        name: _field(kind, of) for paper in papers for name, (kind, of) in paper.sections.items()
    }
    made = create_model(
        "Bench", __base__=Bench, **sections, resources=_field(resources, "of nodes, by stage")
    )
    made.papers = tuple(papers)
    made.devices = {**Bench.devices, **{k: v for paper in papers for k, v in paper.devices.items()}}
    return made


def _field(kind: type[Settings], description: str) -> tuple[type[Settings], Any]:
    return kind, Field(kind(), description=description)
