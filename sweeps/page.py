"""A sweep's page: one self-contained HTML file with its figures and tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import flatten
from pipeline.drawing import graph
from stages.pages import page as pages
from stages.pages.figures import INK, Figure, logarithmic, svg
from stages.pages.looks import COLORS
from sweeps.outcome import Outcome, Row, short, shown
from sweeps.record import SweepRecord
from sweeps.space import Parameter
from sweeps.target import filled

MARKER = "<!-- sweep -->"
LOG_RATIO = 30.0  # values that span more than this stand on a logarithmic axis


def write(entry: SweepRecord, outcome: Outcome) -> Path:
    """Write the page into the sweep's folder."""
    space, data = outcome.space, entry.data
    what = html.escape(space.description or f"Sweep {data['recipe']}")
    facts = _facts(outcome, dict(flatten(data["settings"])))
    sections = [
        pages.Section("Result", f"<p>{html.escape(outcome.verdict())}</p>{facts}"),
        pages.Section("Trials", tables=[pages.table(outcome.table())]),
        *_figures(outcome),
    ]
    title = f"{data['recipe']} on {data['preset']}"
    text = pages.page(title, what, sections, MARKER)
    path = entry.folder / "report.html"
    path.write_text(text.replace(MARKER, _run(entry, outcome)), encoding="utf-8")
    return path


def _facts(outcome: Outcome, flat: Mapping[str, Any]) -> str:
    space = outcome.space
    judged = "; ".join(
        f"{name} ({'less' if m.direction == 'min' else 'more'} is better) of {filled(m.node, flat)}"
        for name, m in space.metrics.items()
    )
    errors = (
        f"standard error over {space.seeds} seeds"
        if space.seeds > 1
        else "the standard error of one seed's samples, where the node knows it"
    )
    halving = space.halving
    stopping = "none" if halving is None else f"ASHA on {halving.metric}"
    facts = {
        "decided by": space.decides,
        "metrics": judged,
        "after ±": errors,
        "search": space.search,
        "early stopping": stopping,
        "finished trials": f"{len(outcome.finished)} of {len(outcome.rows)}",
    }
    return pages.facts(facts)


def _run(entry: SweepRecord, outcome: Outcome) -> str:
    data = entry.data
    git = data["git"]
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts = {
        "sweep": entry.id,
        "state": data["state"],
        "begun (UTC)": data["created"][:19],
        "ended (UTC)": data.get("ended", "")[:19],
        "code": git.get("revision", "unknown") + dirty,
        "command": data["command"],
    }
    if outcome.best is None:
        return pages.facts(facts)
    best = outcome.best.trial.name
    facts["the best trial again"] = (
        f"python -m pipeline run {outcome.space.recipe} --preset {entry.folder / 'best.yaml'}"
    )
    own = {n: node for n, node in data["nodes"].items() if n.startswith(f"{best}/")}
    nodes = {n: node for n, node in data["nodes"].items() if not n.startswith("trial-")} | own
    return f"{pages.facts(facts)}<p>What the best trial ran:</p>{graph(data | {'nodes': nodes})}"


# Figures


def _figures(outcome: Outcome) -> list[pages.Section]:
    if len(outcome.finished) < 2:
        return []
    figures = [_against(outcome, path, index) for index, path in enumerate(outcome.space.paths)]
    return [
        pages.Section("Objective against each parameter", figures=figures),
        pages.Section("Parallel coordinates", figures=[_parallel(outcome)]),
    ]


class _Scale:
    """Places of a parameter's values on an axis: numbers where they are, others in a row."""

    def __init__(self, outcome: Outcome, path: str) -> None:
        values = [row.trial.values[path] for row in outcome.finished]
        spec = outcome.space.parameters.get(path)
        self._listed = spec is None or Parameter.of(path, spec).kind in ("grid", "choice")
        self.numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.log = (
            self.numeric
            and min(values) > 0
            and (
                max(values) / min(values) > LOG_RATIO or (spec is not None and "loguniform" in spec)
            )
        )
        texts = [shown(value) for value in values]
        self._order = list(dict.fromkeys(texts))

    def place(self, value: Any) -> float:
        return float(value) if self.numeric else float(self._order.index(shown(value)))

    def unit(self, value: Any, places: Sequence[float]) -> float:
        """From 0 at the lowest to 1 at the highest of `places`."""
        low, high, here = min(places), max(places), self.place(value)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return 0.5 if high == low else (here - low) / (high - low)

    def ticks(self, values: Sequence[Any]) -> dict[float, str]:
        """Labels at the values themselves where there are few, else none."""
        if self.numeric and not self._listed:
            return {}
        return {self.place(value): shown(value) for value in values}


