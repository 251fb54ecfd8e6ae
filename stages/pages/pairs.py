"""Two curves of scores beside each other: differences seed by seed, and verdicts on "lower"."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages.curves import mean_score
from stages.pages.findings import FAILS, HIGHER, HOLDS, LOWER, change, difference, side
from stages.pages.page import table, with_error

if TYPE_CHECKING:
    from stages.methods.protocol import Score
    from stages.pages.curves import Metrics

HEADING = ("score", "NFE", "ours", "theirs", "difference", "seeds", "verdict")


def lines(ours: Metrics, theirs: Metrics, metrics: Sequence[str]) -> list[tuple[Any, ...]]:
    """A line under `HEADING` for every metric and NFE that both have, over the seeds that both
    have."""
    compared = []
    for metric in metrics:
        a, b = ours.get(metric, {}), theirs.get(metric, {})
        for nfe in sorted(set(a) & set(b)):
            seeds = sorted(set(a[nfe]) & set(b[nfe]))
            if seeds:
                pairs = [(a[nfe][seed], b[nfe][seed]) for seed in seeds]
                compared.append((metric, nfe, *_line(pairs)))
    return compared


def _line(pairs: Sequence[tuple[Score, Score]]) -> tuple[Any, ...]:
    ours, theirs = (mean_score(scores) for scores in zip(*pairs, strict=True))
    values = ((ours.value, ours.error), (theirs.value, theirs.error), mean_difference(pairs))
    return (*(with_error(*value) for value in values), len(pairs), lower(pairs))


def in_words(
    lines: Sequence[tuple[Any, ...]], words: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`fid holds at 3, 5`: what lines say, by score and verdict. words: other ones for verdicts."""
    groups: dict[tuple[str, str], list[str]] = {}
    for metric, nfe, *_, said in lines:
        groups.setdefault((metric, (words or {}).get(said, said)), []).append(str(nfe))
    return (f"{metric} {said} at {', '.join(nfes)}" for (metric, said), nfes in groups.items())


def claim_table(claim: str, lines: Sequence[tuple[Any, ...]]) -> str:
    """Lines as an HTML table under the claim that they test; nothing where there are none."""
    return f"<p>Claim: {html.escape(claim)}</p>{table([HEADING, *lines])}" if lines else ""


def mean_difference(pairs: Sequence[tuple[Score, Score]]) -> tuple[float, float | None]:
    """Ours - theirs and its standard error, see `findings.difference`."""
    effect = difference({"": dict(enumerate(pairs))})
    return effect.value, effect.error


def lower(pairs: Sequence[tuple[Score, Score]]) -> str:
    """Whether "ours is lower" holds over the pairs of all seeds: the test of the claims, on the
    logarithm of the ratio; where a score is not positive, on the difference."""
    of = {"": dict(enumerate(pairs))}
    effect = change(of) or difference(of)
    said = side(*effect.tested, effect.freedom)
    return {LOWER: HOLDS, HIGHER: FAILS}.get(said, said)
