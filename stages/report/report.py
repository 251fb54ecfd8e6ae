"""The stage `report`: everything a run found, as one HTML file and one file a figure."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.publish import MARKER, PAGE
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages.artifacts.data import Data
from stages.artifacts.extractor import Extractor
from stages.artifacts.features import FeatureSet
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.samples import Samples
from stages.artifacts.scores import Row, Scores
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.teacher import Teacher
from stages.pages.findings import counted
from stages.pages.made import Made
from stages.report import claims, elsewhere, extractor, neighbours, overview, training
from stages.report import scores as score_section
from stages.scoring.evaluate import NO_NEIGHBOURS


class ReportOptions(Settings):
    """What the report says of itself."""

    title: str = Field("Diffusion bench", description="the report's title")


class ReportSettings(ReportOptions):
    """What stands in the report, by the papers that there are."""

    sections: tuple[str, ...] = Field((), description="module:function of each paper's sections")
    claims: tuple[str, ...] = Field((), description="module:function of each paper's claims")
    key_figures: tuple[str, ...] = Field(
        (), description="pattern of the name of the figure that stands for each paper with claims"
    )
    apart: tuple[str, ...] = Field(
        (), description="beginnings of evaluations that only a paper's own section shows"
    )


class Report(Artifact):
    """`report.html`, `figures/*.svg`, `claims.json`, and `tables/*.json` as MLflow shows them."""

    tracked = ("figures/*.svg", "claims.json")
    tables = ("tables/*.json",)


def run(context: Context) -> Result:
    """Write the report of what the inputs hold; inputs that are missing are left out."""
    from stages.pages.figures import as_files
    from stages.pages.page import page

    settings, data = context.settings, context.inputs.get("data")
    made = Made(context.inputs, settings.apart)
    scores = made.scores
    papers = [list(resolve(place)(made)) for place in settings.claims]
    findings = [finding for found in papers for finding in found]
    sections = list(_sections(made, settings.sections))
    figures = [one for section in sections for one in (*section.figures, *section.panels)]
    keys = overview.by_method(papers, settings.key_figures or [""] * len(papers))
    first = overview.section(findings, keys, sections, context.inputs.get("samples", {}))
    sections = [first, claims.section(findings), *sections]
    lead = html.escape(_lead(data)) if data is not None else ""
    text = page(settings.title, lead, sections, MARKER)
    (context.path / PAGE).write_text(text, encoding="utf-8")
    folder = context.path / "figures"
    folder.mkdir()
    for name, svg in as_files(figures).items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    claims.write(context.path, findings)
    _write_tables(context.path / "tables", {"claims": claims.table(findings)}, scores)
    context.log(f"{len(sections)} sections, {len(figures)} figures, {len(text) / 2**20:.2f} MiB")
    verdicts = {f"claims/{k.replace(' ', '_')}": n for k, n in counted(findings).items()}
    return Result(metrics={"figures": len(figures)} | verdicts)


def _write_tables(
    folder: Path, tables: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]
) -> None:
    folder.mkdir()
    if scores:
        tables = {**tables, "scores": score_section.table_of(scores)}
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")


def _lead(data: Data) -> str:
    facts = data.description
    return (
        f"Data set {facts['name']}: {facts['num_train']} training images and "
        f"{facts['num_test']} held-out images of {' x '.join(map(str, facts['shape']))} "
        "(channels, height, width)."
    )


def _sections(made: Made, papers: Sequence[str]) -> Iterator[Any]:
    inputs, scores = made.inputs, made.scores
    if scores:
        settings = [artifact.settings for artifact in inputs["scores"].values()]
        without = any(one.get("neighbours") == 0 for one in settings)
        yield score_section.overview(scores, NO_NEIGHBOURS if without else "")
    by_step = {
        name: rows for name, rows in scores.items() if len({row.training_step for row in rows}) > 1
    }
    yield from elsewhere.sections(inputs)
    yield from training.sections(inputs, by_step)
    for place in papers:
        yield from resolve(place)(made)
    if inputs.get("samples"):
        yield _pictures(inputs["samples"])
    yield from neighbours.sections(inputs, scores)
    yield from extractor.sections(inputs)


def _pictures(samples: Mapping[str, Samples]) -> Any:
    from stages.pages.page import Picture, Section

    shown, more = [], []
    for name, artifact in samples.items():
        facts = artifact.description
        caption = (
            f"{name.partition('/')[2] or name}: {facts['solver']}, {facts['nfe']} evaluations, "
            f"training step {facts['training_step']}, seed {facts['seed']}, samples 0 to 99"
            if facts["nfe"]
            else f"{name}: made elsewhere, the first 100"
        )
        picture = Picture(caption, (artifact.path / "grid.png").read_bytes())
        # Grids along a training, and of samples from elsewhere, are shown unfolded.
        (shown if "-step" in name or "/" not in name else more).append(picture)
    text = (
        "<p>The same place in every grid is the same noise and the same class; nothing is "
        "selected.</p>"
    )
    return Section("Samples", text, pictures=shown or more, more=more if shown else ())


STAGE = Stage(
    name="report",
    settings=ReportSettings,
    output=Report,
    run="stages.report.report:run",
    inputs={
        "data": Input(Data, optional=True),
        "extractor": Input(Extractor, optional=True),
        "spectrum": Input(Spectrum, optional=True),
        "teacher": Input(Teacher, many=True),
        "training": Input(TrainedNetwork, many=True),
        "given": Input(TrainedNetwork, many=True),
        "scores": Input(Scores, many=True),
        "samples": Input(Samples, many=True),
        "features": Input(FeatureSet, many=True),
        "papers": Input(Artifact, many=True),
    },
    sources=lambda settings: (*settings.sections, *settings.claims),
    metrics=lambda node: ("figures", "claims/*"),
)
