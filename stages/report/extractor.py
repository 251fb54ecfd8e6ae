"""The extractor in the report: does its distance rise as real images get worse?"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.scoring.extractor import caution_of

if TYPE_CHECKING:
    from stages.artifacts.extractor import Extractor
    from stages.pages.page import Section

LABELS = {
    "noise": "standard deviation of added noise (images in [-1, 1])",
    "blur": "standard deviation of the blur (share of the side)",
    "dropped classes": "share of classes left out",
}


def sections(inputs: Mapping[str, Any]) -> list[Section]:
    """One section, or none for a run without an extractor. inputs: the report's."""
    if inputs.get("extractor") is None:
        return []
    return [_validation(inputs["extractor"])]


def _validation(extractor: Extractor) -> Section:
    from stages.pages.figures import Axes, Curve, plot
    from stages.pages.page import Section, table

    facts, metrics = extractor.description, extractor.metrics
    accuracy = (
        f" It classifies {metrics['accuracy']:.4g} of the held-out images."
        if "accuracy" in metrics
        else ""
    )
    verdict = (
        f"<p class='failed'>Caution: {html.escape(caution)}.</p>"
        if (caution := caution_of(extractor.description))
        else "<p>The distance rises with every step of every kind.</p>"
    )
    text = (
        f"<p>Extractor {html.escape(facts['name'])}, {facts['dimension']} features, weights "
        f"{facts['weights_hash'][:12]}.{accuracy} Held-out images are made worse step by step and "
        "compared with training images: a distance that can be trusted rises every time. With "
        f"classes left out the sets are smaller, so that the distances stand higher.</p>{verdict}"
    )
    curves = [
        Curve(kind, range(len(curve)), [distance for _, distance in curve])
        for kind, curve in facts["validation"].items()
    ]
    caption = (
        "Fréchet distance of degraded to other real images over the steps of the table; step 0 is "
        "undegraded."
    )
    axes = Axes("step of degradation", "Fréchet distance", log_y=True, ticks=range(_steps(facts)))
    strengths = [("step", *(LABELS[kind] for kind in facts["validation"]))]
    for step in range(_steps(facts)):
        cells = (
            curve[step][0] if step < len(curve) else "" for curve in facts["validation"].values()
        )
        strengths.append((step, *cells))
    figures = [plot("extractor-validation", caption, curves, axes)]
    return Section("Is the extractor to be trusted?", text, [table(strengths)], figures)


def _steps(facts: Mapping[str, Any]) -> int:
    return max(len(curve) for curve in facts["validation"].values())
