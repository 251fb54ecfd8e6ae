"""All stages, papers and recipes: what the composition root hands over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.shown import Chart, Shown
from pipeline.stage import Catalog, resolve
from stages.bench import bench_of
from stages.data import encode, fetch, prepare, spectrum
from stages.encoders import weights
from stages.recipes.complete import completed
from stages.report import report, timed
from stages.sampling import decode, sample
from stages.scoring import evaluate, external, extractor, features, published
from stages.training import checkpoint, teach, train

if TYPE_CHECKING:
    from pipeline.publish import Timed
    from pipeline.results import Run

# A paper is a folder of `stages/papers/` and its name here; the report has them in this order.
PAPERS = tuple(
    resolve(f"stages.papers.{name}.paper:PAPER")
    for name in ("maskalign", "csflow", "stein", "wavelet", "icr", "combined", "beyond")
)

STAGES = {
    stage.name: stage
    for stage in (
        prepare.STAGE,
        encode.STAGE,
        spectrum.STAGE,
        extractor.STAGE,
        features.STAGE,
        external.STAGE,
        teach.STAGE,
        train.STAGE,
        checkpoint.STAGE,
        sample.STAGE,
        decode.STAGE,
        evaluate.STAGE,
        published.STAGE,
        *(stage for paper in PAPERS for stage in paper.stages),
        report.STAGE,
    )
}

Bench = bench_of(STAGES.values(), PAPERS)

RECIPES = {
    name: completed(place)
    for name, place in (
        ("full", "stages.recipes.full:recipe"),
        ("evaluate", "stages.recipes.evaluate:recipe"),
        *(recipe for paper in PAPERS for recipe in paper.recipes.items()),
    )
}


def timed_section(run: Run) -> Timed:
    """What depends on measured times, of all papers."""
    return timed.section(run, PAPERS)


SHOWN = Shown(
    charts=(
        Chart("Samples", "fid", "nfe"),
        Chart("Samples", "fid", "training_step"),
        Chart("Samples", "trajectory_rms", "nfe"),
        Chart("ICR", "icr", "training_step"),
        Chart("ICR", "icr", "sigma_1000"),
        Chart("Losses", "loss/velocity", "training_step"),
        Chart("Losses", "loss/alignment", "training_step"),
        Chart("Losses", "loss/class", "training_step"),
        Chart("Losses", "loss/denoising", "training_step"),
    ),
    constants=("*_floor", "*_seeds", "num_*", "*_num_samples", "features", "ridge"),
    words={"evaluate": "", "published": "published"},
    summary="stages.report.summary:summary",
    models=dict.fromkeys(("train", "checkpoint"), "stages.sampling.drawn:described"),
)

CATALOG = Catalog(
    settings=Bench,
    stages=STAGES,
    recipes=RECIPES,
    presets=Path(__file__).parent / "presets",
    default_preset="digits",
    exclude_sources=frozenset({"stages.catalog", "stages.methods.table"}),
    weights=weights.CATALOG,
    fetches=fetch.FETCHES,
    convert="stages.networks.karras:converted",
    packages=(
        "diffusion-bench",
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
    export="stages.scoring.handed_out:command",
    reference="stages.scoring.made_reference:command",
    report_timed="stages.catalog:timed_section",
    ending="stages.report.summary:ending",
    claims="stages.report.summary:claims_as",
    shown=SHOWN,
)
