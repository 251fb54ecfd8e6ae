"""Denoisers of one data set beside each other: differences image by image, and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages.findings import HIGHER, LOWER, OPEN, side
from stages.pages.page import with_error

if TYPE_CHECKING:
    from stages.artifacts.risks import Risk

LOCAL = ("local", "additive", "parent")  # families that couple neighbours in a band
SMALLER = ("independent", "band-tied")
FAR = ("full", "principal", "residual")  # they look at all pixels
PRINCIPAL = "principal"  # of all pixels, as the Wiener filter; its ridge and size come from folds


def risk_difference(ours: Risk, theirs: Risk, i: int) -> tuple[float, float | None]:
    """Ours - theirs at noise level i, and its standard error over images on their shared noise.

    Exact where both are exact; the error is then still that of which images were held out.
    """
    gaps = ours.per_image[i] - theirs.per_image[i]
    error = float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else None
    return ours.mse[i] - theirs.mse[i], error


def risk_ratio(ours: Risk, theirs: Risk, i: int) -> tuple[float, float | None]:
    """Ours / theirs at noise level i, and its standard error over images, to first order."""
    value = ours.mse[i] / theirs.mse[i]
    gaps = (ours.per_image[i] - value * theirs.per_image[i]) / theirs.mse[i]
    return value, float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else None


def by_dataset(risks: Iterable[Risk]) -> dict[str, list[Risk]]:
    """Risks of each data set."""
    datasets: dict[str, list[Risk]] = {}
    for risk in risks:
        datasets.setdefault(risk.dataset, []).append(risk)
    return datasets


def highest(scores: Sequence[Risk], wanted: str) -> Risk | None:
    """The score of a family with the highest degree, its ridge given; of our own, any."""
    ours = wanted in (PRINCIPAL, "residual")
    of = [risk for risk in scores if risk.family == wanted and (ours or not risk.folds)]
    return max(of, key=lambda risk: risk.degree, default=None)


def pairs(scores: Sequence[Risk], others: Sequence[Risk]) -> Iterator[tuple[Risk, Risk]]:
    """(ours, theirs): the families with the smaller ones, the Wiener filter and the networks.

    Of each family the highest degree stands for it, whatever came out.
    """
    references = [risk for risk in others if risk.kind in ("wiener", "network")]
    for name in (*LOCAL, PRINCIPAL, "residual"):
        ours = highest(scores, name)
        if ours is None:
            continue
        beside = {"local": SMALLER, PRINCIPAL: ("local",), "residual": ("additive", "local")}
        beside = beside.get(name, ())
        smaller = (highest(scores, other) for other in beside)
        for theirs in (*smaller, *references):
            if theirs is not None:
                yield ours, theirs


def differences(
    scores: Sequence[Risk], others: Sequence[Risk], sigmas: Sequence[float]
) -> list[tuple[Any, ...]]:
    """By how much the error of one is above or below another's, at every noise level."""
    rows = []
    for ours, theirs in pairs(scores, others):
        cells = (_cell(ours, theirs, i) for i in range(len(sigmas)))
        rows.append((f"{ours.name} against {theirs.name}", *cells))
    heading = ("error", *(f"sigma {sigma:g}" for sigma in sigmas))
    return [heading, *rows] if rows else []


def _cell(ours: Risk, theirs: Risk, i: int) -> str:
    """`-12.3 ± 1.1 %`, and whether that is within noise."""
    value, error = risk_ratio(ours, theirs, i)
    percent = with_error(100 * (value - 1), None if error is None else 100 * error)
    sign = "+" if value > 1 else ""
    same = side(*risk_difference(ours, theirs, i)) == OPEN
    noise = ", within noise" if same else ""
    return f"{sign}{percent}\u00a0%{noise}"


def gap_in_words(scores: Sequence[Risk], others: Sequence[Risk], sigmas: Sequence[float]) -> str:
    """Where the gap between the local family and the first network is the smallest."""
    networks = [risk for risk in others if risk.kind == "network"]
    ours = highest(scores, "local")
    if not networks or ours is None or len(sigmas) < 2:
        return ""
    ratios = [risk_ratio(ours, networks[0], i) for i in range(len(sigmas))]
    low, high = (
        pick(range(len(sigmas)), key=lambda i: abs(math.log(ratios[i][0]))) for pick in (min, max)
    )
    return (
        f" The error of {ours.name} over that of {networks[0].name} is nearest to 1 at sigma "
        f"{sigmas[low]:g} ({ratios[low][0]:.3g}) and farthest from it at sigma {sigmas[high]:g} "
        f"({ratios[high][0]:.3g}); the paper reports that the gap to trained networks narrows at "
        "low to moderate noise."
    )


def seen(
    local: Sequence[Risk], others: Sequence[Risk], lowest: Sequence[Risk], sigmas: Sequence[float]
) -> str:
    """What the numbers say of the lowest local score of each noise level against all others."""
    words = {LOWER: "lower than", OPEN: "within noise of", HIGHER: "above"}
    if not local:
        return ""
    where: dict[tuple[str, str], list[str]] = {}
    for other in others:
        sides: dict[str, list[str]] = {}
        for i, sigma in enumerate(sigmas):
            said = side(*risk_difference(lowest[i], other, i))
            sides.setdefault(words.get(said, said), []).append(f"{sigma:g}")
        for said, at in sides.items():
            every = "every sigma here" if len(at) == len(sigmas) else f"sigma {', '.join(at)}"
            where.setdefault((said, every), []).append(other.name)
    parts = [f"{said} {', '.join(names)} at {at}" for (said, at), names in sorted(where.items())]
    return (
        f"As measured, the lowest score of a local family (all but {', '.join(FAR)}; "
        "chosen on these images) is "
        f"{'; '.join(parts)}. Lower and above mean beyond the 95 % interval of the difference."
    )
