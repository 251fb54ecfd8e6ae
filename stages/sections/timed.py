"""Claims about time: measured times differ from run to run, so they are no part of an artifact and
stand with the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.claims import maskalign
from stages.sections import claims

if TYPE_CHECKING:
    from pipeline.results import Run

TIMING = "step_seconds"


def section(run: Run) -> str:
    """HTML of the claims about time, from what nodes measured of their own speed."""
    seconds = {}
    for name in run:
        manifest = run[name].manifest
        rows = manifest.timings.get(TIMING) if manifest is not None else None
        if isinstance(rows, list) and rows:
            seconds[name] = [float(value) for _, value in rows]
    return f"<h3>Claims about time</h3>{claims.table_of([maskalign.cost(seconds)])}"
