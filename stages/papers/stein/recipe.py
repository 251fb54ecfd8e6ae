"""The nodes that compare solvers and corrections at few evaluations, and measure contractivity.

They are made from the nodes that every recipe has: the reference samples and an evaluation, with
other settings and seeds. Calibrations belong to the model: all sampling seeds read the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from pipeline.stage import Settings
from stages.methods import table
from stages.papers.stein import calibrate, lipschitz
from stages.papers.stein.calibrate import CalibrationOptions, CalibrationSettings
from stages.papers.stein.lipschitz import LipschitzSettings, PowerIteration
from stages.recipes.nodes import (
    extractor_nodes,
    needs_teacher,
    over_nfe,
    prepare_nodes,
    reference_of,
    seed_suffix,
    solver_nodes,
    train_nodes,
)
from stages.sampling import corrections
from stages.settings import densities
from stages.settings.solvers import SolverOptions, runnable
from stages.training import checkpoint
from stages.training.checkpoint import CheckpointSettings

if TYPE_CHECKING:
    from stages.bench import Bench


PLAIN, CALIBRATED = "none", "calibrated"


GIVEN = "checkpoint/given"


def carries_token(folder: str) -> bool:
    """Whether the network in a folder laid out as a training's artifact carries a class token
    beside the image; False where its description cannot be read, which its own stage refuses."""
    try:
        facts = json.loads((Path(folder).expanduser() / checkpoint.FACTS).read_text())
        return bool(facts["config"].get("class_token_dim"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def goes_with(solver: str, correction: str) -> bool:
    """Whether a correction can be sampled with a solver and is not another curve's double."""
    # Around DPM-Solver++ 2M the look-ahead corrector is UniPC.
    around = {entry.around for entry in table.SOLVERS.values()}
    doubled = table.CORRECTIONS[correction].looks_ahead and solver in around
    return not doubled and not corrections.refusal(correction, solver)


@dataclass(frozen=True)
class Made:
    """A recipe's nodes from which others follow by changing settings and inputs.

    model: the trained network. reference: samples that trajectory_rms refers to. evaluate: scores
    over NFE.
    """

    bench: Bench
    model: str
    reference: Node
    evaluate: Node

    @classmethod
    def of(cls, bench: Bench, nodes: Sequence[Node]) -> Made:
        """Those of the recipe's own training method."""
        return cls(
            bench, f"train/{bench.train.method}", reference_of(bench, nodes), over_nfe(nodes)
        )

    @property
    def name(self) -> str:
        """What the names of nodes call the model."""
        return self.model.partition("/")[2]

    def referred(self, seed: int) -> Node:
        """The reference samples from the noise of a seed."""
        return replace(
            self.reference,
            name=f"sample/{self.name}-reference{seed_suffix(self.bench, seed)}",
            settings=self.reference.settings.revised(seed=seed),
            inputs={**self.reference.inputs, "model": self.model},
        )

    def grid_of(self, solver: str) -> str:
        """The grid of a solver; fitted ones share that of the solver whose evaluations they take,
        Euler standing for all that need none of their own."""
        return self.bench.sample.grid_of(table.counted_as(solver))

    def solving(self, solver: str, nfe: int) -> dict[str, object]:
        """The settings that a sample node and its calibration share."""
        template = self.reference.settings
        grid = self.grid_of(solver)
        common = {name: getattr(template, name) for name in SolverOptions.model_fields}
        density = self.bench.sample.density.read_by(densities.of_grids([grid]))
        return common | {"solver": solver, "nfe": nfe, "grid": grid, "density": density}

    def read(self, grid: str) -> dict[str, str]:
        """The inputs of a node that solves this model on a grid."""
        spectrum = {"spectrum": "spectrum"} if densities.needs_spectrum(grid) else {}
        return {"model": self.model} | spectrum

    def tags(self, solver: str, correction: str, seed: int) -> dict[str, str]:
        return {
            **self.reference.tags,
            "solver": solver,
            "correction": correction,
            "grid": self.grid_of(solver),
            "seed": str(seed),
        }

    def calibration(self, solver: str, nfe: int) -> Node:
        """The schedule of a solver at an NFE, or a fitted solver's weights."""
        options, bench = self.bench.stein, self.bench
        if solver in table.FITTED_SOLVERS or options.target == "trajectory":
            common = options.on_trajectories()
        else:
            common = {name: getattr(options, name) for name in CalibrationOptions.model_fields}
        settings = CalibrationSettings(
            **common | self.solving(solver, nfe), step=self.reference.settings.step, seed=bench.seed
        )
        inputs = self.read(settings.grid)
        if settings.target == "matched":
            inputs |= self.clean(settings)
        return Node(
            f"calibrate/{self.name}-{solver}-nfe{nfe}",
            calibrate.STAGE,
            settings,
            inputs,
            bench.resources.calibrate,
            self.tags(solver, PLAIN if solver in table.FITTED_SOLVERS else CALIBRATED, bench.seed),
        )

    def clean(self, settings: CalibrationSettings) -> dict[str, str]:
        """The inputs that hold clean images, and class tokens where the model carries one.

        Raises UsageError where there are none, or too few.
        """
        checkpoint, method = self.bench.stein.checkpoint, self.bench.train.method
        given = self.model == GIVEN
        carries = self.bench.train.loss_options.uses_class_token
        tokens = carries_token(checkpoint) if given else carries
        if tokens and given:
            raise UsageError(
                f"stein.checkpoint={checkpoint} carries a class token beside the image, whose "
                "clean values are not known here; set stein.target=trajectory, which needs none"
            )
        if settings.source == "data":
            return {"data": "prepare"} | (needs_teacher(method) if tokens else {})
        if tokens:
            raise UsageError(
                f"stein.source=samples and train.method={method} contradict each other: samples "
                "hold no clean class tokens, which this model carries beside the image; leave "
                "stein.source unset, or set stein.target=trajectory"
            )
        if settings.num_images > (count := self.bench.sample.sweep_samples):
            raise UsageError(
                f"stein.num_images={settings.num_images} is above sample.sweep_samples={count}, "
                "which stein.source=samples reads; lower stein.num_images, or raise "
                "sample.sweep_samples"
            )
        return {"samples": self.referred(self.bench.seed).name}

    def curve(self, solver: str, correction: str, nfes: Sequence[int], seed: int) -> list[Node]:
        """Samples by a solver with a correction over NFE, and their scores; no calibrations."""
        end = seed_suffix(self.bench, seed)
        which = f"{self.name}-{solver}" + ("" if correction == PLAIN else f"-{correction}")
        tags = self.tags(solver, correction, seed)
        nodes = []
        for nfe in runnable(solver, nfes):
            settings = self.reference.settings.revised(
                **_plain(self.solving(solver, nfe)), correction=correction, seed=seed
            )
            inputs = self.read(settings.grid)
            stored = {"schedule": f"calibrate/{self.name}-{solver}-nfe{nfe}", "data": "prepare"}
            inputs |= {name: stored[name] for name in corrections.inputs(correction, solver)}
            nodes.append(
                replace(
                    self.reference,
                    name=f"sample/{which}-nfe{nfe}{end}",
                    settings=settings,
                    inputs=inputs,
                    tags=tags,
                )
            )
        inputs = {**self.evaluate.inputs, "samples": [node.name for node in nodes]}
        inputs["reference"] = self.referred(seed).name
        scores = replace(self.evaluate, name=f"evaluate/{which}{end}", inputs=inputs, tags=tags)
        return [*nodes, scores]

    def contractivity(self, nfes: Sequence[int]) -> Iterator[Node]:
        """The singular values of steps."""
        options = self.bench.stein
        common = {name: getattr(options, name) for name in PowerIteration.model_fields}
        for solver in dict.fromkeys(options.lipschitz_solvers):
            for nfe in runnable(solver, nfes):
                settings = LipschitzSettings(
                    **common | self.solving(solver, nfe),
                    step=self.reference.settings.step,
                    seed=self.bench.seed,
                )
                yield Node(
                    f"lipschitz/{self.name}-{solver}-nfe{nfe}",
                    lipschitz.STAGE,
                    settings,
                    self.read(settings.grid),
                    self.bench.resources.lipschitz,
                    self.tags(solver, PLAIN, self.bench.seed) | {"nfe": str(nfe)},
                )


