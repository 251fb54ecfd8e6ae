"""The wavelet score's claims, from risks over sigma of families, baselines and networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stages.claims.findings import (
    EXACT,
    LOWER,
    Claim,
    Effect,
    Finding,
    verdict,
)

if TYPE_CHECKING:
    from stages.risks import Risk

FAMILIES = ("independent", "band-tied", "local")
MODERATE = 1.0  # sigma, in standard deviations of the pixels
RELIABLE = Claim(
    "Wavelet score",
    "The local-coupled family is the most reliable over sigma",
    "no number stated here",
    ("full", "wavelet"),
)
NARROWS = Claim(
    "Wavelet score",
    "The gap to trained networks narrows at low to moderate noise",
    "no number stated here",
    ("full", "wavelet"),
)


def findings(risks: Sequence[Risk]) -> Iterator[Finding]:
    """What risks say; both claims for every data set, or once where there is none."""
    datasets: dict[str, list[Risk]] = {}
    for risk in risks:
        datasets.setdefault(risk.dataset, []).append(risk)
    for found in datasets.values():
        yield _reliable(found)
        if any(risk.kind == "network" for risk in found):
            yield _narrows(found)
    if not datasets:
        yield Finding(RELIABLE)
    if not any(risk.kind == "network" for risk in risks):
        yield Finding(NARROWS)


def _reliable(risks: Sequence[Risk]) -> Finding:
    """The worst case over sigma of a family's risk over the lowest of the three families' risks:
    the local family's against the best of the others."""
    best = {family: found for family in FAMILIES if (found := _best(risks, family)) is not None}
    if set(best) < set(FAMILIES[:1]) | {"local"} or len(best) < 2:
        return Finding(RELIABLE)
    sigmas = risks[0].sigmas
    lowest = [min(values[i] for values in best.values()) for i in range(len(sigmas))]
    worst = {
        family: max(value / low for value, low in zip(values, lowest, strict=True))
        for family, values in best.items()
    }
    others = {family: value for family, value in worst.items() if family != "local"}
    rival = min(others, key=others.__getitem__)
    effect = Effect(100 * math.log(worst["local"] / others[rival]), None, EXACT, unit="log points")
    what = (
        f"{risks[0].dataset}: worst risk over sigma relative to the lowest of the families, local "
        f"{worst['local']:.4g} against {rival} {others[rival]:.4g}"
    )
    heading = ("sigma", *best)
    rows = [(sigma, *(values[i] for values in best.values())) for i, sigma in enumerate(sigmas)]
    note = (
        "each family at its best degree at every sigma; held-out risks in closed form, so that "
        "there is no sampling error, but these are one set of images"
    )
    return Finding(RELIABLE, what, effect, verdict(effect, LOWER), note, (heading, *rows))


def _best(risks: Sequence[Risk], family: str) -> list[float] | None:
    """The lowest risk over a family's degrees, at every sigma."""
    members = [
        risk.mse
        for risk in risks
        if risk.kind == "score" and risk.name.partition("-d")[0] == family
    ]
    return [min(column) for column in zip(*members, strict=True)] if members else None


def _narrows(risks: Sequence[Risk]) -> Finding:
    """The best local score's risk over the network's, in logarithms: its mean up to sigma 1 minus
    its mean above."""
    ours = _best(risks, "local")
    network = next((r for r in risks if r.kind == "network" and "labelled" not in r.name), None)
    if ours is None or network is None:
        return Finding(NARROWS)
    sigmas = network.sigmas
    gaps = [math.log(a / b) for a, b in zip(ours, network.mse, strict=True)]
    errors = [
        None if error is None else error / value
        for error, value in zip(network.standard_error, network.mse, strict=True)
    ]
    low = [i for i, sigma in enumerate(sigmas) if sigma <= MODERATE]
    high = [i for i, sigma in enumerate(sigmas) if sigma > MODERATE]
    if not low or not high or any(error is None for error in errors):
        return Finding(NARROWS)
    value = _mean(gaps, low) - _mean(gaps, high)
    error = math.hypot(_spread(errors, low), _spread(errors, high))
    effect = Effect(100 * value, 100 * error, "jackknife", unit="log points")
    what = (
        f"{network.dataset}: log ratio of the best local score's risk to {network.name}'s, mean up "
        f"to sigma {MODERATE:g} minus mean above"
    )
    heading = ("sigma", "local", network.name, "its error", "local over network")
    rows = [
        (sigma, ours[i], network.mse[i], network.standard_error[i], ours[i] / network.mse[i])
        for i, sigma in enumerate(sigmas)
    ]
    note = "the network is asked without a class; error over held-out images, one training"
    return Finding(NARROWS, what, effect, verdict(effect, LOWER), note, (heading, *rows))


def _mean(values: Sequence[float], chosen: Sequence[int]) -> float:
    return math.fsum(values[i] for i in chosen) / len(chosen)


def _spread(errors: Sequence[float], chosen: Sequence[int]) -> float:
    """Of a mean over noise levels that share their images and noise: errors add up in full."""
    return _mean(errors, chosen)
