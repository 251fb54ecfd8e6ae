"""Figures as SVG text that follows the page: ink in `currentColor`, no background, real text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# What matplotlib draws in this colour becomes the colour of the surrounding text.
INK = "#010203"
COLORS = ("#3b82d6", "#e07b39", "#2fa36b", "#c65b9e", "#b8941f", "#7a6fd9", "#2aa5b5", "#9c6b4f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffusion-bench",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    **dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        INK,
    ),
}


@dataclass(frozen=True)
class Curve:
    """A named line. error: half-widths of its bars (None where there is no error)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Axes:
    """Labels with units, and scales, of a plot of curves."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] | None = None


@dataclass(frozen=True)
class Figure:
    """A figure: `name` is its file's stem; `rows` is the same as a table, headings first."""

    name: str
    caption: str
    svg: str
    rows: Sequence[Sequence[Any]] = ()


def plot(name: str, caption: str, curves: Sequence[Curve], axes: Axes) -> Figure:
    """Curves over a common abscissa, each with its own colour, marker and dash."""

    def draw(ax: Any) -> None:
        for index, curve in enumerate(curves):
            _line(ax, curve, index, marked=len(curve.x) <= 40)
        ax.set_xlabel(axes.x)
        ax.set_ylabel(axes.y)
        if axes.log_x:
            ax.set_xscale("log")
        if axes.log_y:
            ax.set_yscale("log")
        if axes.ticks is not None:
            ax.set_xticks(list(axes.ticks), [f"{tick:g}" for tick in axes.ticks])
            ax.minorticks_off()
        if len(curves) > 4:  # beside the lines, not over them
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        elif len(curves) > 1:
            ax.legend()

    rows = [("curve", axes.x, axes.y, "standard error")]
    for curve in curves:
        errors = curve.error or [None] * len(curve.x)
        rows += [
            (curve.name, x, y, error) for x, y, error in zip(curve.x, curve.y, errors, strict=True)
        ]
    return Figure(name, caption, svg(draw, name), rows)


def _line(ax: Any, curve: Curve, index: int, marked: bool) -> None:
    style = {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index // len(COLORS) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)] if marked else None,
        "label": curve.name,
    }
    if curve.error is not None and any(error is not None for error in curve.error):
        bars = [error or 0.0 for error in curve.error]
        ax.errorbar(curve.x, curve.y, yerr=bars, capsize=3, elinewidth=1, **style)
    else:
        ax.plot(curve.x, curve.y, **style)


def svg(draw: Callable[[Any], None], name: str, size: tuple[float, float] = (6.4, 3.6)) -> str:
    """Draw on fresh axes and return SVG text; the same drawing gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.add_subplot())
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """An SVG element to stand in a page beside others: ids of its own, ink that follows."""
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", '<svg role="img" ', 1)
