"""The nodes that compare CSFlow with others: grids at equal evaluations, and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.recipes.given import GIVEN, model_nodes
from stages.recipes.nodes import (
    curve,
    extractor_nodes,
    prepare_nodes,
    reference_node,
    sample_node,
    seed_suffix,
    spectrum_input,
    swept,
    train_node,
)
from stages.settings.densities import DensityOptions, DensitySettings, needs_spectrum

if TYPE_CHECKING:
    from stages.bench import Bench


UNIFORM = "uniform_t"


def continued(bench: Bench, model: str, seed: int, density: DensitySettings) -> Node:
    """`train/MODEL`: the training's last weights, trained on with t from a density."""
    start, tags = train_node(bench, seed=seed), {"time_density": density.name, "seed": str(seed)}
    node = train_node(
        bench,
        model,
        seed,
        tags,
        steps=bench.csflow.extra_steps,
        num_checkpoints=1,
        checkpoint_steps=(),
        density=density.model_dump(),
    )
    inputs = {**start.inputs, "start": start.name} | spectrum_input(density.kind)
    return replace(node, inputs=inputs)


def grid_curve(
    bench: Bench, model: str, seed: int, grid: str, mix: float | None = None, reference: str = ""
) -> list[Node]:
    """Samples of `train/MODEL`, or of the network given, on a grid over the preset's NFE, and their
    scores."""
    solver, end = bench.sample.solver, seed_suffix(bench, seed)
    density = DensityOptions(mix=mix, display=bench.csflow.display)
    which = f"{model}-{solver}-{grid}" + ("" if mix is None else f"-a{mix:g}")
    given = model == GIVEN.partition("/")[2]
    where, own = (GIVEN, {"method": model}) if given else (f"train/{model}{end}", {})
    nodes = []
    for nfe in bench.sample.nfes_of(solver):
        settings = swept(bench, seed=seed, solver=solver, nfe=nfe, grid=grid, density=density)
        tags = {"grid": settings.grid_name, "seed": str(seed), **own}
        name = f"{which}-nfe{nfe}{end}"
        nodes.append(sample_node(bench, name, where, settings, tags))
    return curve(bench, f"{which}{end}", nodes, reference)


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Inference only: CSFlow's grid, and the uniform one unless `nodes` have it."""
    method, solver = bench.train.method, bench.sample.solver
    if bench.networks.path is not None:
        method = GIVEN.partition("/")[2]
    reference = f"sample/{method}-reference"
    added = grid_curve(bench, method, bench.seed, "csflow", bench.csflow.mix, reference)
    if solver not in bench.sample.solvers or bench.sample.grid_of(solver) != UNIFORM:
        added += grid_curve(bench, method, bench.seed, UNIFORM, reference=reference)
    return added


def compared_nodes(bench: Bench) -> list[Node]:
    """The recipe csflow: every grid on the trained model, and fine-tuned models, for every seed; of
    a network given the grids alone, its training being another's."""
    seeds = range(bench.seed, bench.seed + bench.csflow.num_seeds)
    if bench.networks.path is not None:
        _check_mixes(bench)
        name = GIVEN.partition("/")[2]
        return [node for seed in seeds for node in _grids(bench, name, GIVEN, seed)]
    densities = {kind: fine_tuned_density(bench, kind) for kind in _fine_tuned(bench)}
    _check_fine_tuning(bench)
    _check_mixes(bench)
    nodes = []
    for seed in seeds:
        if seed != bench.seed:
            nodes.append(train_node(bench, seed=seed))
        nodes += _of_seed(bench, seed, densities)
    return nodes


def _fine_tuned(bench: Bench) -> list[str]:
    """The densities fine-tuned with, CSFlow first."""
    return list(dict.fromkeys(("csflow", *bench.csflow.fine_tuned)))


def _grids(bench: Bench, name: str, model: str, seed: int) -> list[Node]:
    """Samples of the node `model` on every grid, and those that they are compared with."""
    options = bench.csflow
    reference = reference_node(bench, name, model, seed)
    grids = [(UNIFORM, None)]
    grids += [("csflow", mix) for mix in sorted({options.mix, *options.more_mixes})]
    grids += [(name, options.mix) for name in dict.fromkeys(options.baselines)]
    nodes = [reference]
    for grid, mix in grids:
        nodes += grid_curve(bench, name, seed, grid, mix, reference.name)
    return nodes


def _of_seed(bench: Bench, seed: int, densities: Mapping[str, DensitySettings]) -> list[Node]:
    options, method = bench.csflow, bench.train.method
    nodes = _grids(bench, method, train_node(bench, seed=seed).name, seed)
    for model, drawn_from in (*densities.items(), (f"{method}-more", bench.train.drawn)):
        nodes.append(continued(bench, model, seed, drawn_from))
        for grid, mix in ((UNIFORM, None), ("csflow", options.mix)):
            nodes += grid_curve(bench, model, seed, grid, mix)
    return nodes


def fine_tuned_density(bench: Bench, kind: str = "csflow") -> DensitySettings:
    """CSFlow's density, or another kind's, mixed with the one the model was trained with.

    Raises UsageError where that is no base: a mixture itself.
    """
    base, options = bench.train.drawn, bench.csflow
    mixed = base.model_dump(include={"mean", "std"}) | {"base": base.kind}
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


def _check_mixes(bench: Bench) -> None:
    outside = [mix for mix in bench.csflow.more_mixes if not 0 < mix <= 1]
    if outside:
        raise UsageError(
            f"csflow.more_mixes has {outside[0]:g}; a mix is above 0 and at most 1 (0 is the "
            "uniform grid, which is always compared)"
        )


def recipe(bench: Bench) -> list[Node]:
    """CSFlow in depth: its grid beside others', several mixes, fine-tuning, several seeds."""
    base = [*prepare_nodes(bench), *extractor_nodes(bench), *model_nodes(bench)]
    return [*base, *compared_nodes(bench)]
