"""The nodes that compare CSFlow with others: grids at equal evaluations, and fine-tuning.

They are made from the nodes that every recipe has: the training, its reference samples and an
evaluation, with other settings, models and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.recipes.nodes import (
    extractor_nodes,
    over_nfe,
    prepare_nodes,
    reference_of,
    seed_suffix,
    solver_nodes,
    train_nodes,
)
from stages.settings.densities import DensityOptions, DensitySettings, needs_spectrum

if TYPE_CHECKING:
    from stages.bench import Bench


UNIFORM = "uniform_t"


@dataclass(frozen=True)
class Templates:
    """Nodes of a recipe from which others follow by changing settings and inputs.

    train, reference, evaluate: the training, the samples trajectory_rms refers to, scores over NFE.
    """

    bench: Bench
    train: Node
    reference: Node
    evaluate: Node

    @classmethod
    def of(cls, bench: Bench, nodes: Sequence[Node]) -> Templates:
        """Those of the recipe's own training method."""
        own = next(node for node in nodes if node.name == f"train/{bench.train.method}")
        return cls(bench, own, reference_of(bench, nodes), over_nfe(nodes))

    def trained(self, seed: int) -> Node:
        """The training with another seed."""
        name = f"{self.train.name}{seed_suffix(self.bench, seed)}"
        return replace(self.train, name=name, settings=self.train.settings.revised(seed=seed))

    def continued(self, model: str, seed: int, density: DensitySettings) -> Node:
        """`train/MODEL`: the training's last weights, trained on with t from a density."""
        settings = self.train.settings.revised(
            seed=seed,
            steps=self.bench.csflow.extra_steps,
            num_checkpoints=1,
            checkpoint_steps=(),
            density=density.model_dump(),
        )
        inputs = {**self.train.inputs, "start": self.trained(seed).name}
        if needs_spectrum(density.kind):
            inputs["spectrum"] = "spectrum"
        return replace(
            self.train,
            name=f"train/{model}{seed_suffix(self.bench, seed)}",
            settings=settings,
            inputs=inputs,
            tags={**self.train.tags, "time_density": density.name, "seed": str(seed)},
        )

    def referred(self, seed: int) -> Node:
        """The reference samples of the training with another seed."""
        return replace(
            self.reference,
            name=f"{self.reference.name}{seed_suffix(self.bench, seed)}",
            settings=self.reference.settings.revised(seed=seed),
            inputs={**self.reference.inputs, "model": self.trained(seed).name},
        )

    def curve(
        self, model: str, seed: int, grid: str, mix: float | None = None, reference: str = ""
    ) -> list[Node]:
        """Samples of `train/MODEL` on a grid over the preset's NFE, and their scores."""
        solver, end = self.bench.sample.solver, seed_suffix(self.bench, seed)
        display = {"display": self.bench.csflow.display} if needs_spectrum(grid) else {}
        density = DensityOptions(mix=mix, **display)
        which = f"{model}-{solver}-{grid}" + ("" if mix is None else f"-a{mix:g}")
        inputs = {k: v for k, v in self.reference.inputs.items() if k != "spectrum"}
        inputs["model"] = f"train/{model}{end}"
        if needs_spectrum(grid):
            inputs["spectrum"] = "spectrum"
        nodes = []
        for nfe in self.bench.sample.nfes_of(solver):
            settings = self.reference.settings.revised(
                seed=seed, solver=solver, nfe=nfe, grid=grid, density=density.model_dump()
            )
            tags = {"solver": solver, "grid": settings.grid_name, "seed": str(seed)}
            nodes.append(
                replace(
                    self.reference,
                    name=f"sample/{which}-nfe{nfe}{end}",
                    settings=settings,
                    inputs=inputs,
                    tags={**self.reference.tags, **tags},
                )
            )
        compared = {k: v for k, v in self.evaluate.inputs.items() if k != "reference"}
        compared |= {"samples": [node.name for node in nodes]}
        compared |= {"reference": reference} if reference else {}
        scores = replace(
            self.evaluate, name=f"evaluate/{which}{end}", inputs=compared, tags=nodes[0].tags
        )
        return [*nodes, scores]


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Inference only: CSFlow's grid, and the uniform one unless `nodes` have it."""
    made_from, method = Templates.of(bench, nodes), bench.train.method
    solver, reference = bench.sample.solver, made_from.reference.name
    found = made_from.curve(method, bench.seed, "csflow", bench.csflow.mix, reference)
    swept = solver in bench.sample.solvers and bench.sample.grid_of(solver) == UNIFORM
    if not swept:
        found += made_from.curve(method, bench.seed, UNIFORM, reference=reference)
    return found


