"""The nodes that compare solvers and corrections at few evaluations, and measure contractivity.

Calibrations belong to the model: all sampling seeds read the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.methods import table
from stages.papers.stein import calibrate, follow, lipschitz, trajectory
from stages.papers.stein.calibrate import CalibrationSettings
from stages.papers.stein.follow import FollowSettings
from stages.papers.stein.lipschitz import LipschitzSettings
from stages.papers.stein.trajectory import TrajectorySettings
from stages.recipes.given import GIVEN, model_node, model_nodes
from stages.recipes.nodes import (
    curve,
    data_node,
    extractor_nodes,
    prepare_nodes,
    reference_node,
    sample_node,
    seed_suffix,
    settings_of,
    spectrum_input,
    swept,
    teacher_inputs,
)
from stages.sampling import corrections
from stages.settings.solvers import UNIFORM, runnable

if TYPE_CHECKING:
    from stages.bench import Bench
    from stages.sampling.sample import SampleSettings

    SolvedSettings = CalibrationSettings | FollowSettings | LipschitzSettings | SampleSettings


PLAIN, CALIBRATED = "none", "calibrated"


def goes_with(solver: str, correction: str) -> bool:
    """Whether a correction can be sampled with a solver and is not another curve's double."""
    # Around DPM-Solver++ 2M the look-ahead corrector is UniPC.
    around = {entry.around for entry in table.SOLVERS.values()}
    doubled = table.CORRECTIONS[correction].looks_ahead and solver in around
    return not doubled and not corrections.refusal(correction, solver)


