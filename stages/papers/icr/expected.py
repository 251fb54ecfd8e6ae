"""What a scan takes: for plans, as `stages.settings.costs` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.settings.costs import evaluated

if TYPE_CHECKING:
    from stages.settings.costs import Estimate
    from stages.settings.scans import ScanSettings


def scan(settings: ScanSettings, given: Mapping[str, Estimate]) -> Estimate:
    """For every row the views of its images, the errors of as many on both sides, the probe."""
    model, data = given["model"], given["data"]
    rows = len(settings.sigmas) or len(settings.steps) or model.get("checkpoints", 1)

    def there(asked: int, part: str) -> int:
        return min(asked, data.get(part, asked))

    views = settings.num_views * len(settings.view_seeds)
    passes = settings.num_images * (views + 2 * settings.loss_draws)
    if settings.probe:
        passes += sum(there(settings.probe_images, part) for part in ("images", "held_out"))
    return evaluated(settings, model, passes, rows)
