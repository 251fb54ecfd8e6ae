"""All stages and recipes: what the composition root hands over."""

from __future__ import annotations

from pathlib import Path

from pipeline.stage import Catalog
from stages import metrics
from stages.bench import Bench
from stages.data import prepare
from stages.encoders import weights
from stages.papers.csflow import spectrum
from stages.papers.icr import scan
from stages.papers.maskalign import diagnose
from stages.papers.stein import calibrate, lipschitz
from stages.papers.wavelet import draw, fit, risk
from stages.recipes import csflow, evaluate, full, icr, stein, train, wavelet
from stages.recipes.complete import hinted, scored
from stages.report import report
from stages.sampling import sample
from stages.scoring import evaluate as scores
from stages.scoring import external, extractor, features
from stages.training import checkpoint, teach
from stages.training import train as training

STAGES = {
    stage.name: stage
    for stage in (
        prepare.STAGE,
        extractor.STAGE,
        features.STAGE,
        external.STAGE,
        teach.STAGE,
        training.STAGE,
        diagnose.STAGE,
        spectrum.STAGE,
        checkpoint.STAGE,
        sample.STAGE,
        calibrate.STAGE,
        lipschitz.STAGE,
        scores.STAGE,
        fit.STAGE,
        risk.STAGE,
        draw.STAGE,
        scan.STAGE,
        report.STAGE,
    )
}


RECIPES = {
    name: hinted(scored(recipe))
    for name, recipe in (
        ("full", full.recipe),
        ("train", train.recipe),
        ("evaluate", evaluate.recipe),
        ("csflow", csflow.recipe),
        ("stein", stein.recipe),
        ("icr", icr.recipe),
        ("wavelet", wavelet.recipe),
    )
}


CATALOG = Catalog(
    settings=Bench,
    stages=STAGES,
    recipes=RECIPES,
    presets=Path(__file__).parent / "presets",
    default_preset="digits",
    exclude_sources=frozenset({"stages.catalog", "stages.methods.table"}),
    weights=weights.CATALOG,
    metrics=metrics.METRICS,
    curve_steps=metrics.CURVE_STEPS,
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
    compare_scores="stages.report.compare_scores:lines",
    compare_page="stages.report.compare_page:compared",
    report_timed="stages.report.timed:section",
)
