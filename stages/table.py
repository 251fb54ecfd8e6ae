"""All stages and recipes, and the settings of a preset: what the composition root hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from pipeline.graph import Node
from pipeline.stage import Catalog, Resources, Settings, Stage
from stages import (
    calibrate,
    checkpoint,
    combined_nodes,
    csflow_nodes,
    densities,
    diagnose,
    draw,
    embed,
    evaluate,
    external,
    extract,
    fit,
    icr_nodes,
    lipschitz,
    prepare,
    report,
    risk,
    sample,
    scan,
    solving,
    spectrum,
    stein_nodes,
    teach,
    train,
    training_nodes,
    wavelet_nodes,
    weights,
)
from stages.combined_nodes import CombinedOptions
from stages.csflow_nodes import CSFlowOptions, spectrum_nodes
from stages.diagnose import DiagnoseOptions
from stages.evaluate import EvaluateSettings
from stages.extract import ExtractorOptions
from stages.icr_nodes import ICROptions
from stages.methods import table
from stages.prepare import PrepareSettings
from stages.report import ReportSettings
from stages.sample import SampleOptions, SampleSettings
from stages.scan import ScanPreset
from stages.scoring_nodes import (
    Evaluation,
    external_nodes,
    extractor_nodes,
    scored,
    settings_of,
)
from stages.spectrum import SpectrumSettings
from stages.stein_nodes import SteinOptions, runnable
from stages.templates import seed_suffix
from stages.train import TrainOptions, TrainSettings
from stages.training_nodes import ComparisonOptions, TeacherOptions, needs_teacher, teacher_nodes
from stages.wavelet_nodes import WaveletOptions

STAGES = {
    stage.name: stage
    for stage in (
        prepare.STAGE,
        extract.STAGE,
        embed.STAGE,
        external.STAGE,
        teach.STAGE,
        train.STAGE,
        diagnose.STAGE,
        spectrum.STAGE,
        checkpoint.STAGE,
        sample.STAGE,
        calibrate.STAGE,
        lipschitz.STAGE,
        evaluate.STAGE,
        fit.STAGE,
        risk.STAGE,
        draw.STAGE,
        scan.STAGE,
        report.STAGE,
    )
}


class SampleSweep(SampleOptions):
    """How samples are made, and over which solvers and NFE on the last checkpoint."""

    solvers: tuple[table.choice("solver", table.SOLVERS), ...] = Field(
        ("euler", "heun", "dpmpp2m"), description="solvers compared over nfes"
    )
    nfes: tuple[int, ...] = Field(
        (5, 10, 20),
        min_length=1,
        description="network evaluations compared; a solver that takes an odd number only runs at "
        "the odd number just below an even one",
    )
    solver_grids: dict[
        table.choice("solver", table.SOLVERS),
        table.choice("grid", table.GRIDS | table.DENSITY_GRIDS),
    ] = Field(
        {"heun": "edm"},
        description="grids of swept solvers that need their own: Heun amplifies errors at the "
        "long first step of a grid uniform in t",
    )
    sweep_samples: int = Field(
        1000, ge=1, le=10**7, description="samples of each set compared over solvers and NFE"
    )
    checkpoint_solver: table.choice("solver", table.SOLVERS | table.SDE) | None = Field(
        None,
        description="solver of the samples that are scored over training steps; sde with "
        "checkpoint_nfe=250 is the papers' own; unset is solver",
    )
    checkpoint_nfe: int | None = Field(
        None, ge=1, le=10_000, description="their network evaluations; unset is nfe"
    )
    num_seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="seeds of the samples of every checkpoint, counted from the run's own; with "
        "several, scores are means and their errors are of the seeds",
    )
    reference_nfe: int = Field(
        100, ge=2, le=10_000, description="evaluations of the samples trajectory_rms refers to"
    )

    @model_validator(mode="after")
    def _nfes_fit(self) -> SampleSweep:
        if min(self.nfes) < 1:
            raise ValueError(f"nfes has {min(self.nfes)}; an NFE is at least 1")
        if self.solver in table.SDE:
            raise ValueError(
                "solver=sde cannot be every sample node's: recipes compare solvers of the ODE; set "
                "sample.checkpoint_solver=sde for the samples over training steps"
            )
        self._check_checkpoints()
        if self.correction != "none" or self.solver in table.FITTED_SOLVERS:
            name = "solver" if self.solver in table.FITTED_SOLVERS else "correction"
            raise ValueError(
                f"{name}={getattr(self, name)} cannot be every sample node's: recipes compare "
                f"corrections beside the plain solvers; leave sample.{name} unset, and choose in "
                f"stein.{'fitted' if name == 'solver' else 'corrections'}"
            )
        if max(self.nfes) >= self.reference_nfe:
            raise ValueError(
                f"nfes reaches {max(self.nfes)}, not below reference_nfe={self.reference_nfe}; "
                "raise sample.reference_nfe, or lower sample.nfes"
            )
        return self

    def _check_checkpoints(self) -> None:
        """Raise ValueError where checkpoints cannot be sampled as asked."""
        if not (changed := self.of_checkpoints()):
            return
        try:
            self.options(**changed)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            words = problem.get("ctx", {}).get("error", problem["msg"])
            raise ValueError(f"samples over training steps: {words}") from error

    def of_checkpoints(self) -> dict[str, object]:
        """Settings of the samples over training steps that are not those of the others."""
        found: dict[str, object] = {}
        if self.checkpoint_solver is not None:
            found["solver"] = self.checkpoint_solver
            found["grid"] = solving.UNIFORM
            if self.checkpoint_solver not in table.SDE:
                found["grid"] = self.grid_of(self.checkpoint_solver)
        if self.checkpoint_nfe is not None:
            found["nfe"] = self.checkpoint_nfe
        return found

    def nfes_of(self, solver: str) -> tuple[int, ...]:
        """The NFE this solver is run at, ascending."""
        return runnable(solver, self.nfes)

    @property
    def grids_in_use(self) -> tuple[str, ...]:
        """Every grid that these settings name."""
        return (self.grid, *self.solver_grids.values())

    def grid_of(self, solver: str) -> str:
        """The grid this solver is swept on."""
        return self.solver_grids.get(solver, self.grid)

    def options(self, **changes: object) -> SampleSettings:
        """The settings of one sample node."""
        chosen = {name: getattr(self, name) for name in SampleOptions.model_fields} | changes
        kinds = densities.of_grids([chosen["grid"]])
        return SampleSettings(**chosen | {"density": chosen["density"].read_by(kinds)})


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

    seed: int = Field(0, ge=0, description="of all randomness but the data's split")
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
    hints: dict[str, float] = Field(
        {},
        description="seconds a node may take until one was measured, by how its name begins; the "
        "longest beginning counts",
    )

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


def _spectrum_input(kind: str) -> dict[str, str]:
    """The input of a node whose density or grid is of this kind."""
    return {"spectrum": "spectrum"} if densities.needs_spectrum(kind) else {}


def _with_needed(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, with the teacher and every spectrum that one of them reads."""
    read = {slot for node in nodes for slot in node.inputs}
    spectra = dict.fromkeys(n.inputs["spectrum"] for n in nodes if "spectrum" in n.inputs)
    return [
        *nodes,
        *(teacher_nodes(bench) if "teacher" in read else ()),
        *(node for name in spectra for node in spectrum_nodes(bench, name)),
    ]


