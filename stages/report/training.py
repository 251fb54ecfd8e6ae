"""Training in the report: losses, FID over steps, sizes, and what the teacher knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages.curves import STEP, grouped, mean_curve
from stages.report import scores as score_section

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.figures import Figure
    from stages.pages.page import Section


def sections(inputs: Mapping[str, Any], by_step: Mapping[str, Sequence[Row]]) -> Iterator[Section]:
    """inputs: the report's. by_step: curves of scores over training steps, by node."""
    if inputs.get("training"):
        yield _training(inputs, by_step)


def _training(inputs: Mapping[str, Any], by_step: Mapping[str, Sequence[Row]]) -> Section:
    from stages.pages.page import Section, table

    training = inputs["training"]
    figures = []
    if by_step:
        figures += score_section.plots("fid-over-steps", by_step, "fid", "training_step", STEP)
    figures += _losses(training)
    tables = [table(_sizes(training))]
    if lines := probes(inputs.get("teacher", {})):
        tables += ["<h3>The teacher: held-out accuracy of linear probes</h3>", table(lines)]
    return Section("Training", "", tables, figures)


def probes(teachers: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = [("teacher", "network", "class token", "mean patch")]
    for artifact in teachers.values():
        facts = artifact.description
        for state in ("trained", "untrained"):
            values = [
                facts["probes"].get(f"probe_accuracy/{which}_{state}")
                for which in ("class", "patches")
            ]
            if any(value is not None for value in values):
                lines.append((facts["name"], state, *values))
    return lines if len(lines) > 1 else []


def _losses(training: Mapping[str, Any]) -> list[Figure]:
    from stages.pages.figures import Axes, plot

    losses: dict[str, dict[str, list[Any]]] = {}
    for name, artifacts in grouped(training).items():
        for artifact in artifacts:
            rows: dict[str, list[tuple[int, float]]] = {}
            before = artifact.description.get("steps_before", 0)  # of what it goes on from
            for metric, step, value in artifact.curves():
                rows.setdefault(metric, []).append((before + step, value))
            for metric, of_metric in rows.items():
                if metric.startswith("loss/"):
                    losses.setdefault(metric, {}).setdefault(name, []).append(of_metric)
    figures = []
    for metric, of in losses.items():
        curves = [mean_curve(name, many) for name, many in of.items()]
        log = all(min(curve.y) > 0 for curve in curves)
        unit = "-mean cosine" if metric == "loss/alignment" else "mean squared error"
        figures.append(
            plot(
                metric.replace("/", "-"),
                f"Training: {metric}, mean over the logging window and over seeds; of a method "
                "that masks, over the tokens it keeps.",
                curves,
                Axes(STEP, f"{metric} ({unit})", log_y=log),
            )
        )
    return figures


def _sizes(training: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = [
        ("training", "method", "seeds", "steps", "parameters", "batch size")
    ]
    for name, artifacts in grouped(training).items():
        facts, settings = artifacts[0].description, artifacts[0].settings
        numbers = (len(artifacts), facts["steps"][-1], facts["parameters"], settings["batch_size"])
        lines.append((name, facts["method"], *numbers))
    return lines
