"""Two curves of a score beside each other: differences seed by seed, and verdicts on "lower"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.methods.protocol import Score

BySeed = Mapping[int, "Score"]
HEADING = ("score", "NFE", "ours", "theirs", "difference", "seeds", "verdict")


def summary(by_seed: BySeed) -> Score:
    """The mean over seeds with its error, or the only seed's score."""
    from stages.methods.protocol import over_seeds

    values = list(by_seed.values())
    return over_seeds(values) if len(values) > 1 else values[0]


def lines(
    metric: str, ours: Mapping[int, BySeed] | None, theirs: Mapping[int, BySeed] | None
) -> list[tuple[Any, ...]]:
    """A line under `HEADING` for every NFE that both have, over the seeds that both have."""
    from stages.pages.page import with_error

    found = []
    for nfe in sorted(set(ours or {}) & set(theirs or {})):
        seeds = sorted(set(ours[nfe]) & set(theirs[nfe]))
        if not seeds:
            continue
        pairs = {seed: (ours[nfe][seed], theirs[nfe][seed]) for seed in seeds}
        value, error = difference(list(pairs.values()))
        a, b = (summary({s: by[nfe][s] for s in seeds}) for by in (ours, theirs))
        found.append(
            (
                metric,
                nfe,
                with_error(a.value, a.error),
                with_error(b.value, b.error),
                with_error(value, error),
                len(seeds),
                lower(pairs),
            )
        )
    return found


def in_words(
    found: Sequence[tuple[Any, ...]], words: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`fid holds at 3, 5`: what lines say, by score and verdict. words: other ones for verdicts."""
    groups: dict[tuple[str, str], list[str]] = {}
    for metric, nfe, *_, said in found:
        groups.setdefault((metric, (words or {}).get(said, said)), []).append(str(nfe))
    return (f"{metric} {said} at {', '.join(nfes)}" for (metric, said), nfes in groups.items())


def difference(pairs: Sequence[tuple[Score, Score]]) -> tuple[float, float | None]:
    """Ours - theirs and its standard error: over seeds of paired differences, or of one pair."""
    from stages.methods import protocol

    single = [protocol.difference(a, b) for a, b in pairs]  # refuses different protocols
    if len(pairs) == 1:
        return single[0].value, single[0].error
    plain = {"error": None, "error_kind": "none", "floor": None}
    found = protocol.over_seeds(
        [replace(a, value=d.value, **plain) for (a, _), d in zip(pairs, single, strict=True)]
    )
    return found.value, found.error


def lower(pairs: Mapping[int, tuple[Score, Score]]) -> str:
    """Whether "ours is lower" holds over the pairs of all seeds: the test of the claims, on the
    logarithm of the ratio; where a score is not positive, on the difference."""
    from stages.pages import findings

    effect = findings.change({"": pairs})
    if effect is None:
        return verdict(*difference(list(pairs.values())))
    if effect.error is None:
        return verdict(effect.value, None)
    return findings.verdict(effect, findings.LOWER)


def verdict(difference: float, error: float | None) -> str:
    """Whether "lower" holds: beyond two standard errors, or inconclusive within."""
    if error is None:
        return "no error known"
    if abs(difference) <= 2 * error:
        return "inconclusive"
    return "holds" if difference < 0 else "does not hold"
