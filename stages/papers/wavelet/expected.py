"""What fits, their risks and draws take: for plans, as `stages.settings.costs` says.

Roughly: as if every score had as many features as an image has values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.papers.wavelet.draw import DrawSettings
    from stages.papers.wavelet.fit import FitSettings
    from stages.papers.wavelet.risk import RiskSettings
    from stages.settings.costs import Estimate


def fit(settings: FitSettings, given: Mapping[str, Estimate]) -> Estimate:
    """The second moments of all images, and what solves for the score, of every fold."""
    data = given["data"]
    if not {"shape", "images"} <= data.keys():
        return {}
    values, images = prod(data["shape"]), min(settings.num_images or data["images"], data["images"])
    flops = 2.0 * images * values**2 + 10.0 * settings.folds * values**3
    return {"shape": data["shape"], "flops": flops}


def risk(settings: RiskSettings, given: Mapping[str, Estimate]) -> Estimate:
    """The score, or the network, at every level of every held-out image and of as many others."""
    data, model = given["data"], given.get("model", {"forward": 0.0})
    if not {"shape", "held_out"} <= data.keys() or "forward" not in model:
        return {}
    images = min(settings.num_images or data["held_out"], data["held_out"])
    each = model["forward"] + 2.0 * prod(data["shape"]) ** 2
    return {"flops": 2 * images * settings.num_draws * len(settings.sigmas) * each}


def draw(settings: DrawSettings, given: Mapping[str, Estimate]) -> Estimate:
    """The score at every evaluation."""
    shape, count = given["score"].get("shape"), settings.num_samples
    if shape is None:
        return {"images": count}
    flops = 2.0 * count * settings.nfe * prod(shape) ** 2
    return {"images": count, "shape": shape, "flops": flops}
