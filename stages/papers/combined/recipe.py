"""The nodes that put the methods together: MaskAlign's training, CSFlow's grid and the calibrated
correction at once, against each alone and none, at equal training steps and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph import Node
from stages.papers.stein import calibrate
from stages.papers.stein.calibrate import CalibrationSettings
from stages.recipes.nodes import curve, sample_node, settings_of, swept
from stages.settings.densities import DensityOptions
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
    return [node for arm in arms(bench.train.method) for node in _of(bench, arm, step)]


def _of(bench: Bench, arm: Arm, step: int) -> Iterator[Node]:
    """Calibrations, samples and scores of an arm over NFE."""
    which = f"combined-{arm.name}"
    density = DensityOptions(mix=bench.csflow.mix, display=bench.csflow.display)
    correction = "calibrated" if arm.corrected else "none"
    common = {"step": step, "grid": arm.grid, "density": density, "correction": correction}
    samples = []
    for nfe in bench.combined.nfes:
        settings = swept(bench, nfe=nfe, **common)
        tags = {"combined": arm.name, "method": arm.method, "grid": settings.grid_name}
        tags |= {"correction": correction}
        name, model = f"{which}-nfe{nfe}", f"train/{arm.method}"
        schedule = {"schedule": f"calibrate/{name}"} if arm.corrected else {}
        samples.append(sample_node(bench, name, model, settings, tags, **schedule))
        if arm.corrected:
            yield _calibration(bench, samples[-1])
        yield samples[-1]
    yield curve(bench, which, samples)[-1]


def _calibration(bench: Bench, sampled: Node) -> Node:
    """The schedule that samples read, from the model's own trajectories, so that both corrected
    arms are corrected alike without a teacher's class tokens."""
    options = bench.stein.on_trajectories()
    return Node(
        sampled.inputs["schedule"],
        calibrate.STAGE,
        settings_of(CalibrationSettings, sampled.settings, **options),
        {slot: name for slot, name in sampled.inputs.items() if slot != "schedule"},
        bench.resources.calibrate,
        sampled.tags,
    )
