"""Beyond the papers, in the report: the solver of a whole trajectory, and CSFlow's grids beside the
model's best one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from stages.pages.curves import PLAIN, collect, of_metric, over_nfe, plot_over_nfe
from stages.pages.figures import Axes, Curve, plot
from stages.pages.looks import score_name
from stages.pages.page import Section, folded, table
from stages.papers.beyond.claims import WHOLE, least

if TYPE_CHECKING:
    from stages.artifacts.compared_grids import ComparedGrids
    from stages.artifacts.schedule import Schedule
    from stages.artifacts.scores import Row
    from stages.pages.made import Made

SOLVED = ("dpmpp2m", "unipc", "fitted", WHOLE)


def sections(
    scores: Mapping[str, Sequence[Row]],
    followed: Sequence[Schedule],
    grids: Sequence[ComparedGrids],
) -> Iterator[Section]:
    """Those that the run has something for."""
    if followed:
        yield _whole(scores, followed)
    for one in grids:
        yield _grids(one)


def _whole(scores: Mapping[str, Sequence[Row]], followed: Sequence[Schedule]) -> Section:
    text = (
        "<p><b>Ours.</b> The model's own fine trajectory is kept once, from noise alone. A solver "
        "of few steps is fitted to it whole: the weights of every step, its levels, and the level "
        "that the network is told at each move together (Levenberg and Marquardt), until its end "
        "is nearest to the model's own. No gradient through the network is taken. It approaches "
        "the <i>model</i>: where the model itself is off, a correction calibrated on data may "
        "still gain FID. What it took stands with <a href='#run'>the run</a>.</p>"
    )
    lines: list[tuple[Any, ...]] = [("NFE", "rms on the noise it was fitted to", "levels, as t")]
    for schedule in sorted(followed, key=lambda one: one.description["nfe"]):
        facts = schedule.description
        times = " ".join(f"{s / (1 + s):.3f}" for s in facts["levels"])
        lines.append((facts["nfe"], facts["rms"], times))
    figures = []
    for metric in ("trajectory_rms", "fid"):
        curves = [
            over_nfe(f"{which.solved} ({which.grid})", by_nfe)
            for which, by_nfe in of_metric(collect(scores), metric).items()
            if which.solver in SOLVED and (which.correction == PLAIN or which.solver == WHOLE)
        ]
        if curves:
            what = score_name(metric)
            caption = f"{what} over evaluations: the solver of a whole trajectory beside others."
            figures.append(
                plot_over_nfe(f"whole-{metric.replace('_', '-')}", metric, curves, caption)
            )
    title = "Beyond the papers: a solver fitted to the whole trajectory"
    return Section(title, text, [table(lines)], figures)


def _grids(one: ComparedGrids) -> Section:
    facts = one.description
    rows = facts["grids"]
    best, uniform = least(rows, "best"), least(rows, "uniform")
    text = (
        f"<p><b>Ours.</b> CSFlow's grids of {facts['nfe']} steps, over its share a and the display "
        "that images fill, beside the uniform grid and the model's best one, which was searched on "
        "other noise. Every grid has the weights that are best on it, so that the grids alone are "
        f"compared; rms is to the model's own samples. The best grid leaves {best['rms']:.3g}, the "
        f"uniform one {uniform['rms']:.3g}.</p>"
    )
    mixes: dict[float, list[tuple[int, float]]] = {}
    for row in rows:
        if row["kind"] == "csflow":
            mixes.setdefault(row["mix"], []).append((row["display_pixels"], row["rms"]))
    curves = [
        Curve(f"csflow a={mix:g}", [x for x, _ in points], [y for _, y in points])
        for mix, points in sorted(mixes.items())
    ]
    ends = sorted({x for points in mixes.values() for x, _ in points}) or [1, 2]
    for row in (uniform, best):
        curves.append(Curve(row["name"], [ends[0], ends[-1]], [row["rms"]] * 2))
    axes = Axes("display pixels that an image fills", "rms", log_x=True, log_y=True, ticks=ends)
    caption = (
        f"rms to the model's own samples at {facts['nfe']} evaluations by grid, weights fitted to "
        f"each, {facts['num_states']} states."
    )
    lines = [("grid", "rms, weights fitted", "rms, plain solver", "levels, as t")]
    for row in rows:
        times = " ".join(f"{s / (1 + s):.3f}" for s in row["levels"])
        lines.append((row["name"], row["rms"], row["rms_plain"], times))
    for one_left in facts["left_out"]:
        text += f"<p>Left out: {escape(one_left['name'])}, {escape(one_left['reason'])}.</p>"
    figures = [plot(f"grids-nfe{facts['nfe']}", caption, curves, axes)]
    title = f"Beyond the papers: CSFlow's grids and the best one, {facts['nfe']} evaluations"
    return Section(title, text, [folded("Every grid in numbers", table(lines))], figures)


def report(made: Made) -> Iterator[Section]:
    """The sections on what a run made."""
    slots = ("follow", "grids")
    of = [list(made.of(name).values()) for name in slots]
    yield from sections(made.over_nfe, *of)