def _plain(settings: dict[str, object]) -> dict[str, object]:
    """Nested settings as plain data, as `revised` takes them."""
    return {
        name: value.model_dump() if isinstance(value, Settings) else value
        for name, value in settings.items()
    }


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Beside the recipe's plain solvers: the calibrated and the fitted ones, and contractivity."""
    made, nfes, seed = Made.of(bench, nodes), bench.sample.nfes, bench.seed
    found = []
    for solver in dict.fromkeys(bench.sample.solvers):
        found += [made.calibration(solver, nfe) for nfe in runnable(solver, nfes)]
        found += made.curve(solver, CALIBRATED, nfes, seed)
    for solver in dict.fromkeys(bench.stein.fitted):
        found += [made.calibration(solver, nfe) for nfe in runnable(solver, nfes)]
        found += made.curve(solver, PLAIN, nfes, seed)
    return [*found, *made.contractivity([bench.stein.lipschitz_nfe])]


def compared_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The recipe stein: every solver with every correction over NFE, for every seed."""
    options, made = bench.stein, Made.of(bench, nodes)
    if max(options.nfes) >= bench.sample.reference_nfe:
        raise UsageError(
            f"stein.nfes reaches {max(options.nfes)}, not below sample.reference_nfe="
            f"{bench.sample.reference_nfe}; raise sample.reference_nfe, or lower stein.nfes"
        )
    found = []
    if options.checkpoint is not None:
        settings = CheckpointSettings(path=options.checkpoint)
        given = Node(
            GIVEN,
            checkpoint.STAGE,
            settings,
            {"data": "prepare"},
            bench.resources.checkpoint,
        )
        found.append(given)
        made = replace(
            made,
            model=given.name,
            reference=replace(made.reference, tags={**made.reference.tags, "method": "given"}),
        )
    curves = [(s, c) for s in options.solvers for c in options.corrections if goes_with(s, c)]
    curves += [(solver, PLAIN) for solver in options.fitted]
    curves = list(dict.fromkeys(curves))
    for solver, correction in curves:
        if "schedule" in corrections.inputs(correction, solver):
            found += [made.calibration(solver, nfe) for nfe in runnable(solver, options.nfes)]
    for seed in range(bench.seed, bench.seed + options.num_seeds):
        found.append(made.referred(seed))
        for solver, correction in curves:
            found += made.curve(solver, correction, options.nfes, seed)
    return [*found, *made.contractivity([options.lipschitz_nfe, *options.more_lipschitz_nfes])]


def recipe(bench: Bench) -> list[Node]:
    """Few-step solvers in depth: all solvers, all corrections, several seeds, contractivity."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench)]
    trained = train_nodes(bench) if bench.stein.checkpoint is None else []
    templates = solver_nodes(bench, bench.train.method)
    return [*base, *trained, *compared_nodes(bench, templates)]
