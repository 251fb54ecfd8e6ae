"""What a diagnosis takes: for plans, as `stages.settings.costs` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.settings.costs import evaluated

if TYPE_CHECKING:
    from stages.papers.maskalign.diagnose import DiagnoseSettings
    from stages.settings.costs import Estimate


def diagnose(settings: DiagnoseSettings, given: Mapping[str, Estimate]) -> Estimate:
    """At every checkpoint the whole and the masked pass, and back through both."""
    model = given["model"]
    images = min(settings.num_images, given["data"].get("images", settings.num_images))
    evaluations = 6 * settings.num_draws * model.get("checkpoints", 1)
    return evaluated(settings, model, images, evaluations)
