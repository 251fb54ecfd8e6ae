"""What is known of ICR (arXiv 2606.09718) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.icr import scan
from stages.papers.icr.options import ICROptions

PAPER = Paper(
    name="icr",
    sections={"icr": (ICROptions, "the trainings whose ICR is scanned")},
    stages=(scan.STAGE,),
    devices={"scan": "scan"},
    recipes={"icr": "stages.papers.icr.recipe:recipe"},
    full="stages.papers.icr.recipe:full_nodes",
    shown=("scan",),
    section="stages.papers.icr.section:report",
    claims="stages.papers.icr.claims:of_run",
    key_figure="icr-steps*",
)
