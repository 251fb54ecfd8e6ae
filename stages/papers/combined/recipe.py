"""The nodes that put the methods together: MaskAlign's training, CSFlow's grid and the calibrated
correction at once, against each alone and none, at equal training steps and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.graph import Node
from stages.papers.stein import calibrate
from stages.papers.stein.calibrate import CalibrationSettings
from stages.recipes.nodes import over_nfe, reference_of
from stages.sampling import sample
from stages.settings.densities import DensityOptions, needs_spectrum
from stages.settings.solvers import SolverOptions
from stages.training import train

if TYPE_CHECKING:
    from stages.bench import Bench


OTHER = "maskalign"


UNIFORM, CSFLOW = "uniform_t", "csflow"


@dataclass(frozen=True)
class Arm:
    """What is put together: a training, a grid and whether steps are corrected."""

    name: str
    method: str
    grid: str = UNIFORM
    corrected: bool = False


def arms(own: str) -> tuple[Arm, ...]:
    """None, each alone, and all."""
    return (
        Arm("plain", own),
        Arm("maskalign", OTHER),
        Arm("csflow", own, CSFLOW),
        Arm("calibrated", own, corrected=True),
        Arm("all", OTHER, CSFLOW, True),
    )


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Samples and scores of every arm; none without CSFlow, where there is no second training, or
    none at equal steps."""
    if not bench.csflow.in_full:
        return []
    trained = {node.name: node.settings.kept_steps for node in nodes if node.stage is train.STAGE}
    own, other = f"train/{bench.train.method}", f"train/{OTHER}"
    if own == other or other not in trained or trained[other][-1] not in trained.get(own, ()):
        return []
    step = trained[other][-1]
    reference, scores = reference_of(bench, nodes), over_nfe(nodes)
    return [
        node
        for arm in arms(bench.train.method)
        for node in _of(bench, arm, step, reference, scores)
    ]


def _of(bench: Bench, arm: Arm, step: int, template: Node, scores: Node) -> Iterator[Node]:
    """Calibrations, samples and scores of an arm over NFE."""
    names = []
    for nfe in bench.combined.nfes:
        sampled = _sample(bench, arm, step, nfe, template)
        if arm.corrected:
            yield _calibration(bench, arm, sampled)
        yield sampled
        names.append(sampled.name)
    inputs = {slot: read for slot, read in scores.inputs.items() if slot != "reference"}
    yield replace(
        scores,
        name=f"evaluate/combined-{arm.name}",
        inputs=inputs | {"samples": names},
        tags=sampled.tags,
    )


def _sample(bench: Bench, arm: Arm, step: int, nfe: int, template: Node) -> Node:
    density = DensityOptions()
    if needs_spectrum(arm.grid):
        density = DensityOptions(mix=bench.csflow.mix, display=bench.csflow.display)
    correction = "calibrated" if arm.corrected else "none"
    settings = template.settings.revised(
        step=step,
        seed=bench.seed,
        solver=bench.sample.solver,
        nfe=nfe,
        grid=arm.grid,
        density=density.model_dump(),
        correction=correction,
    )
    inputs = {"model": f"train/{arm.method}"}
    if needs_spectrum(arm.grid):
        inputs["spectrum"] = "spectrum"
    if arm.corrected:
        inputs["schedule"] = f"calibrate/combined-{arm.name}-nfe{nfe}"
    tags = {"method": arm.method, "grid": settings.grid_name, "correction": correction}
    return replace(
        template,
        name=f"sample/combined-{arm.name}-nfe{nfe}",
        stage=sample.STAGE,
        settings=settings,
        inputs=inputs,
        tags=template.tags | {"solver": settings.solver, "combined": arm.name} | tags,
    )


def _calibration(bench: Bench, arm: Arm, sampled: Node) -> Node:
    """The schedule that an arm's samples read, from the model's own trajectories, so that both
    corrected arms are corrected alike without a teacher's class tokens."""
    solved = {
        name: value
        for name, value in sampled.settings.model_dump().items()
        if name in SolverOptions.model_fields
    }
    settings = CalibrationSettings(
        **bench.stein.on_trajectories()
        | solved
        | {"step": sampled.settings.step, "seed": bench.seed}
    )
    inputs = {
        slot: sampled.inputs[slot] for slot in ("model", "spectrum") if slot in sampled.inputs
    }
    return Node(
        sampled.inputs["schedule"],
        calibrate.STAGE,
        settings,
        inputs,
        bench.resources.calibrate,
        sampled.tags,
    )