def prepare_nodes(bench: Bench) -> list[Node]:
    """The data set."""
    return [Node("prepare", prepare.STAGE, bench.data, resources=bench.resources.prepare)]


def train_nodes(bench: Bench) -> list[Node]:
    """The trainings."""
    settings = TrainSettings(**_fields(bench.train), seed=bench.seed, live=bench.scan.watch())
    return [
        Node(
            f"train/{settings.method}",
            train.STAGE,
            settings,
            inputs={"data": "prepare"}
            | _spectrum_input(settings.density.kind)
            | needs_teacher(settings.method),
            resources=bench.resources.train,
            tags={"method": settings.method},
        )
    ]


def checkpoint_nodes(bench: Bench, method: str) -> list[Node]:
    """Samples of every checkpoint, from one or several seeds, and their scores over training
    steps."""
    seeds = range(bench.seed, bench.seed + bench.sample.num_seeds)
    nodes = [
        _sample_node(
            bench,
            method,
            f"step{step}{seed_suffix(bench, seed)}",
            step=step,
            seed=seed,
            **bench.sample.of_checkpoints(),
        )
        for step in bench.train.kept_steps
        for seed in seeds
    ]
    names = [node.name for node in nodes]
    return [*nodes, _evaluate_node(bench, method, f"evaluate/{method}", names)]


def solver_nodes(bench: Bench, method: str) -> list[Node]:
    """Samples of the last checkpoint over solvers and NFE, and their scores over NFE."""
    count = {"num_samples": bench.sample.sweep_samples}
    reference = _sample_node(bench, method, "reference", nfe=_reference_nfe(bench), **count)
    nodes = [reference]
    for solver in bench.sample.solvers:
        swept = [
            _sample_node(
                bench,
                method,
                f"{solver}-nfe{nfe}",
                solver=solver,
                nfe=nfe,
                grid=bench.sample.grid_of(solver),
                **count,
            )
            for nfe in bench.sample.nfes_of(solver)
        ]
        names = [node.name for node in swept]
        name = f"evaluate/{method}-{solver}"
        nodes += [*swept, _evaluate_node(bench, method, name, names, reference.name, solver)]
    return nodes


