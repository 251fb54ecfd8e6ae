"""All stages and recipes: what the composition root hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.graph import Node
from pipeline.stage import Catalog, Settings, Stage
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
    reported,
    risk,
    sample,
    scan,
    spectrum,
    stein_nodes,
    teach,
    train,
    training_nodes,
    wavelet_nodes,
    weights,
)
from stages.bench import Bench
from stages.csflow_nodes import spectrum_nodes
from stages.evaluate import EvaluateSettings
from stages.methods import table
from stages.scoring_nodes import (
    external_nodes,
    extractor_nodes,
    scored,
    settings_of,
)
from stages.templates import seed_suffix
from stages.train import TrainSettings
from stages.training_nodes import needs_teacher, teacher_nodes

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
    for solver in dict.fromkeys(bench.sample.solvers):
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
    scorers = [] if bench.data.latent else extractor_nodes(bench)
    templates = [*train_nodes(bench), *checkpoint_nodes(bench, bench.train.method)]
    compared = training_nodes.compared_nodes(bench, templates, with_scores=bool(scorers))
    nodes = [*prepare_nodes(bench), *scorers, *compared]
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

CATALOG = Catalog(
    settings=Bench,
    stages=STAGES,
    recipes=RECIPES,
    presets=Path(__file__).parent / "presets",
    default_preset="digits",
    exclude_sources=frozenset({"stages.table", "stages.methods.table"}),
    weights=weights.CATALOG,
    metrics=reported.METRICS,
    curve_steps=reported.CURVE_STEPS,
    packages=(
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "scipy",
        "scikit-learn",
        "safetensors",
        "pyarrow",
        "ray",
    ),
    compare_scores="stages.compared_scores:lines",
    compare_page="stages.comparison:compared",
    report_timed="stages.sections.timed:section",
)
