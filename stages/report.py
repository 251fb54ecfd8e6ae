"""The stage `report`: everything a run found, as one HTML file and one file a figure."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.publish import MARKER, PAGE
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.embed import FeatureSet
from stages.extract import Extractor
from stages.powerspectrum import Spectrum
from stages.prepare import Data
from stages.sample import Samples
from stages.scores import Row, Scores
from stages.sections import csflow
from stages.train import TrainedNetwork

# Scores of the overview, in this order, where a set has them.
OVERVIEW = ("fid", "fid_infinity", "kid", "precision", "recall", "memorization_ratio")


class ReportSettings(Settings):
    """What the report says of itself."""

    title: str = Field("Diffusion bench", description="the report's title")


class Report(Artifact):
    """`report.html` and `figures/*.svg`."""

    tracked = ("figures/*.svg",)


def run(context: Context) -> Result:
    """Write the report of what the inputs hold; inputs that are missing are left out."""
    from stages.page import page

    inputs = context.inputs
    data = inputs.get("data")
    sections = list(_sections(inputs))
    lead = html.escape(_lead(data)) if data is not None else ""
    text = page(context.settings.title, lead, sections, MARKER)
    (context.path / PAGE).write_text(text)
    folder = context.path / "figures"
    folder.mkdir()
    figures = [figure for section in sections for figure in section.figures]
    for figure in figures:
        # Beside a page's text the ink follows it; a file of its own needs a colour.
        (folder / f"{figure.name}.svg").write_text(figure.svg.replace("currentColor", "#444444"))
    context.log(f"{len(sections)} sections, {len(figures)} figures, {len(text) / 2**20:.2f} MiB")
    return Result(metrics={"figures": len(figures)})


def _lead(data: Data) -> str:
    facts = data.description
    return (
        f"Data set {facts['name']}: {facts['num_train']} training images and "
        f"{facts['num_test']} held-out images of {' x '.join(map(str, facts['shape']))} "
        "(channels, height, width)."
    )


def _sections(inputs: Mapping[str, Any]) -> Iterator[Any]:
    scores = {name: artifact.load() for name, artifact in inputs.get("scores", {}).items()}
    by_step = {name: rows for name, rows in scores.items() if _varies(rows, "training_step")}
    by_nfe = {name: rows for name, rows in scores.items() if name not in by_step}
    if scores:
        yield _overview(scores)
    if inputs.get("training"):
        yield _training(inputs["training"], by_step)
    if by_nfe:
        yield _few_steps(csflow.without_densities(by_nfe))
    yield from csflow.sections(inputs, by_nfe)
    if inputs.get("samples"):
        yield _pictures(inputs["samples"])


def _varies(rows: Sequence[Row], name: str) -> bool:
    return len({getattr(row, name) for row in rows}) > 1


def _overview(scores: Mapping[str, Sequence[Row]]) -> Any:
    """The last set of every curve, each score with its error; the protocol in words."""
    from stages.page import Section, table, with_error

    lines = [("curve", "training step", "solver", "NFE", *OVERVIEW)]
    for name, rows in scores.items():
        last = rows[-1]
        found = {row.score.metric: row.score for row in rows if row.node == last.node}
        cells = [
            with_error(found[metric].value, found[metric].error) if metric in found else ""
            for metric in OVERVIEW
        ]
        lines.append((name, last.training_step, last.solver, last.nfe, *cells))
    return Section("Scores", _protocols(scores), [table(lines)])


def _protocols(scores: Mapping[str, Sequence[Row]]) -> str:
    found = {row.score.protocol: row.score for rows in scores.values() for row in rows}
    floors = {
        row.score.protocol: row.score.floor
        for rows in scores.values()
        for row in rows
        if row.score.metric == "fid"
    }
    lines = [
        f"<p>Protocol <b>{html.escape(p.name)}</b>: {p.num_samples} samples against "
        f"{p.num_reference} of the {html.escape(p.reference)}, features of "
        f"{html.escape(p.extractor)} (weights {html.escape(p.extractor_hash[:12])}), resize "
        f"{html.escape(p.resize)}. Two sets of real images of the same sizes are "
        f"{floors.get(p, float('nan')):.3g} apart in FID: the floor. "
        "± is one standard error by the jackknife over samples of one training seed; "
        "it does not hold the spread over seeds.</p>"
        for p in found
    ]
    return "".join(lines)


def _training(training: Mapping[str, TrainedNetwork], by_step: Mapping[str, Any]) -> Any:
    """Losses over steps, FID over steps, and what a step costs."""
    from stages.figures import Axes, Curve, plot
    from stages.page import Section, table

    losses: dict[str, list[Any]] = {}
    for name, artifact in training.items():
        for metric, steps, values in _curves(artifact):
            if metric.startswith("loss/"):
                losses.setdefault(metric, []).append(Curve(name, steps, values))
    figures = [
        plot(
            metric.replace("/", "-"),
            f"Training: {metric}, mean over the logging window.",
            curves,
            Axes("training step", metric, log_y=all(min(c.y) > 0 for c in curves)),
        )
        for metric, curves in losses.items()
    ]
    if by_step:
        figures.append(
            _score_plot("fid-over-steps", by_step, "fid", "training_step", "training step")
        )
    return Section("Training", "", [table(_costs(training))], figures)


def _curves(artifact: Artifact) -> Iterator[tuple[str, list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for metric, step, value in artifact.curves():
        steps, values = found.setdefault(metric, ([], []))
        steps.append(step)
        values.append(value)
    for metric, (steps, values) in found.items():
        yield metric, steps, values


def _costs(training: Mapping[str, TrainedNetwork]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [("training", "method", "steps", "parameters", "batch size")]
    for name, artifact in training.items():
        facts, settings = artifact.description, artifact.settings
        rows.append(
            (name, facts["method"], facts["steps"][-1], facts["parameters"], settings["batch_size"])
        )
    return rows


def _score_plot(
    name: str, scores: Mapping[str, Sequence[Row]], metric: str, over: str, label: str, **axes: Any
) -> Any:
    from stages.figures import Axes, Curve, plot

    curves = []
    for curve, rows in scores.items():
        found = [row for row in rows if row.score.metric == metric]
        curves.append(
            Curve(
                curve.removeprefix("evaluate/"),
                [getattr(row, over) for row in found],
                [row.score.value for row in found],
                [row.score.error for row in found],
            )
        )
    curves = [curve for curve in curves if curve.x]
    count = next(iter(scores.values()))[0].score.protocol.num_samples
    error = "; bars: one standard error (jackknife)" if any(c.error[0] for c in curves) else ""
    caption = f"{metric} over {label}, {count} samples a point{error}."
    ticks = _apart(sorted({x for curve in curves for x in curve.x}))
    return plot(name, caption, curves, Axes(label, metric, ticks=ticks, **axes))


def _apart(values: Sequence[float]) -> list[float]:
    """Values at least a tenth apart, so that their labels do not overlap."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= 1.1 * kept[-1]:
            kept.append(value)
    return kept