def _reference_nfe(bench: Bench) -> int:
    nfe = bench.sample.reference_nfe
    return nfe - (bench.sample.solver in table.ODD_SOLVERS and nfe % 2 == 0)


def _sample_node(bench: Bench, method: str, variant: str, **changes: object) -> Node:
    settings = bench.sample.options(**{"seed": bench.seed} | changes)
    return Node(
        f"sample/{method}-{variant}",
        sample.STAGE,
        settings,
        inputs={"model": f"train/{method}"} | _spectrum_input(settings.grid),
        resources=bench.resources.sample,
        tags={"method": method, "solver": settings.solver, "grid": settings.grid},
    )


def _evaluate_node(
    bench: Bench,
    method: str,
    name: str,
    samples: list[str],
    reference: str | None = None,
    solver: str | None = None,
) -> Node:
    abscissa = "nfe" if reference else "training_step"
    settings = settings_of(EvaluateSettings, bench.evaluate, seed=bench.seed, abscissa=abscissa)
    if reference:
        count = min(settings.num_samples, bench.sample.sweep_samples)
        settings = settings.revised(num_samples=count)
    return Node(
        name,
        evaluate.STAGE,
        settings,
        inputs={"samples": samples} | ({"reference": reference} if reference else {}),
        resources=bench.resources.evaluate,
        tags={
            "method": method,
            "solver": solver or bench.sample.checkpoint_solver or bench.sample.solver,
            "grid": bench.sample.grid_of(solver) if solver else bench.sample.grid,
        },
    )


def report_node(bench: Bench, nodes: Sequence[Node]) -> Node:
    """The report of what all other nodes give."""

    def of(stage: Stage) -> list[str]:
        return [node.name for node in nodes if node.stage is stage]

    inputs = {
        "data": "prepare",
        "extractor": of(extract.STAGE),
        "spectrum": [name for name in of(spectrum.STAGE) if name == "spectrum"],
        "teacher": of(teach.STAGE),
        "training": of(train.STAGE),
        "diagnoses": of(diagnose.STAGE),
        "scores": of(evaluate.STAGE),
        "schedules": of(calibrate.STAGE),
        "lipschitz": of(lipschitz.STAGE),
        "samples": icr_nodes.shown_samples(nodes) + of(external.STAGE),
        "risks": of(risk.STAGE),
        "drawn": of(draw.STAGE),
        "scans": of(scan.STAGE),
    }
    return Node("report", report.STAGE, bench.report, inputs, bench.resources.report)


def _fields(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in type(settings).model_fields}


def full(bench: Bench) -> list[Node]:
    """Everything: data, extractor, trainings, samples over steps and over solvers, scores,
    report."""
    method = bench.train.method
    nodes = [
        *prepare_nodes(bench),
        *extractor_nodes(bench),
        *train_nodes(bench),
        *checkpoint_nodes(bench, method),
        *solver_nodes(bench, method),
    ]
    if bench.evaluate.path is not None:
        nodes += external_nodes(bench)
    if bench.maskalign.in_full:
        nodes += training_nodes.full_nodes(bench, nodes)
    if bench.stein.in_full:
        nodes += stein_nodes.full_nodes(bench, nodes)
    if bench.csflow.in_full:
        nodes += csflow_nodes.full_nodes(bench, nodes)
    if bench.combined.in_full and bench.csflow.in_full:
        nodes += combined_nodes.full_nodes(bench, nodes)
    if bench.wavelet.in_full:
        nodes += wavelet_nodes.full_nodes(bench, nodes)
    if bench.icr.in_full:
        nodes += icr_nodes.full_nodes(bench)
    nodes = _with_needed(bench, nodes)
    return [*nodes, report_node(bench, nodes)]


def evaluation(bench: Bench) -> list[Node]:
    """Samples made elsewhere: their scores under the preset's protocol, and a report."""
    nodes = [*prepare_nodes(bench), *extractor_nodes(bench), *external_nodes(bench)]
    return [*nodes, report_node(bench, nodes)]