def compared_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The recipe csflow: every grid on the trained model, and fine-tuned models, for every seed."""
    made_from = Templates.of(bench, nodes)
    densities = {kind: fine_tuned_density(bench, kind) for kind in _fine_tuned(bench)}
    _check_fine_tuning(bench)
    found = []
    for seed in range(bench.seed, bench.seed + bench.csflow.num_seeds):
        if seed != bench.seed:
            found.append(made_from.trained(seed))
        found += _of_seed(made_from, seed, densities)
    return found


def _fine_tuned(bench: Bench) -> list[str]:
    """The densities fine-tuned with, CSFlow first."""
    return list(dict.fromkeys(("csflow", *bench.csflow.fine_tuned)))


def _of_seed(
    made_from: Templates, seed: int, densities: Mapping[str, DensitySettings]
) -> list[Node]:
    bench, method = made_from.bench, made_from.bench.train.method
    options, reference = bench.csflow, made_from.referred(seed)
    grids = [(UNIFORM, None)]
    grids += [("csflow", mix) for mix in sorted({options.mix, *options.more_mixes})]
    grids += [(name, options.mix) for name in dict.fromkeys(options.baselines)]
    found = [reference]
    for grid, mix in grids:
        found += made_from.curve(method, seed, grid, mix, reference.name)
    for model, drawn_from in (*densities.items(), (f"{method}-more", bench.train.density)):
        found.append(made_from.continued(model, seed, drawn_from))
        for grid, mix in ((UNIFORM, None), ("csflow", options.mix)):
            found += made_from.curve(model, seed, grid, mix)
    return found


def fine_tuned_density(bench: Bench, kind: str = "csflow") -> DensitySettings:
    """CSFlow's density, or another kind's, mixed with the one the model was trained with.

    Raises UsageError where that is no base: a mixture itself.
    """
    base, options = bench.train.density, bench.csflow
    mixed = {name: getattr(base, name) for name in ("mean", "std")} | {"base": base.kind}
    if base.kind not in ("uniform", "logit_normal") or base.share(base.kind) < 1:
        raise UsageError(
            f"train.density.kind={base.kind} and the recipe csflow contradict each other: "
            "fine-tuning mixes CSFlow's density with the one trained with, which must be uniform "
            "or a pure logit_normal; set train.density.kind=uniform"
        )
    return DensitySettings(
        kind=kind,
        mix=options.mix,
        shift=base.shift,
        **({"display": options.display} if needs_spectrum(kind) else {}),
        **(mixed if options.mix < 1 else {}),
    )


def _check_fine_tuning(bench: Bench) -> None:
    for name in ("warmup_steps", "log_every"):
        value, steps = getattr(bench.train, name), bench.csflow.extra_steps
        if value > steps:
            raise UsageError(
                f"csflow.extra_steps={steps} is below train.{name}={value}; raise "
                f"csflow.extra_steps, or lower train.{name}"
            )
    outside = [mix for mix in bench.csflow.more_mixes if not 0 < mix <= 1]
    if outside:
        raise UsageError(
            f"csflow.more_mixes has {outside[0]:g}; a mix is above 0 and at most 1 (0 is the "
            "uniform grid, which is always compared)"
        )


def recipe(bench: Bench) -> list[Node]:
    """CSFlow in depth: its grid beside others', several mixes, fine-tuning, several seeds."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench), *train_nodes(bench)]
    compared = compared_nodes(bench, [*base, *solver_nodes(bench, bench.train.method)])
    return [*base, *compared]
