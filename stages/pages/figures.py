"""Figures as SVG text that follows the page: ink in `currentColor`, no background, real text."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from textwrap import fill
from typing import Any

from stages.pages.looks import Look, looks, ordered, score_name, shown

# What matplotlib draws in this colour becomes the colour of the surrounding text.
INK = "#010203"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffusion-bench",
    "font.family": "sans-serif",
    "font.size": 10.5,
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
    """A named line. error: half-widths of its bars (None where there is no error). like: the place
    of the curve whose colour it shares, dashed; None is a colour of its own. joined: whether a line
    runs through the points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    like: int | None = None
    joined: bool = True


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
    """A figure: `name` is its file's stem; `rows` is the same as a table, headings first; `small`
    draws it for a narrow place, with letters that can be read there."""

    name: str
    caption: str
    svg: str
    rows: Sequence[Sequence[Any]] = ()
    small: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", stem(self.name))


def stem(name: str) -> str:
    """A name as the stem of a file and the beginning of ids: what is no letter, digit, - or _
    gives way, and a number tells such names apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:100]
    return plain if plain == name and name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def as_files(figures: Iterable[Figure]) -> dict[str, str]:
    """The files of figures by stem; a figure whose name was taken has a number behind."""
    files: dict[str, str] = {}
    for figure in figures:
        names = chain([figure.name], (f"{figure.name}-{n}" for n in count(2)))
        files[next(name for name in names if name not in files)] = as_file(figure)
    return files


def as_file(figure: Figure) -> str:
    """The figure as a file of its own: beside a page's text the ink follows it, alone it needs a
    colour."""
    return figure.svg.replace("currentColor", "#444444")


LARGEST = 1e300  # of what can be drawn: matplotlib adds margins
WHOLE, PANEL, SMALL = (5.8, 3.2), (3.6, 2.6), (3.0, 2.4)  # inches
LEGEND_LINE, LETTER = 0.165, 0.07  # inches of a legend that stands above
# Room for labels, of figures without a legend beside them: four times faster than fitting it.
MARGINS = {
    WHOLE: {"left": 0.15, "right": 0.97, "bottom": 0.165, "top": 0.97},
    PANEL: {"left": 0.23, "right": 0.96, "bottom": 0.21, "top": 0.96},
}


def plot(
    name: str, caption: str, curves: Sequence[Curve], axes: Axes, size: tuple[float, float] = WHOLE
) -> Figure:
    """Curves over a common abscissa, each with its own colour, marker and dash.

    Points that are not finite stand in the table and are not drawn; a logarithmic axis is linear
    where nothing on it is above 0.
    """

    if not any(curve.like is not None for curve in curves):
        curves = [curves[place] for place in ordered([curve.name for curve in curves])]
    names = [shown(curve.name) for curve in curves]
    # Inside the axes a legend would stand over lines; many names leave room beside them alone.
    beside, above = len(curves) > 4, 1 < len(curves) <= 4

    def draw(ax: Any) -> None:
        lines = _lines(ax, curves)
        _scales(ax, curves, axes)
        if beside:
            _legend(ax, lines, names, loc="center left", anchor=(1.0, 0.5), fontsize="small")
        elif above:
            legend_above(ax, lines, names, size, over_power=_has_power(curves, axes))

    def draw_small(ax: Any) -> None:
        lines = _lines(ax, curves)
        _scales(ax, curves, replace(axes, ticks=_few(axes.ticks, axes.log_x)))
        narrow(ax)
        if len(curves) > 1:
            legend_above(ax, lines, names, over_power=_has_power(curves, axes))

    rows = [("curve", axes.x, axes.y, "standard error")]
    for curve in curves:
        errors = curve.error or [None] * len(curve.x)
        rows += [
            (curve.name, x, y, error) for x, y, error in zip(curve.x, curve.y, errors, strict=True)
        ]
    fitted = beside or _has_power(curves, axes)
    margins = None if fitted or size not in MARGINS else dict(MARGINS[size])
    if margins and above:
        margins["top"] -= legend_lines(names, size) * LEGEND_LINE / size[1]
    # Three lines of names leave the axes of a small figure enough room.
    higher = LEGEND_LINE * max(0, legend_lines(names) - 3)
    small = partial(svg, draw_small, f"small-{name}", (SMALL[0], SMALL[1] + higher))
    return Figure(name, caption, svg(draw, name, size, margins), rows, small)


def narrow(ax: Any) -> None:
    """Labels of a small figure: broken where they are longer than it, and not broken already."""
    for axis, width in ((ax.xaxis, 36), (ax.yaxis, 20)):
        text = axis.get_label_text()
        axis.set_label_text(text if "\n" in text else fill(text, width), fontsize="small")
    ax.tick_params(labelsize="small")


def _columns(names: Sequence[str], size: tuple[float, float]) -> int:
    """Columns of a legend that stands above, of a figure of this size in inches."""
    longest, count = max(map(len, names)), len(names)
    if count * (longest + 5) * LETTER < size[0]:
        return count
    return 1 if longest > 6 * size[0] else 2


def legend_lines(names: Sequence[str], size: tuple[float, float] = SMALL) -> int:
    """How many lines a legend above a figure has."""
    return math.ceil(len(names) / _columns(names, size)) if names else 0


def legend_above(
    ax: Any,
    lines: Sequence[Any],
    names: Sequence[str],
    size: tuple[float, float] = SMALL,
    over_power: bool = False,
) -> None:
    """The legend of a figure over it, and not over its lines, nor over the y axis's power of ten.

    size: of the figure, in inches.
    """
    look = {
        "ncols": _columns(names, size),
        "fontsize": "small",
        "borderaxespad": 1.9 if over_power else 0.3,
        "handlelength": 1.4,
    }
    _legend(ax, lines, names, anchor=(0.45, 1.0), loc="lower center", labelspacing=0.2, **look)


def _few(ticks: Sequence[float] | None, logarithmic: bool) -> Sequence[float] | None:
    """Ticks with room for their labels in a small figure."""
    if ticks is None:
        return None
    scale = math.log if logarithmic else float
    kept = list(ticks[:1])
    for tick in ticks[1:]:
        if scale(tick) - scale(kept[-1]) > 0.17 * (scale(ticks[-1]) - scale(ticks[0])):
            kept.append(tick)
    return kept


def _lines(ax: Any, curves: Sequence[Curve]) -> list[Any]:
    drawn = list(looks([curve.name for curve in curves]))
    for place, curve in enumerate(curves):
        if curve.like is not None:
            drawn[place] = replace(drawn[place], color=drawn[curve.like].color, line="--")
        if not curve.joined:
            drawn[place] = replace(drawn[place], line="none")
    return [
        _line(ax, curve, look, marked=len(curve.x) <= 40)
        for curve, look in zip(curves, drawn, strict=True)
    ]


def _scales(ax: Any, curves: Sequence[Curve], axes: Axes) -> None:
    ax.set_xlabel(axes.x)
    ax.set_ylabel(score_name(axes.y))
    ax.ticklabel_format(axis="y", scilimits=(-2, 5))  # long numbers would lie over the label
    if axes.ticks is None and not axes.log_x and all(_is_whole(x) for c in curves for x in c.x):
        ax.xaxis.get_major_locator().set_params(integer=True)
    drawn = [point for curve in curves for point in _finite(curve)]
    for place, (axis, is_log) in enumerate(((ax.xaxis, axes.log_x), (ax.yaxis, axes.log_y))):
        if is_log and any(point[place] > 0 for point in drawn):
            logarithmic(axis)
    if axes.ticks is not None:
        ax.set_xticks(list(axes.ticks), [f"{tick:g}" for tick in axes.ticks])


def _has_power(curves: Sequence[Curve], axes: Axes) -> bool:
    """Whether the y axis may tell a power of ten, which stands on top of it."""
    largest = max((abs(y) + bar for curve in curves for _, y, bar in _finite(curve)), default=1.0)
    return not axes.log_y and not 0.1 <= largest < 5e4


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and number == int(number)


def _legend(
    ax: Any,
    lines: Sequence[Any],
    names: Sequence[str],
    anchor: tuple[float, float] | None = None,
    **options: Any,
) -> None:
    """A legend with names as they are: matplotlib would read what stands between dollars as a
    formula, and leave out names that begin with an underscore."""
    # The names are set after: not every version of matplotlib accepts such names here.
    places = [str(index) for index in range(len(names))]
    legend = ax.legend(lines, places, bbox_to_anchor=anchor, **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _line(ax: Any, curve: Curve, look: Look, marked: bool) -> Any:
    marker = look.marker if marked else None
    style = {"color": look.color, "linestyle": look.line, "marker": marker}
    points = _finite(curve)
    x, y, bars = ([point[place] for point in points] for place in range(3))
    if curve.error is not None and any(error is not None for error in curve.error):
        return ax.errorbar(x, y, yerr=bars, capsize=3, elinewidth=1, **style)
    (line,) = ax.plot(x, y, **style)
    return line


def _finite(curve: Curve) -> list[tuple[float, float, float]]:
    """The points of a curve that can be drawn, each with the half-width of its bar."""
    errors = curve.error or [None] * len(curve.x)
    return [
        (x, y, error if error is not None and math.isfinite(error) else 0.0)
        for x, y, error in zip(curve.x, curve.y, errors, strict=True)
        if math.isfinite(x) and abs(y) < LARGEST
    ]


def logarithmic(axis: Any) -> None:
    """A logarithmic axis with numbers such as 0.05 and 20, closer where it spans few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax, name = axis.axes, axis.axis_name
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if name == "x" else ax.get_ylim()
    decades = math.log10(high / low)
    parts = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    axis.set_major_locator(LogLocator(subs=parts, numticks=15))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def svg(
    draw: Callable[[Any], None],
    name: str,
    size: tuple[float, float] = WHOLE,
    margins: Mapping[str, float] | None = None,
) -> str:
    """Draw on fresh axes and return SVG text; the same drawing gives the same bytes.

    size: in inches. margins: as shares of the size; None fits them to labels and legend.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained" if margins is None else None)
        if margins is not None:
            canvas.subplots_adjust(**margins)
        draw(canvas.add_subplot())
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """An SVG element to stand in a page beside others: ids of its own, ink that follows."""
    text, name = text[text.index("<svg") :].replace(INK, "currentColor"), stem(name)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", '<svg role="img" ', 1)
