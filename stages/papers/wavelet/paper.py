"""What is known of the wavelet score (arXiv 2606.08309) elsewhere on the bench."""

from __future__ import annotations

from stages.paper import Paper
from stages.papers.wavelet import draw, fit, risk
from stages.papers.wavelet.options import WaveletOptions

PAPER = Paper(
    name="wavelet",
    sections={"wavelet": (WaveletOptions, "wavelet scores")},
    stages=(
        fit.STAGE,
        risk.STAGE,
        draw.STAGE,
    ),
    recipes={"wavelet": "stages.papers.wavelet.recipe:recipe"},
    full="stages.papers.wavelet.recipe:full_nodes",
    shown=("risk", "draw"),
    section="stages.papers.wavelet.section:report",
    claims="stages.papers.wavelet.claims:of_run",
    key_figure="wavelet-*-relative*",
)