@dataclass(frozen=True)
class Solved:
    """Makes the nodes that solve one network. model: the node it comes from."""

    bench: Bench
    model: str

    @property
    def name(self) -> str:
        """What the names of nodes call the model, and tags its method."""
        return self.model.partition("/")[2]

    def referred(self, seed: int) -> Node:
        """The reference samples from the noise of a seed."""
        return reference_node(self.bench, self.name, self.model, seed)

    def solving(self, solver: str, nfe: int, **changes: object) -> SampleSettings:
        """The settings of samples, whose solving a calibration shares.

        Fitted solvers share the grid of the one whose evaluations they take, Euler standing for
        all that need none of their own; those with levels of their own need none.
        """
        grid = self.bench.sample.grid_of(table.counted_as(solver))
        if table.SOLVERS[solver].own_levels:
            grid = UNIFORM
        return swept(self.bench, **{"solver": solver, "nfe": nfe, "grid": grid} | changes)

    def tags(self, settings: SolvedSettings, correction: str) -> dict[str, str]:
        own = {"method": self.name, "solver": settings.solver, "grid": settings.grid_name}
        return own | {"correction": correction, "seed": str(settings.seed)}

    def trajectory(self) -> Node:
        """The model's own fine trajectories, which serve every NFE."""
        bench, grid = self.bench, self.bench.sample.grid
        # Only where it starts counts; a flow model's density starts where the uniform grid does.
        grid = grid if grid in table.GRIDS else UNIFORM
        solving = swept(bench, grid=grid)
        return Node(
            f"trajectory/{self.name}",
            trajectory.STAGE,
            settings_of(TrajectorySettings, bench.stein, solving, nfe=1, solver="euler"),
            {"model": self.model},
            bench.resources.trajectory,
            {"method": self.name},
        )

    def following(self, solver: str, nfe: int) -> Node:
        """Weights and levels of a solver that has its own, at an NFE."""
        settings = settings_of(FollowSettings, self.bench.stein, self.solving(solver, nfe))
        return Node(
            f"follow/{self.name}-{solver}-nfe{nfe}",
            follow.STAGE,
            settings,
            {"model": self.model, "trajectories": self.trajectory().name},
            self.bench.resources.follow,
            {"method": self.name, "solver": solver, "grid": settings.grid_name},
        )

    def fits(self, solver: str, nfes: Sequence[int]) -> list[Node]:
        """What samples of a fitted solver over NFE read."""
        if not table.SOLVERS[solver].own_levels:
            return [self.calibration(solver, nfe) for nfe in runnable(solver, nfes)]
        return [self.trajectory(), *(self.following(solver, nfe) for nfe in nfes)]

    def stored(self, solver: str, nfe: int, correction: str) -> str:
        """The node of the schedule that samples read."""
        own = table.SOLVERS[solver].own_levels and correction == PLAIN
        return f"{'follow' if own else 'calibrate'}/{self.name}-{solver}-nfe{nfe}"

    def calibration(self, solver: str, nfe: int) -> Node:
        """The schedule of a solver at an NFE, or a fitted solver's weights; around one with levels
        of its own the gammas."""
        options, solving = self.bench.stein, self.solving(solver, nfe)
        own_levels = table.SOLVERS[solver].own_levels
        fitted = solver in table.FITTED_SOLVERS and not own_levels
        if fitted or options.target == "trajectory":
            settings = settings_of(CalibrationSettings, solving, **options.on_trajectories())
        else:
            source = options.source or self.own_source(solving.guidance)
            settings = settings_of(CalibrationSettings, options, solving, source=source)
        inputs = {"model": self.model} | spectrum_input(settings.grid)
        if settings.target == "matched":
            inputs |= self.clean(settings)
        if own_levels:
            inputs["weights"] = self.stored(solver, nfe, PLAIN)
        return Node(
            f"calibrate/{self.name}-{solver}-nfe{nfe}",
            calibrate.STAGE,
            settings,
            inputs,
            self.bench.resources.calibrate,
            self.tags(settings, PLAIN if fitted else CALIBRATED),
        )

    @property
    def has_token(self) -> bool:
        """Whether the model carries a class token beside the image."""
        if self.model == GIVEN:
            facts = self.bench.networks.facts() or {}
            return bool(facts.get("config", {}).get("class_token_dim"))
        return self.bench.train.loss_options.uses_class_token

    def own_source(self, guidance: float) -> str:
        """Where clean images come from if nothing is said. Gammas from data undo part of a
        guidance; of samples no clean class tokens are known."""
        return "data" if guidance == 1 or self.has_token else "samples"

    def clean(self, settings: CalibrationSettings) -> dict[str, str]:
        """The inputs that hold clean images, and class tokens where the model carries one.

        Raises UsageError where there are none, or too few.
        """
        given, method, tokens = self.bench.networks, self.bench.train.method, self.has_token
        if tokens and self.model == GIVEN:
            raise UsageError(
                f"networks.path={given.path} carries a class token beside the image, whose "
                "clean values are not known here; set stein.target=trajectory, which needs none"
            )
        if settings.source == "data":
            most = self.bench.data.most_train
            if most is not None and settings.num_images > most:
                raise UsageError(
                    f"stein.num_images={settings.num_images} is above the {most} training images "
                    f"that data.dataset={self.bench.data.dataset} and data.limit leave; lower it"
                )
            taught = teacher_inputs(self.bench, method) if tokens else {}
            return {"data": data_node(self.bench), **taught}
        if tokens:
            raise UsageError(
                f"stein.source=samples and train.method={method} contradict each other: samples "
                "hold no clean class tokens, which this model carries beside the image; leave "
                "stein.source unset, or set stein.target=trajectory"
            )
        if settings.num_images > (count := self.bench.sample.sweep_samples):
            reader, more = "stein.source=samples", ""
            if self.bench.stein.source is None:
                reader, more = "a calibration with guidance", ", or set stein.source=data"
            raise UsageError(
                f"stein.num_images={settings.num_images} is above sample.sweep_samples={count}, "
                f"which {reader} reads; lower stein.num_images, or raise sample.sweep_samples{more}"
            )
        return {"samples": self.referred(self.bench.seed).name}

    def curve(self, solver: str, correction: str, nfes: Sequence[int], seed: int) -> list[Node]:
        """Samples by a solver with a correction over NFE, and their scores; no calibrations."""
        bench, end = self.bench, seed_suffix(self.bench, seed)
        which = f"{self.name}-{solver}" + ("" if correction == PLAIN else f"-{correction}")
        nodes = []
        for nfe in runnable(solver, nfes):
            settings = self.solving(solver, nfe, correction=correction, seed=seed)
            stored = {
                "schedule": self.stored(solver, nfe, correction),
                "data": data_node(bench),
            }
            inputs = {name: stored[name] for name in corrections.inputs(correction, solver)}
            name, tags = f"{which}-nfe{nfe}{end}", self.tags(settings, correction)
            nodes.append(sample_node(bench, name, self.model, settings, tags, **inputs))
        # Samples with noise of their own are not to lie where the reference's do.
        reference = None if solver in table.NOISY_SOLVERS else self.referred(seed).name
        return curve(bench, f"{which}{end}", nodes, reference)

    def contractivity(self, nfes: Sequence[int]) -> Iterator[Node]:
        """The singular values of steps."""
        options = self.bench.stein
        for solver in dict.fromkeys(options.lipschitz_solvers):
            for nfe in runnable(solver, nfes):
                settings = settings_of(LipschitzSettings, options, self.solving(solver, nfe))
                yield Node(
                    f"lipschitz/{self.name}-{solver}-nfe{nfe}",
                    lipschitz.STAGE,
                    settings,
                    {"model": self.model} | spectrum_input(settings.grid),
                    self.bench.resources.lipschitz,
                    self.tags(settings, PLAIN) | {"nfe": str(nfe)},
                )


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Beside the recipe's plain solvers: the calibrated and the fitted ones, and contractivity."""
    made, nfes, seed = Solved(bench, model_node(bench).name), bench.sample.nfes, bench.seed
    added = []
    for solver in dict.fromkeys(bench.sample.solvers):
        added += [made.calibration(solver, nfe) for nfe in runnable(solver, nfes)]
        added += made.curve(solver, CALIBRATED, nfes, seed)
    for solver in dict.fromkeys(bench.stein.fitted):
        added += made.fits(solver, nfes)
        added += made.curve(solver, PLAIN, nfes, seed)
    return [*added, *made.contractivity([bench.stein.lipschitz_nfe])]


