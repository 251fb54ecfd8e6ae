"""What measured times say: they differ from run to run, so they are no part of an artifact and
stand with the run itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamagedArtifactError
from pipeline.publish import Timed
from pipeline.stage import resolve
from stages.pages.curves import STEP, grouped, mean_curve
from stages.pages.figures import as_files
from stages.pages.page import figure, table
from stages.report import claims

if TYPE_CHECKING:
    from pipeline.results import Run
    from stages.pages.page import Figure
    from stages.paper import Paper

TIMING = "step_seconds"


def section(run: Run, papers: Sequence[Paper]) -> Timed:
    """The claims about time and the trainings' speed, from what nodes measured."""
    seconds, training, spans = {}, {}, {}
    for name in run:
        manifest = run[name].manifest
        if manifest is not None:
            spans[name] = manifest
        rows = manifest.timings.get(TIMING) if manifest is not None else None
        if isinstance(rows, list) and rows:
            try:
                training[name] = run[name].artifact
            except DamagedArtifactError:
                continue
            seconds[name] = [float(value) for _, value in rows]
    places = [paper.timed for paper in papers if paper.timed]
    findings = [finding for place in places for finding in resolve(place)(seconds, spans)]
    parts = ["<h3>Claims about time</h3>", claims.table_of(findings)] if findings else []
    figures = [speeds(training)] if training else []
    if training:
        parts += ["<h3>Speed of the trainings</h3>", table(costs(training))]
        parts += map(figure, figures)
    return Timed("".join(parts), as_files(figures))


def speeds(training: Mapping[str, Any]) -> Figure:
    """What a step took, over training steps."""
    from stages.pages.figures import Axes, plot

    curves = []
    for name, artifacts in grouped(training).items():
        many = [
            [(step, 1000 * seconds) for step, seconds in artifact.manifest.timings[TIMING]]
            for artifact in artifacts
        ]
        curves.append(mean_curve(name, many))
    caption = (
        "What a training step took, mean over the logging window and over seeds, the teacher's "
        "features stored beforehand unless teach.mode is online. Other work on the machine is in "
        "it."
    )
    return plot("step-time", caption, curves, Axes(STEP, "milliseconds a step", log_y=True))


def costs(training: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Rows of a table: median milliseconds a step, tokens a second, steps in REG's, and the share
    of the time that was spent waiting for data."""
    heading = ("ms a step (median)", "tokens a second", "step / REG's", "share waiting for data")
    lines: list[tuple[Any, ...]] = [("training", "method", *heading)]
    medians = {name: _medians(many) for name, many in grouped(training).items()}
    groups = grouped(training)
    reg, network = medians.get("reg", {}).get(TIMING), None
    if reg:
        network = groups["reg"][0].description["network"]
    for name, artifacts in groups.items():
        facts, seconds = artifacts[0].description, medians[name][TIMING]
        ratio = seconds / reg if reg and facts["network"] == network else None
        speed = medians[name].get("tokens_per_second")
        waiting = medians[name].get("data_waiting_share")
        lines.append((name, facts["method"], 1000 * seconds, speed, ratio, waiting))
    return lines


def _medians(artifacts: Sequence[Any]) -> dict[str, float]:
    medians = {}
    for name in (TIMING, "tokens_per_second", "data_waiting_share"):
        values = [v for a in artifacts for _, v in a.manifest.timings.get(name, ())]
        if values:
            medians[name] = statistics.median(values)
    return medians
