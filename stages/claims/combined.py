"""What the methods give together: the combined arm against none and against each alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.claims.findings import Claim, Finding, compared

if TYPE_CHECKING:
    from stages.scores import Row

PREFIX = "evaluate/combined-"
ALL = "all"
WORDS = {
    "plain": "SiT",
    "maskalign": "MaskAlign alone",
    "csflow": "CSFlow's grid alone",
    "calibrated": "the calibrated correction alone",
}
CLAIMS = {
    arm: Claim("Together", f"All three are better than {word}", "not in the papers", ("full",))
    for arm, word in WORDS.items()
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
    for arm, claim in CLAIMS.items():
        what = f"FID of all three against {WORDS[arm]}, {at}, mean over NFE"
        yield compared(claim, what, arms.get(ALL, {}), arms.get(arm, {}))


def _by_nfe(rows: Sequence[Row]) -> dict[str, dict[int | None, Any]]:
    found: dict[str, dict[int | None, Any]] = {}
    for row in rows:
        if row.score.metric == METRIC:
            found.setdefault(f"NFE {row.nfe}", {})[row.seed] = row.score
    return found
