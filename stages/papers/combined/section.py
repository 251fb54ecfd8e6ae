"""The methods together in the report: the combined arm beside none and each alone, over NFE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from stages.pages.figures import SMALL, Figure, svg
from stages.pages.looks import looks
from stages.pages.page import Section, table, with_error
from stages.papers.combined.claims import ALL, PLAIN, PREFIX, words

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.made import Made


def sections(scores: Mapping[str, Sequence[Row]]) -> list[Section]:
    """One section of the arms' scores over NFE; none for other runs.

    scores: of the arms, by node.
    """
    names = {**words(scores), ALL: "all three"}
    arms = {
        names.get(arm, arm): rows
        for node, rows in scores.items()
        if (arm := node.removeprefix(PREFIX))
    }
    if not arms:
        return []
    lines = [("arm", "method", "grid", "correction", "training step", "NFE", "FID")]
    for name, rows in arms.items():
        lines += [
            (
                *(name, row.method, row.grid, row.correction, row.training_step, row.nfe),
                with_error(row.score.value, row.score.error),
            )
            for row in rows
            if row.score.metric == "fid"
        ]
    text = (
        "<p>MaskAlign's training, CSFlow's grid and the calibrated correction at once, beside each "
        f"of them alone and {names[PLAIN]} without any, at equal training steps, evaluations and "
        "noise. The correction is calibrated on each model's own trajectories. "
        "One training each: the errors hold neither its spread nor that of calibrations.</p>"
    )
    return [Section("The methods together", text, [table(lines)], [_figure(arms)])]


def _figure(arms: Mapping[str, Sequence[Row]]) -> Figure:
    """FID of every arm with its error, one row an arm and NFE."""
    rows = [
        (f"{name}, NFE {row.nfe}", row.score)
        for name, of in arms.items()
        for row in of
        if row.score.metric == "fid"
    ]

    labels = [label for label, _ in rows]
    if len({label.rpartition(",")[2] for label in labels}) == 1:
        labels = [label.rpartition(",")[0] for label in labels]

    def draw(ax: Any, letters: int = 40) -> None:
        drawn = zip(rows, looks([label for label, _ in rows]), strict=True)
        for place, ((_, score), look) in enumerate(drawn):
            style = {"color": look.color, "marker": "o", "capsize": 3}
            ax.errorbar([score.value], [place], xerr=[score.error or 0.0], **style)
        ax.set_yticks(range(len(rows)), [fill(label, letters) for label in labels])
        ax.invert_yaxis()
        ax.set_xlabel("FID")

    protocols = ", ".join(dict.fromkeys(score.protocol.name for _, score in rows))
    caption = f"FID of every arm, lower is better; protocol {protocols}; bars: one standard error."
    table = [("arm", "fid", "standard error"), *((n, s.value, s.error) for n, s in rows)]
    size = (5.8, 0.9 + 0.36 * len(rows))
    small = partial(svg, partial(draw, letters=18), "small-combined-fid", SMALL)
    return Figure("combined-fid", caption, svg(draw, "combined-fid", size), table, small)


def report(made: Made) -> Iterator[Section]:
    """The section on what a run made."""
    yield from sections(made.beginning(PREFIX))
