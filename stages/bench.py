"""The settings of a preset: what every stage and recipe of the bench can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pipeline.errors import nearest
from pipeline.stage import Resources, Settings
from stages.data.prepare import PrepareSettings
from stages.papers.combined.options import CombinedOptions
from stages.papers.csflow.options import CSFlowOptions
from stages.papers.csflow.spectrum import SpectrumSettings
from stages.papers.icr.options import ICROptions, ScanPreset
from stages.papers.maskalign.diagnose import DiagnoseOptions
from stages.papers.maskalign.options import ComparisonOptions, TeacherOptions
from stages.papers.stein.options import SteinOptions
from stages.papers.wavelet.options import WaveletOptions
from stages.report.report import ReportSettings
from stages.sampling.sweep import SampleSweep
from stages.scoring.evaluate import Evaluation
from stages.settings.extractors import ExtractorOptions
from stages.training.train import TrainOptions


class StageResources(Settings):
    """Resources by stage."""

    prepare: Resources = Field(Resources(), description="of prepare")
    extractor: Resources = Field(Resources(), description="of extractor")
    features: Resources = Field(Resources(), description="of features nodes")
    external: Resources = Field(Resources(), description="of external")
    teach: Resources = Field(Resources(), description="of teach")
    train: Resources = Field(Resources(), description="of train nodes")
    diagnose: Resources = Field(Resources(), description="of diagnose nodes")
    spectrum: Resources = Field(Resources(), description="of spectrum")
    checkpoint: Resources = Field(Resources(), description="of checkpoint nodes")
    sample: Resources = Field(Resources(), description="of sample nodes")
    calibrate: Resources = Field(Resources(), description="of calibrate nodes")
    lipschitz: Resources = Field(Resources(), description="of lipschitz nodes")
    evaluate: Resources = Field(Resources(), description="of evaluate nodes")
    fit: Resources = Field(Resources(), description="of fit nodes")
    risk: Resources = Field(Resources(), description="of risk nodes")
    draw: Resources = Field(Resources(), description="of draw nodes")
    scan: Resources = Field(Resources(), description="of scan nodes")
    report: Resources = Field(Resources(), description="of report")


class Bench(Settings):
    """Everything a preset holds."""

    # torch takes seeds below 2^64, and those of nodes count on from this one.
    seed: int = Field(0, ge=0, lt=2**62, description="of all randomness but the data's split")
    data: PrepareSettings = Field(PrepareSettings(), description="the data set")
    extractor: ExtractorOptions = Field(
        ExtractorOptions(), description="the network whose features score samples"
    )
    teach: TeacherOptions = Field(
        TeacherOptions(), description="the teacher that REPA, REG and MaskAlign align with"
    )
    train: TrainOptions = Field(TrainOptions(), description="training")
    maskalign: ComparisonOptions = Field(
        ComparisonOptions(), description="what MaskAlign is compared with"
    )
    diagnose: DiagnoseOptions = Field(
        DiagnoseOptions(), description="where alignment gradients fall, and what masks do to them"
    )
    spectrum: SpectrumSettings = Field(
        SpectrumSettings(), description="the data's power spectrum, which CSFlow starts from"
    )
    sample: SampleSweep = Field(SampleSweep(), description="sampling")
    csflow: CSFlowOptions = Field(CSFlowOptions(), description="what CSFlow is compared with")
    combined: CombinedOptions = Field(
        CombinedOptions(), description="the methods put together, beside each alone"
    )
    wavelet: WaveletOptions = Field(WaveletOptions(), description="wavelet scores")
    stein: SteinOptions = Field(
        SteinOptions(), description="corrected solvers, and how contractive steps are"
    )
    scan: ScanPreset = Field(ScanPreset(), description="views of which the ICR is taken")
    icr: ICROptions = Field(ICROptions(), description="the trainings whose ICR is scanned")
    evaluate: Evaluation = Field(Evaluation(), description="scores")
    report: ReportSettings = Field(ReportSettings(), description="the HTML report")
    resources: StageResources = Field(StageResources(), description="of nodes, by stage")
    hints: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {},
        description="seconds a node may take until one was measured, by how its name begins; the "
        "longest beginning counts",
    )

    @field_validator("hints")
    @classmethod
    def _hints_meet_nodes(cls, hints: dict[str, float]) -> dict[str, float]:
        """Names of nodes begin with their stage's; recipes differ in what follows."""
        stages = tuple(StageResources.model_fields)
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
        size, network = self.data.image_size, self.train.network
        if size is not None and size % (unit := network.divisor):
            name = (
                f"patch={unit}" if network.kind == "sit" else f"multipliers (a division by {unit})"
            )
            raise ValueError(
                f"train.network.{name} does not divide the images' side of {size} pixels; "
                f"change it, or set data.size to a multiple such as {(size // unit + 1) * unit}"
            )
        return self

    @model_validator(mode="after")
    def _guidance_fits(self) -> Bench:
        """Guidance needs what label dropout trains; networks made elsewhere are known when read."""
        train, scale = self.train, self.sample.guidance
        if scale == 1 or self.stein.checkpoint is not None:
            return self
        if not train.conditional:
            raise ValueError(
                f"sample.guidance={scale:g} and train.conditional=false contradict each other: "
                "guidance is towards a class; set sample.guidance=1, or train.conditional=true"
            )
        if not 0 < train.label_dropout < 1:
            raise ValueError(
                f"sample.guidance={scale:g} and train.label_dropout={train.label_dropout:g} "
                "contradict each other: guidance needs a network trained with and without "
                "classes; set train.label_dropout=0.1, say, or sample.guidance=1"
            )
        return self

    @model_validator(mode="after")
    def _devices_fit(self) -> Bench:
        owners = {"features": "extractor", "calibrate": "sample", "lipschitz": "sample"}
        for name in ("extractor", "teach", "train", "diagnose", "sample", "scan", *owners):
            owner = owners.get(name, name)
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
