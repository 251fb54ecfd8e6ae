"""What is known of this beyond the papers elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.beyond import compared
from stages.papers.beyond.options import BeyondOptions

PAPER = Paper(
    name="beyond",
    sections={"beyond": (BeyondOptions, "what goes beyond the papers")},
    stages=(compared.STAGE,),
    devices={"grids": "sample"},
    recipes={"beyond": "stages.papers.beyond.recipe:recipe"},
    shown=("grids",),
    section="stages.papers.beyond.section:report",
    claims="stages.papers.beyond.claims:of_run",
    key_figure="whole-trajectory-rms*",
    timed="stages.papers.beyond.claims:timed",
)
