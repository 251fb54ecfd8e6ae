"""What the methods give together: the combined arm against none and against each alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages.findings import NOISES, Claim, Finding, compared, repeating

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.made import Made

PREFIX = "evaluate/combined-"
ALL, PLAIN = "all", "plain"
METHODS = {"sit": "SiT", "repa": "REPA", "reg": "REG"}
# The plain arm is of the run's own method, which its rows tell: see `words`.
WORDS = {
    PLAIN: "the plain method",
    "maskalign": "MaskAlign alone",
    "csflow": "CSFlow's grid alone",
    "calibrated": "the calibrated correction alone",
}
METRIC = "fid"


def is_arm(node: str) -> bool:
    """Whether an evaluation is of an arm, which has a section of its own."""
    return node.startswith(PREFIX)


def findings(scores: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """What the arms' scores over NFE say; every claim once."""
    arms = {
        name.removeprefix(PREFIX): _by_nfe(rows) for name, rows in scores.items() if is_arm(name)
    }
    steps = {row.training_step for name, rows in scores.items() if is_arm(name) for row in rows}
    at = f"after {', '.join(map(str, sorted(steps)))} training steps each"
    for arm, word in words(scores).items():
        text = f"All three are better than {word}"
        claim = Claim("Together", text, "not in the papers", ("full",), arm)
        what = f"FID of all three against {word}, {at}, mean over NFE"
        yield compared(claim, what, arms.get(ALL, {}), arms.get(arm, {}))


def words(scores: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What each arm is called, beside the combined one: the plain one by the method of its rows."""
    methods = {row.method for row in scores.get(PREFIX + PLAIN, ())}
    if not methods:
        return WORDS
    return WORDS | {PLAIN: ", ".join(METHODS.get(name, name) for name in sorted(methods))}


def _by_nfe(rows: Sequence[Row]) -> dict[str, dict[int | None, Any]]:
    by_nfe: dict[str, dict[int | None, Any]] = {}
    for row in rows:
        if row.score.metric == METRIC:
            by_nfe.setdefault(f"NFE {row.nfe}", {})[row.seed] = row.score
    return by_nfe


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of the methods put together."""
    yield from repeating(findings(made.beginning(PREFIX)), NOISES)
