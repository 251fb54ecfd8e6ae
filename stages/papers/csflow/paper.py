"""What is known of CSFlow (arXiv 2606.08833) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.csflow.options import CSFlowOptions

PAPER = Paper(
    name="csflow",
    sections={"csflow": (CSFlowOptions, "what CSFlow is compared with")},
    recipes={"csflow": "stages.papers.csflow.recipe:recipe"},
    full="stages.papers.csflow.recipe:full_nodes",
    section="stages.papers.csflow.section:report",
    claims="stages.papers.csflow.claims:of_run",
    key_figure="csflow-fid*",
)
