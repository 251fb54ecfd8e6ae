"""What is known of the sixth paper elsewhere on the bench."""

from __future__ import annotations

from stages.papers.sixth import contrast

from stages.paper import Paper

PAPER = Paper(
    name="sixth",
    sections={"sixth": (contrast.ContrastOptions, "how contrast is measured")},
    stages=(contrast.STAGE,),
    recipes={"sixth": "stages.papers.sixth.recipe:recipe"},
    full="stages.papers.sixth.recipe:full_nodes",
    shown=("contrast",),
    section="stages.papers.sixth.section:report",
    claims="stages.papers.sixth.section:of_run",
)