def compared_nodes(bench: Bench) -> list[Node]:
    """The recipe stein: every solver with every correction over NFE, for every seed."""
    options, made = bench.stein, Solved(bench, model_node(bench).name)
    if max(options.nfes) >= bench.sample.reference_nfe:
        raise UsageError(
            f"stein.nfes reaches {max(options.nfes)}, not below sample.reference_nfe="
            f"{bench.sample.reference_nfe}; raise sample.reference_nfe, or lower stein.nfes"
        )
    nodes = []
    curves = [(s, c) for s in options.solvers for c in options.corrections if goes_with(s, c)]
    for solver in dict.fromkeys((*options.fitted, *options.more_fitted)):
        nodes += made.fits(solver, options.nfes)
        curves.append((solver, PLAIN))
        # Gammas around weights come from clean images, which no other target has.
        around = options.target == "matched" and CALIBRATED in options.corrections
        if around and not corrections.refusal(CALIBRATED, solver):
            curves.append((solver, CALIBRATED))
    curves = list(dict.fromkeys(curves))
    for solver, correction in curves:
        if "schedule" in table.CORRECTIONS[correction].inputs:
            nodes += [made.calibration(solver, nfe) for nfe in runnable(solver, options.nfes)]
    for seed in range(bench.seed, bench.seed + options.num_seeds):
        nodes.append(made.referred(seed))
        for solver, correction in curves:
            nodes += made.curve(solver, correction, options.nfes, seed)
    return [*nodes, *made.contractivity([options.lipschitz_nfe, *options.more_lipschitz_nfes])]


def recipe(bench: Bench) -> list[Node]:
    """Few-step solvers in depth: all solvers, all corrections, several seeds, contractivity."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench)]
    return [*base, *model_nodes(bench), *compared_nodes(bench)]
