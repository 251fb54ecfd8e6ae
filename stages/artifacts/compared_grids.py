"""How far from a model's own samples grids of noise levels leave a solver, on disk."""

from __future__ import annotations

from stages.artifacts.described import DescribedArtifact


class ComparedGrids(DescribedArtifact):
    """Facts: nfe, method, training_step, num_states; `grids`, one by one: name, kind (uniform,
    csflow, best), mix, display_pixels, levels, rms with weights of its own, rms_plain of the plain
    solver, log and log_error of rms over the best grid's, log_to_uniform and its error over the
    uniform grid's; `left_out`, the grids that could not be compared: name and reason."""

    facts = "grids.json"
