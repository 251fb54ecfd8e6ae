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
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.data import Data
from stages.artifacts.diagnosis import Diagnosis
from stages.artifacts.extractor import Extractor
from stages.artifacts.features import FeatureSet
from stages.artifacts.lipschitz import Lipschitz
from stages.artifacts.risks import Risks
from stages.artifacts.samples import Samples
from stages.artifacts.scan import Scan
from stages.artifacts.schedule import Schedule
from stages.artifacts.scores import Row, Scores
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.teacher import Teacher
from stages.pages.findings import counted
from stages.papers.combined import section as combined_section
from stages.papers.combined.claims import is_arm
from stages.papers.csflow import section as csflow_section
from stages.papers.icr import section as icr_section
from stages.papers.stein import section as stein_section
from stages.papers.wavelet import section as wavelet_section
from stages.report import claims, extractor, neighbours, training
from stages.report import scores as score_section
from stages.training.train import TrainedNetwork


class ReportSettings(Settings):
    """What the report says of itself."""

    title: str = Field("Diffusion bench", description="the report's title")


class Report(Artifact):
    """`report.html`, `figures/*.svg`, `claims.json`, and `tables/*.json` as MLflow shows them."""

    tracked = ("figures/*.svg", "claims.json")
    tables = ("tables/*.json",)


def run(context: Context) -> Result:
    """Write the report of what the inputs hold; inputs that are missing are left out."""
    from stages.pages.figures import as_file
    from stages.pages.page import page

    inputs = context.inputs
    data = inputs.get("data")
    scores = {name: artifact.load() for name, artifact in inputs.get("scores", {}).items()}
    found = claims.findings(inputs, scores)
    sections = [claims.section(found), *_sections(inputs, scores)]
    lead = html.escape(_lead(data)) if data is not None else ""
    text = page(context.settings.title, lead, sections, MARKER)
    (context.path / PAGE).write_text(text)
    folder = context.path / "figures"
    folder.mkdir()
    figures = [one for section in sections for one in (*section.figures, *section.panels)]
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text(as_file(figure))
    claims.write(context.path, found)
    _write_tables(context.path / "tables", {"claims": claims.table(found)}, scores)
    context.log(f"{len(sections)} sections, {len(figures)} figures, {len(text) / 2**20:.2f} MiB")
    verdicts = {f"claims/{k.replace(' ', '_')}": n for k, n in counted(found).items()}
    return Result(metrics={"figures": len(figures)} | verdicts)


def _write_tables(
    folder: Path, tables: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]
) -> None:
    folder.mkdir()
    if scores:
        tables = {**tables, "scores": score_section.table_of(scores)}
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table))


def _lead(data: Data) -> str:
    facts = data.description
    return (
        f"Data set {facts['name']}: {facts['num_train']} training images and "
        f"{facts['num_test']} held-out images of {' x '.join(map(str, facts['shape']))} "
        "(channels, height, width)."
    )


def _sections(inputs: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]) -> Iterator[Any]:
    by_step = {name: rows for name, rows in scores.items() if _varies(rows, "training_step")}
    arms = {name: rows for name, rows in scores.items() if is_arm(name)}
    by_nfe = {
        name: rows
        for name, rows in scores.items()
        if inputs["scores"][name].settings["abscissa"] == "nfe" and name not in arms
    }
    if scores:
        yield score_section.overview(scores)
    yield from training.sections(inputs, by_step)
    yield from stein_section.sections(inputs, csflow_section.without_densities(by_nfe))
    yield from csflow_section.sections(inputs, by_nfe)
    yield from wavelet_section.sections(inputs)
    yield from icr_section.sections(inputs)
    yield from combined_section.sections(arms)
    if inputs.get("samples"):
        yield _pictures(inputs["samples"])
    yield from neighbours.sections(inputs, scores)
    yield from extractor.sections(inputs)


def _varies(rows: Sequence[Row], name: str) -> bool:
    return len({getattr(row, name) for row in rows}) > 1


def _pictures(samples: Mapping[str, Samples]) -> Any:
    from stages.pages.page import Picture, Section

    shown, more = [], []
    for name, artifact in samples.items():
        facts = artifact.description
        caption = (
            f"{name.removeprefix('sample/')}: {facts['solver']}, {facts['nfe']} evaluations, "
            f"training step {facts['training_step']}, seed {facts['seed']}, samples 0 to 99"
            if facts["nfe"]
            else f"{facts['method']}: made elsewhere, the first 100"
        )
        picture = Picture(caption, (artifact.path / "grid.png").read_bytes())
        (shown if _stands_out(name) else more).append(picture)
    text = (
        "<p>The same place in every grid is the same noise and the same class; nothing is "
        "selected.</p>"
    )
    return Section("Samples", text, pictures=shown or more, more=more if shown else ())


def _stands_out(name: str) -> bool:
    """Whether a node samples a model along its training, or comes from elsewhere: those grids are
    shown unfolded."""
    return "-step" in name or "/" not in name


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
        "diagnoses": Input(Diagnosis, many=True),
        "scores": Input(Scores, many=True),
        "samples": Input(Samples, many=True),
        "features": Input(FeatureSet, many=True),
        "schedules": Input(Schedule, many=True),
        "lipschitz": Input(Lipschitz, many=True),
        "risks": Input(Risks, many=True),
        "drawn": Input(Samples, many=True),
        "scans": Input(Scan, many=True),
    },
)