def _against(outcome: Outcome, path: str, index: int) -> Figure:
    decides = outcome.space.decides
    scale = _Scale(outcome, path)
    rows = outcome.finished
    name = short(outcome.space.paths)[path]

    def draw(ax: Any) -> None:
        for row in rows:
            value = row.metrics[decides]
            best = row is outcome.best
            ax.errorbar(
                [scale.place(row.trial.values[path])],
                [value.mean],
                yerr=None if value.error is None else [value.error],
                marker="*" if best else "o",
                markersize=11 if best else 5,
                capsize=3,
                color=COLORS[1] if best else COLORS[0],
                alpha=1.0 if best else 0.75,
            )
        if scale.log:
            logarithmic(ax.xaxis)
        if ticks := scale.ticks([row.trial.values[path] for row in rows]):
            ax.set_xticks(list(ticks), list(ticks.values()))
            ax.minorticks_off()
        ax.set_xlabel(path)
        ax.set_ylabel(decides)

    table = [(name, decides, "standard error", "trial")]
    table += [
        (
            shown(row.trial.values[path]),
            row.metrics[decides].mean,
            row.metrics[decides].error,
            row.trial.name,
        )
        for row in rows
    ]
    caption = f"{decides} of every finished trial against {path}; the star is the best."
    return Figure(f"sweep-{index}", caption, svg(draw, f"sweep-{index}"), table)


def _parallel(outcome: Outcome) -> Figure:
    space, rows = outcome.space, outcome.finished
    paths, decides = space.paths, outcome.space.decides
    scales = [_Scale(outcome, path) for path in paths]
    places = [
        [scale.place(row.trial.values[path]) for row in rows]
        for scale, path in zip(scales, paths, strict=True)
    ]
    results = [row.metrics[decides].mean for row in rows]
    low, high = min(results), max(results)

    def height(row: Row) -> float:
        return 0.5 if high == low else (row.metrics[decides].mean - low) / (high - low)

    def draw(ax: Any) -> None:
        columns = range(len(paths) + 1)
        for row in reversed(rows):  # the best on top
            ys = [
                scale.unit(row.trial.values[path], positions)
                for scale, path, positions in zip(scales, paths, places, strict=True)
            ]
            best = row is outcome.best
            rank = rows.index(row) / max(1, len(rows) - 1)
            ax.plot(
                columns,
                [*ys, height(row)],
                color=COLORS[1] if best else COLORS[0],
                linewidth=2.6 if best else 1.3,
                alpha=1.0 if best else 0.75 - 0.55 * rank,
            )
        for column in columns:
            ax.axvline(column, color=INK, linewidth=0.8, alpha=0.5)
        for column, (path, scale) in enumerate(zip(paths, scales, strict=True)):
            _mark(ax, column, scale, [row.trial.values[path] for row in rows], places[column])
        for y, value in ((0.0, low), (1.0, high)):
            ax.annotate(f"{value:.4g}", (len(paths), y), xytext=(5, -3), textcoords="offset points")
        names = [*short(paths).values(), decides]
        ax.set_xticks(list(columns), names, rotation=20 if len(names) > 5 else 0)
        ax.set_yticks([])
        ax.grid(False)
        ax.set_xlim(-0.1, len(paths) + 0.35)

    caption = (
        "A line for every finished trial, stronger the better it is; the best in its own colour."
    )
    return Figure("sweep-parallel", caption, svg(draw, "sweep-parallel"))


def _mark(
    ax: Any, column: int, scale: _Scale, values: Sequence[Any], places: Sequence[float]
) -> None:
    """Labels along one axis of the parallel coordinates."""
    ordered = sorted({shown(value): value for value in values}.values(), key=scale.place)
    kept = ordered if len(ordered) <= 6 else [ordered[0], ordered[-1]]
    for value in kept:
        ax.annotate(
            shown(value),
            (column, scale.unit(value, places)),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