def _few_steps(by_nfe: Mapping[str, Sequence[Row]]) -> Any:
    """Solvers over network evaluations: distance to the model's own fine samples, and FID."""
    from stages.page import Section

    text = (
        "<p>trajectory_rms is the root mean square distance per pixel to the same model's own "
        "sample from the same noise with many evaluations: it tells how well a solver solves. "
        "FID at small scale does not rank solvers.</p>"
    )
    label, axes = "network evaluations (NFE)", {"log_x": True, "log_y": True}
    figures = []
    if any(row.score.metric == "trajectory_rms" for rows in by_nfe.values() for row in rows):
        figures.append(
            _score_plot("trajectory-over-nfe", by_nfe, "trajectory_rms", "nfe", label, **axes)
        )
    figures.append(_score_plot("fid-over-nfe", by_nfe, "fid", "nfe", label, **axes))
    return Section("Few-step sampling", text, (), figures)


def _pictures(samples: Mapping[str, Samples]) -> Any:
    from stages.page import Picture, Section

    shown, more = [], []
    for name, artifact in samples.items():
        facts = artifact.description
        caption = (
            f"{name.removeprefix('sample/')}: {facts['solver']}, {facts['nfe']} evaluations, "
            f"training step {facts['training_step']}, seed {facts['seed']}, samples 0 to 99"
        )
        picture = Picture(caption, (artifact.path / "grid.png").read_bytes())
        (shown if _varies_in_training(name) else more).append(picture)
    text = (
        "<p>The same place in every grid is the same noise and the same class; nothing is "
        "selected.</p>"
    )
    return Section("Samples", text, pictures=shown or more, more=more if shown else ())


def _varies_in_training(name: str) -> bool:
    """Whether a node samples a model along its training: those grids are shown unfolded."""
    return "-step" in name


STAGE = Stage(
    name="report",
    settings=ReportSettings,
    output=Report,
    run="stages.report:run",
    inputs={
        "data": Input(Data, optional=True),
        "extractor": Input(Extractor, optional=True),
        "spectrum": Input(Spectrum, optional=True),
        "training": Input(TrainedNetwork, many=True),
        "scores": Input(Scores, many=True),
        "samples": Input(Samples, many=True),
        "features": Input(FeatureSet, many=True),
    },
)