def training(bench: Bench) -> list[Node]:
    """Training in depth: every method from several seeds, MaskAlign's parts taken away."""
    # Latents would have to be decoded before they could be scored.
    scored = [] if bench.data.latent else extractor_nodes(bench)
    templates = [*train_nodes(bench), *checkpoint_nodes(bench, bench.train.method)]
    compared = training_nodes.compared_nodes(bench, templates, with_scores=bool(scored))
    nodes = [*prepare_nodes(bench), *scored, *compared]
    nodes = _with_needed(bench, nodes)
    report = report_node(bench, nodes)
    shown = training_nodes.shown_samples(bench, nodes)
    return [*nodes, replace(report, inputs={**report.inputs, "samples": shown})]


def csflow(bench: Bench) -> list[Node]:
    """CSFlow in depth: its grid beside others', several mixes, fine-tuning, several seeds."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench), *train_nodes(bench)]
    compared = csflow_nodes.compared_nodes(bench, [*base, *solver_nodes(bench, bench.train.method)])
    nodes = _with_needed(bench, [*base, *compared])
    report = report_node(bench, nodes)
    shown = csflow_nodes.shown_samples(bench, nodes)
    return [*nodes, replace(report, inputs={**report.inputs, "samples": shown})]


def icr(bench: Bench) -> list[Node]:
    """The memorisation warning in depth: several seeds, all checkpoints, networks given by path."""
    nodes = [*prepare_nodes(bench), *extractor_nodes(bench), *icr_nodes.recipe_nodes(bench)]
    return [*nodes, report_node(bench, nodes)]


def wavelet(bench: Bench) -> list[Node]:
    """Wavelet scores in depth: all families and degrees, on photographs too, and their samples."""
    nodes = [*prepare_nodes(bench), *train_nodes(bench)]
    nodes = _with_needed(bench, [*nodes, *wavelet_nodes.recipe_nodes(bench, nodes)])
    return [*nodes, report_node(bench, nodes)]


def stein(bench: Bench) -> list[Node]:
    """Few-step solvers in depth: all solvers, all corrections, several seeds, contractivity."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench)]
    trained = train_nodes(bench) if bench.stein.checkpoint is None else []
    templates = solver_nodes(bench, bench.train.method)
    nodes = [*base, *trained, *stein_nodes.compared_nodes(bench, templates)]
    nodes = _with_needed(bench, nodes)
    report = report_node(bench, nodes)
    shown = stein_nodes.shown_samples(bench, nodes)
    return [*nodes, replace(report, inputs={**report.inputs, "samples": shown})]


def _hint(hints: Mapping[str, float], name: str) -> float | None:
    """Seconds under the longest beginning of a node's name."""
    found = [key for key in hints if name.startswith(key)]
    return hints[max(found, key=len)] if found else None


def hinted(recipe: Callable[[Bench], list[Node]]) -> Callable[[Bench], list[Node]]:
    """The recipe, each node with the preset's hint of its time."""

    def build(bench: Bench) -> list[Node]:
        return [replace(node, hint_seconds=_hint(bench.hints, node.name)) for node in recipe(bench)]

    return build


RECIPES = {
    name: hinted(scored(recipe))
    for name, recipe in (
        ("full", full),
        ("train", training),
        ("evaluate", evaluation),
        ("csflow", csflow),
        ("stein", stein),
        ("icr", icr),
        ("wavelet", wavelet),
    )
}

# The headline numbers of stages, for sweeps that name one.
METRICS = {
    "prepare": ("num_train", "num_test"),
    "extractor": ("accuracy", "train_accuracy", "distance_monotone"),
    "train": ("loss/*", "gradient_norm"),
    "evaluate": (
        *("fid", "fid_infinity", "kid", "sfid", "inception_score", "precision", "recall"),
        *("density", "coverage", "memorization_ratio", "trajectory_rms"),
    ),
    "calibrate": ("gamma_min", "gamma_max", "num_steps"),
    "lipschitz": ("lipschitz_mean", "lipschitz_max"),
    "fit": ("num_images", "features"),
    "risk": ("denoising_mse_sigma_*",),
    "scan": (
        "icr",
        "icr_*",
        "probe_accuracy*",
        "alarm_step",
        "memorization_*",
        "fid",
        "denoising_mse",
    ),
    "sample": (),
    "features": (),
    "draw": (),
    "report": (),
}

CATALOG = Catalog(
    settings=Bench,
    stages=STAGES,
    recipes=RECIPES,
    presets=Path(__file__).parent / "presets",
    default_preset="digits",
    exclude_sources=frozenset({"stages.table", "stages.methods.table", "stages.methods.slots"}),
    weights=weights.CATALOG,
    metrics=METRICS,
    packages=("torch", "numpy", "scipy", "scikit-learn", "safetensors", "pyarrow", "ray"),
    compare_scores="stages.compared_scores:lines",
    compare_page="stages.comparison:compared",
    report_timed="stages.sections.timed:section",
)
