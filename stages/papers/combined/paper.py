"""What is known of the methods put together elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.combined.options import CombinedOptions

PAPER = Paper(
    name="combined",
    sections={"combined": (CombinedOptions, "the methods put together, beside each alone")},
    full="stages.papers.combined.recipe:full_nodes",
    section="stages.papers.combined.section:report",
    claims="stages.papers.combined.claims:of_run",
    key_figure="combined-fid*",
    apart="evaluate/combined-",
)
