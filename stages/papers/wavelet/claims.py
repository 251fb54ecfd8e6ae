"""The wavelet score's claims, from risks over sigma of families and networks, image by image.

Of a family the highest degree stands for it, whatever came out: choosing on these images would
flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from stages.pages.findings import LOWER, Claim, Effect, Finding, verdict
from stages.papers.wavelet.denoisers import PRINCIPAL, SMALLER, by_dataset, highest

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.risks import Risk
    from stages.pages.made import Made

MODERATE = 1.0  # sigma, in standard deviations of the pixels
UNIT = "% (log)"
RELIABLE = Claim(
    "Wavelet score",
    "The local-coupled family is the most reliable over sigma",
    "no number stated here",
    ("full", "wavelet"),
    "local",
)
NARROWS = Claim(
    "Wavelet score",
    "The gap to trained networks narrows at low to moderate noise",
    "no number stated here",
    ("full", "wavelet"),
    "gap",
)
NO_PAPER = "ours, no paper's"
BELOW_WIENER = Claim(
    "Wavelet score",
    "Ours: polynomials of principal coordinates are below the Wiener filter",
    NO_PAPER,
    ("full", "wavelet"),
    "Wiener",
)
BELOW_NETWORK = Claim(
    "Wavelet score",
    "Ours: from sigma 1 on they are below a trained network that is told no class",
    NO_PAPER,
    ("full", "wavelet"),
    "network",
)
NOTE = "error over held-out images, image by image on one noise"


def findings(risks: Sequence[Risk]) -> Iterator[Finding]:
    """What risks say; both claims for every data set, or once where there is none."""
    datasets = by_dataset(risks).values()
    yield from map(_reliable, datasets) if datasets else [Finding(RELIABLE)]
    narrows = [_narrows(of) for of in datasets if any(risk.kind == "network" for risk in of)]
    yield from narrows or [Finding(NARROWS)]
    yield from _found(BELOW_WIENER, datasets, "wiener", 0.0)
    yield from _found(BELOW_NETWORK, datasets, "network", MODERATE)


def _found(
    claim: Claim, datasets: Collection[Sequence[Risk]], kind: str, least: float
) -> Iterator[Finding]:
    """The claim on every data set with the principal family and a denoiser of the kind; once where
    there is none."""
    found = [one for of in datasets if (one := _principal(claim, of, kind, least)) is not None]
    yield from found or [Finding(claim)]


def _principal(claim: Claim, risks: Sequence[Risk], kind: str, least: float) -> Finding | None:
    """Mean over sigma, from `least` on, of the principal family's log risk minus the other's."""
    ours = highest([risk for risk in risks if risk.kind == "score"], PRINCIPAL)
    # A network that is told the class knows more than any of these.
    alike = (risk for risk in risks if risk.kind == kind and not risk.name.endswith(" labelled"))
    other = next(alike, None)
    every = [] if ours is None else [i for i, s in enumerate(ours.sigmas) if s >= least]
    if other is None or not every:
        return None
    effect = _effect(ours, other, dict.fromkeys(every, 1 / len(every)))
    what = (
        f"{ours.dataset}: risk of {ours.name} against {other.name}, geometric mean over sigma "
        f"{ours.sigmas[every[0]]:g} to {ours.sigmas[every[-1]]:g}"
    )
    heading = ("sigma", ours.name, other.name, "ratio")
    rows = [(ours.sigmas[i], ours.mse[i], other.mse[i], ours.mse[i] / other.mse[i]) for i in every]
    return Finding(claim, what, effect, verdict(effect, LOWER), NOTE, (heading, *rows))


def _reliable(risks: Sequence[Risk]) -> Finding:
    """Mean over sigma of the local family's log risk minus that of the best other family."""
    scores = [risk for risk in risks if risk.kind == "score"]
    ours = highest(scores, "local")
    others = [risk for name in SMALLER if (risk := highest(scores, name)) is not None]
    if ours is None or not others:
        return Finding(RELIABLE)
    every = range(len(ours.sigmas))
    rival = min(others, key=lambda risk: _mean_log(risk, every))
    effect = _effect(ours, rival, dict.fromkeys(every, 1 / len(every)))
    shown = [ours, *others]
    worst = {
        risk.name: max(risk.mse[i] / min(one.mse[i] for one in shown) for i in every)
        for risk in shown
    }
    listed = ", ".join(f"{name} {value:.3g}" for name, value in worst.items())
    what = f"{ours.dataset}: risk of {ours.name} against {rival.name}, geometric mean over sigma"
    heading = ("sigma", *(risk.name for risk in shown))
    rows = [(sigma, *(risk.mse[i] for risk in shown)) for i, sigma in enumerate(ours.sigmas)]
    note = f"worst risk over the lowest at a sigma: {listed}; {NOTE}"
    return Finding(RELIABLE, what, effect, verdict(effect, LOWER), note, (heading, *rows))


def _narrows(risks: Sequence[Risk]) -> Finding:
    """Log of the local score's risk over the network's: its mean up to sigma 1 minus that above."""
    ours = highest([risk for risk in risks if risk.kind == "score"], "local")
    network = next(risk for risk in risks if risk.kind == "network")
    low = [i for i, sigma in enumerate(network.sigmas) if sigma <= MODERATE]
    high = [i for i, sigma in enumerate(network.sigmas) if sigma > MODERATE]
    if ours is None or not low or not high:
        return Finding(NARROWS)
    weights = {i: 1 / len(low) for i in low} | {i: -1 / len(high) for i in high}
    effect = _effect(ours, network, weights)
    what = (
        f"{ours.dataset}: risk of {ours.name} over that of {network.name}, mean up to sigma "
        f"{MODERATE:g} against mean above"
    )
    heading = ("sigma", ours.name, network.name, "ratio")
    rows = [
        (sigma, ours.mse[i], network.mse[i], ours.mse[i] / network.mse[i])
        for i, sigma in enumerate(ours.sigmas)
    ]
    note = f"the network is asked without a class, one training; {NOTE}"
    return Finding(NARROWS, what, effect, verdict(effect, LOWER), note, (heading, *rows))


def _effect(ours: Risk, theirs: Risk, weights: Mapping[int, float]) -> Effect:
    """100 times the weighted sum over noise levels of log(ours / theirs), with the error over
    images, to first order."""
    value = math.fsum(w * math.log(ours.mse[i] / theirs.mse[i]) for i, w in weights.items())
    parts = [w * (_share(ours, i) - _share(theirs, i)) for i, w in weights.items()]
    influence = sum(parts[1:], parts[0])
    error = float(influence.std() / len(influence) ** 0.5)
    return Effect(100 * value, 100 * error, "influence", unit=UNIT)


def _share(risk: Risk, i: int) -> Tensor:
    """(B,) each image's error over the mean one."""
    return risk.per_image[i].double() / risk.mse[i]


def _mean_log(risk: Risk, every: Sequence[int]) -> float:
    return math.fsum(math.log(risk.mse[i]) for i in every) / len(every)


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of the wavelet score's claims."""
    yield from findings([artifact.load() for artifact in made.of("risk").values()])
