"""What is known of MaskAlign (arXiv 2606.08788) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.maskalign import diagnose
from stages.papers.maskalign.diagnose import DiagnoseOptions
from stages.papers.maskalign.options import ComparisonOptions

PAPER = Paper(
    name="maskalign",
    sections={
        "maskalign": (ComparisonOptions, "what MaskAlign is compared with"),
        "diagnose": (DiagnoseOptions, "where alignment gradients fall, and what masks do to them"),
    },
    stages=(diagnose.STAGE,),
    devices={"diagnose": "diagnose"},
    recipes={"train": "stages.papers.maskalign.recipe:recipe"},
    full="stages.papers.maskalign.recipe:full_nodes",
    shown=("diagnose",),
    section="stages.papers.maskalign.section:report",
    claims="stages.papers.maskalign.claims:of_run",
    key_figure="fid-over-steps*",
    timed="stages.papers.maskalign.claims:timed",
)
