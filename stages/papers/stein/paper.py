"""What is known of SteinDiff (arXiv 2606.07835) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.stein import calibrate, follow, lipschitz, trajectory
from stages.papers.stein.options import SteinOptions

PAPER = Paper(
    name="stein",
    sections={"stein": (SteinOptions, "corrected solvers, and how contractive steps are")},
    stages=(
        calibrate.STAGE,
        trajectory.STAGE,
        follow.STAGE,
        lipschitz.STAGE,
    ),
    devices=dict.fromkeys(("calibrate", "trajectory", "follow", "lipschitz"), "sample"),
    recipes={"stein": "stages.papers.stein.recipe:recipe"},
    full="stages.papers.stein.recipe:full_nodes",
    shown=("calibrate", "follow", "lipschitz"),
    section="stages.papers.stein.section:report",
    claims="stages.papers.stein.claims:of_run",
    key_figure="few-steps-fid-solvers*",
)
