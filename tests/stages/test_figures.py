"""Figures as SVG: what stands on their axes, and how curves are told apart."""

import math
import re
from types import SimpleNamespace

import pytest

from stages.methods.table import FAMILIES, GRIDS, LOSSES, SOLVERS
from stages.pages.figures import Axes, Curve, as_files, plot
from stages.pages.looks import COLORS, looks, method, ordered, shown
from stages.pages.page import with_error


def texts(figure) -> list[str]:
    """Every text of the figure, in order."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", figure.svg)


def luminance(colour):
    """Relative luminance of `#rrggbb`, as WCAG has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def drawn(*curves, **axes):
    return plot("f", "caption", curves, Axes("x (m)", "y (s)", **axes))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.02, 0.15), ["0.02", "0.03", "0.05", "0.1"]),
        ((0.3, 0.9), ["0.3", "0.5", "0.7"]),
        ((1.0, 4000.0), ["1", "10", "100", "1000"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(values, expected):
    found = texts(drawn(Curve("a", (2.2, 2.3), values), log_y=True))
    assert [text for text in found if text in expected] == expected
    assert not any("e-" in text or "\u2212" in text for text in found)


def test_small_values_have_short_numbers_and_their_power_once():
    found = texts(drawn(Curve("a", (1, 2), (-0.001, 0.0025))))
    assert "1e\u22123" in found
    assert max(map(len, found)) <= len("\u22121.0 ")


def test_steps_are_whole_numbers():
    found = texts(drawn(Curve("a", (20, 40), (1.25, 1.75))))
    assert {"20", "40"} <= set(found)
    assert not any(text in found for text in ("22.5", "37.5", "20.0"))


def test_given_ticks_leave_the_other_axis_its_own():
    found = texts(drawn(Curve("a", (3, 5), (1.2, 4.0)), log_x=True, log_y=True, ticks=(3, 5)))
    assert found.count("3") == 2  # 3 evaluations, and y = 3
    assert "5" in found
    assert "2" in found


def test_curves_share_a_colour_where_they_belong_together():
    lines = [Curve("a", (1, 2), (1, 2)), Curve("b", (1, 2), (2, 3))]
    plain, paired = (
        drawn(*lines, Curve("c", (1, 2), (3, 4), like=like)).svg.count("#3b82d6")
        for like in (None, 0)
    )
    assert paired > plain
    assert "stroke-dasharray" in drawn(*lines, Curve("c", (1, 2), (3, 4), like=0)).svg


def test_points_need_not_be_joined():
    joined, apart = (drawn(Curve("a", (1, 2, 3), (1, 2, 3), joined=j)).svg for j in (True, False))
    line = "stroke-linecap: square"
    assert joined.count(line) > apart.count(line)


def test_the_ninth_curve_looks_unlike_the_first():
    from matplotlib.figure import Figure as Canvas

    from stages.pages import figures

    ax = Canvas().add_subplot()
    figures._lines(ax, [Curve(str(index), (1, 2), (1, 2)) for index in range(17)])
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines]
    assert len(set(looks)) == 17
    markers = [(color, marker) for color, _, marker in looks]
    assert len(set(markers)) == 17  # also where the dashes hide behind the markers


def test_a_method_looks_the_same_in_every_figure():
    """Colour, marker and order follow the name alone, whatever else is drawn."""
    few = looks(["maskalign", "sit"])
    many = dict(zip(names := ["other", "repa", "sit", "x", "maskalign"], looks(names), strict=True))
    assert few == [many["maskalign"], many["sit"]]
    assert len({look.color for look in many.values()}) == 5
    assert [names[place] for place in ordered(names)] == ["sit", "repa", "maskalign", "other", "x"]
    for table in (LOSSES, SOLVERS, FAMILIES, GRIDS):  # a new method too has a colour of its own
        assert len({looks([name])[0].color for name in table}) == len(table)


def test_variants_of_a_method_are_shades_of_its_colour():
    plain, calibrated = looks(["heun", "heun, calibrated (edm)", "euler"])[:2]
    assert plain.color == looks(["heun"])[0].color == looks(["heun-d2", "heun"])[1].color
    assert calibrated.color != plain.color
    assert (calibrated.line, calibrated.marker) != (plain.line, plain.marker)
    assert method("heun, calibrated (edm)") == "heun"
    assert method("heuntimes") is None
    assert method("fitted-heun") == "fitted-heun"
    assert method("SiT, NFE 5") == "sit"
    assert shown("dpmpp2m, lookahead (uniform_t)") == "DPM-Solver++ 2M, lookahead (uniform in t)"
    assert shown("sit-of-mine") == "sit-of-mine"


def test_figures_of_other_curves_share_the_looks():
    colour = looks(["repa"])[0].color
    for names in (("sit", "repa"), ("repa", "mine"), ("mine", "maskalign", "repa")):
        figure = drawn(*(Curve(name, (1, 2), (1, 2)) for name in names))
        assert colour in figure.svg
        assert colour in figure.small()
        assert "REPA" in texts(figure)
        assert figure.rows[1][0] in ("sit", "repa", "maskalign")  # methods stand first


def test_lines_can_be_seen_in_light_and_dark():
    """WCAG's contrast of 3 for graphics."""
    for color in COLORS:
        for ground in ("#ffffff", "#14181d"):
            light, dark = sorted((luminance(color), luminance(ground)))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 2.9, (color, ground)


@pytest.mark.parametrize("count", [2, 6])
def test_a_legend_shows_names_as_they_are(count):
    names = ["m_$^$", "x$1$", "_hidden", r"a\$b", "$", "plain"][:count]
    names[-1] = "__init__"
    curves = [
        Curve(name, (1, 2), (1, 2), (0.1, None) if index % 2 else None)
        for index, name in enumerate(names)
    ]
    assert texts(drawn(*curves))[-count:] == names


@pytest.fixture
def cut(monkeypatch):
    """The labels that stand beyond the edge of a figure, and legends over what is drawn."""
    from matplotlib.figure import Figure as Canvas

    found, save = [], Canvas.savefig

    def measured(canvas, *arguments, **options):
        save(canvas, *arguments, **options)
        canvas.draw_without_rendering()
        labels = [axis.label for ax in canvas.axes for axis in (ax.xaxis, ax.yaxis)]
        labels += [ax.yaxis.get_offset_text() for ax in canvas.axes]
        for legend in filter(None, (ax.get_legend() for ax in canvas.axes)):
            labels += legend.get_texts()
            box = legend.get_window_extent()
            for ax in canvas.axes:
                power = ax.yaxis.get_offset_text()
                if box.overlaps(ax.get_window_extent()):
                    found.append("legend over lines")
                if power.get_text() and box.overlaps(power.get_window_extent()):
                    found.append("legend over power")
        for label in labels:
            box, room = label.get_window_extent(), canvas.bbox
            if not (box.x0 >= 0 <= box.y0 and box.x1 <= room.x1 and box.y1 <= room.y1):
                found.append(label.get_text())

    monkeypatch.setattr(Canvas, "savefig", measured)
    return found


def test_labels_stand_within_the_figure(cut):
    from stages.papers.maskalign.section import _heatmap
    from stages.papers.wavelet.section import MSE, SIGMA

    for count in (1, 2, 4, 11):  # no legend, one above, and one beside
        curves = [Curve(f"empirical-bayes {i}", (0.25, 1, 4), (0.1, 1, 10)) for i in range(count)]
        plot("f", "", curves, Axes(SIGMA, MSE, log_x=True, log_y=True))
        small = [
            Curve(f"whole, calibrated {i}", (1, 2), (1e-5, 2e-5)) for i in range(min(count, 4))
        ]
        plot("f", "", small, Axes(SIGMA, "y")).small()
    for largest in (1.0, 0.25, 0.06, 0.006):
        for side in (2, 4, 8):
            rows = [[largest * (i + j) / (2 * side - 2) for i in range(side)] for j in range(side)]
            told = {"full": rows, "max_min_ratio": 2.0, "variation": 0.1, "step": 3}
            _heatmap("reg", SimpleNamespace(**told), "full")
    assert cut == []


NAMES = ["a.b", "a/b", "../a", "a b", "a-b", "größe", r"x\1", "a)b", '"<b>', "$a$", "", "n" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_file_and_an_id(name):
    figure = plot(name, "caption", [Curve(name, (1, 2), (1, 2))] * 2, Axes("x", "y"))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,120}", figure.name)
    ids = re.findall(r'id="([^"]*)"', figure.svg)
    assert ids
    assert all(one.startswith(f"{figure.name}-") for one in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", figure.svg)) <= set(ids)


def test_no_file_is_another_figures():
    figures = [plot(name, "", [Curve("a", (1,), (1,))], Axes("x", "y")) for name in NAMES]
    assert len({figure.name for figure in figures}) == len(NAMES)
    same = [figures[4]] * 3
    assert list(as_files(same)) == ["a-b", "a-b-2", "a-b-3"]


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [(1, math.inf), (math.nan, 2), (math.nan, math.nan), (-1, -2), (0, 0), (1e308, 1e-308), ()],
)
def test_points_that_cannot_be_drawn_stand_in_the_table(values, log):
    x = (1, 2)[: len(values)]
    errors = (math.inf, math.nan)[: len(values)]
    figure = drawn(Curve("a", x, values, errors), log_x=log, log_y=log)
    assert "nan" not in figure.svg.lower()
    assert [row[2] for row in figure.rows[1:]] == list(values)


def test_an_error_that_is_not_finite_is_left_out():
    assert with_error(2.0, math.inf) == with_error(2.0, math.nan) == "2"
    assert with_error(math.inf, 0.1) == "inf\u00a0±\u00a00.10"
