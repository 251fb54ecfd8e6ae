"""What is known of SteinDiff (arXiv 2606.07835) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.stein import calibrate, lipschitz
from stages.papers.stein.options import SteinOptions

PAPER = Paper(
    name="stein",
    sections={"stein": (SteinOptions, "corrected solvers, and how contractive steps are")},
    stages=(
        calibrate.STAGE,
        lipschitz.STAGE,
    ),
    devices={"calibrate": "sample", "lipschitz": "sample"},
    recipes={"stein": "stages.papers.stein.recipe:recipe"},
    full="stages.papers.stein.recipe:full_nodes",
    shown=("calibrate", "lipschitz"),
    section="stages.papers.stein.section:report",
    claims="stages.papers.stein.claims:of_run",
    key_figure="few-steps-fid-solvers*",
)
