"""The methods together in the report: the combined arm beside none and each alone, over NFE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stages.claims.combined import ALL, PREFIX, WORDS
from stages.sections import scores as score_section

if TYPE_CHECKING:
    from stages.page import Section
    from stages.scores import Row

NAMES = {**WORDS, ALL: "all three"}


def sections(scores: Mapping[str, Sequence[Row]]) -> list[Section]:
    """One section of the arms' scores over NFE; none for other runs.

    scores: of the arms, by node.
    """
    from stages.page import Section, table, with_error

    arms = {
        NAMES.get(arm, arm): rows
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
        "of them alone and SiT without any, at equal training steps, evaluations and noise. The "
        "correction is calibrated on each model's own trajectories. "
        "One training each: the errors hold neither its spread nor that of calibrations.</p>"
    )
    label = "network evaluations (NFE)"
    figures = score_section.plots("combined-fid", arms, "fid", "nfe", label, log_x=True)
    return [Section("The methods together", text, [table(lines)], figures)]
