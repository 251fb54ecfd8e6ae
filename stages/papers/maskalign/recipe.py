"""The nodes that compare MaskAlign with its ancestors: teacher, trainings, scores, diagnostics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.methods import table
from stages.papers.maskalign import diagnose
from stages.papers.maskalign.diagnose import DiagnoseSettings
from stages.papers.maskalign.options import ComparisonOptions
from stages.recipes.given import given_node
from stages.recipes.nodes import (
    data_node,
    extractor_nodes,
    prepare_nodes,
    seed_suffix,
    settings_of,
    spectrum_input,
    step_curve,
    teacher_inputs,
    train_node,
)
from stages.sampling import sample
from stages.scoring import evaluate
from stages.settings.methods import options_of
from stages.training import train

if TYPE_CHECKING:
    from stages.bench import Bench


# A network's arguments and the settings of train.network that give them.
SIZES = {"width": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch"}


def recipe(bench: Bench) -> list[Node]:
    """Training in depth: every method from several seeds, MaskAlign's parts taken away; fresh, or
    going on from a network given."""
    # Latents are decoded before they are scored, which takes the autoencoder.
    scored = not bench.is_latent or bench.latents.autoencoder is not None
    scorers = extractor_nodes(bench) if scored else []
    compared = going_on(bench, compared_nodes(bench, with_scores=bool(scorers)))
    return [*prepare_nodes(bench), *scorers, *compared]


def going_on(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, all trainings going on from the network given, if there is one.

    Raises UsageError for a network that no training goes on from, or that differs in size.
    """
    given = given_node(bench)
    if given is None:
        return list(nodes)
    facts = bench.networks.facts() or {}
    _check_goes_on(bench, facts, nodes)
    trained = [
        replace(node, inputs={**node.inputs, "start": given.name})
        if node.stage is train.STAGE
        else node
        for node in nodes
    ]
    return [given, *trained]


def _check_goes_on(bench: Bench, facts: Mapping[str, Any], nodes: Sequence[Node]) -> None:
    """Raise UsageError for a network that a training does not go on from."""
    named, size = f"networks.path={bench.networks.path}", bench.train.network
    kind, format = facts.get("network"), facts.get("format", bench.networks.format)
    if kind in table.TRAINED_PUBLISHED and format != "bench":
        trained = [node.settings for node in nodes if node.stage is train.STAGE]
        if wrong := [s for s in trained if s.network.kind != kind]:
            own = "jit" if kind == "jit" else "edm"
            raise UsageError(
                f"{named} is a network of kind {kind}, and {wrong[0].method} would train a "
                f"{wrong[0].network.kind}; set maskalign.methods=[{own}], train.method={own} and "
                f"train.network.kind={kind}"
            )
        return
    if kind not in (None, "sit") or format not in (None, "bench", "sit", "repa", "reg"):
        raise UsageError(
            f"{named} is of format {format}; trainings go on from files of sit, repa, reg, edm, "
            "edm2 and jit, others are run by stein, csflow, icr and wavelet"
        )
    theirs = facts.get("config", {})
    for theirs_name, name in SIZES.items():
        if theirs_name in theirs and theirs[theirs_name] != getattr(size, name):
            raise UsageError(
                f"{named} has {theirs_name} {theirs[theirs_name]}, and train.network.{name} is "
                f"{getattr(size, name)}; set train.network.{name}={theirs[theirs_name]}"
            )


def training(
    bench: Bench,
    name: str,
    method: str,
    seed: int,
    scored: Sequence[int] | None = None,
    **changes: object,
) -> Node:
    """`train/NAME`: the method, with changes of its own settings.

    scored: the steps it keeps, ascending, and its length the last; None for the compared ones.

    Raises UsageError for settings that contradict each other.
    """
    options = bench.maskalign
    *before, last = scored or [options.steps]
    revised = {
        "method": method,
        "steps": last,
        "checkpoint_steps": tuple(before),
        "num_checkpoints": 1 if scored else options.num_checkpoints,
    }
    if changes:
        revised[method] = getattr(bench.train, method).model_dump() | changes
    try:
        return train_node(bench, name, seed, {"seed": str(seed)}, **revised)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]
        words = str(reason.get("ctx", {}).get("error", reason["msg"]))
        raise UsageError(f"train, for maskalign.methods {method}: {words}") from error


def diagnosis(bench: Bench, method: str, seed: int) -> Node:
    """Heatmaps and gap of `train/METHOD`. Raises UsageError where an image is one patch."""
    (size, _), patch = bench.network_shape, bench.train.network.patch
    if size is not None and size // patch < 2:
        raise UsageError(
            f"train.network.patch={patch} makes an image of {size} pixels a side one patch, "
            f"and diagnostics of {method} compare patches; lower train.network.patch"
        )
    name = f"{method}{seed_suffix(bench, seed)}"
    density = bench.train.density or options_of(method).own_density()
    return Node(
        f"diagnose/{name}",
        diagnose.STAGE,
        settings_of(DiagnoseSettings, bench.diagnose, seed=bench.seed, density=density),
        {
            "model": f"train/{name}",
            "data": data_node(bench),
            **teacher_inputs(bench, method),
            **spectrum_input(density.kind),
        },
        bench.resources.diagnose,
        tags={"method": method, "seed": str(seed)},
    )


def common_steps(own: Sequence[int], options: ComparisonOptions) -> tuple[int, ...]:
    """The steps at which other methods are scored beside a training that is scored at `own`.

    Those of `own` up to `options.steps`, its first at the least, and `options.num_checkpoints` of
    them at the most, at equal distances.
    """
    within = [step for step in own if step <= options.steps] or list(own[:1])
    count = min(options.num_checkpoints, len(within))
    return tuple(within[len(within) * i // count - 1] for i in range(1, count + 1))


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Beside the recipe's own training: the other methods, their scores, and diagnostics; of a
    network given nothing, which takes no part in a comparison of trainings."""
    if bench.networks.path is not None:
        return []
    own, seed = bench.train.method, bench.seed
    options, added = bench.maskalign, []
    for method in options.methods:
        if method != own:
            node = training(bench, method, method, seed)
            if not {*node.settings.kept_steps} <= {*bench.train.kept_steps}:
                scored = common_steps(bench.train.kept_steps, options)
                node = training(bench, method, method, seed, scored)
            steps, seeds = node.settings.kept_steps, range(seed, seed + bench.sample.num_seeds)
            added += [node, *step_curve(bench, method, method, steps, seeds, trained=seed)]
        if teacher_inputs(bench, method):
            added.append(diagnosis(bench, method, seed))
    return added


def compared_nodes(bench: Bench, with_scores: bool) -> list[Node]:
    """The recipe train: every method from several seeds, then MaskAlign's parts taken away.

    with_scores: without them nothing is sampled but the last checkpoints.
    """
    options = bench.maskalign
    seeds = range(bench.seed, bench.seed + options.num_seeds)
    nodes: list[Node] = []
    for seed in seeds:
        for method in options.methods:
            nodes.append(training(bench, method, method, seed))
            if teacher_inputs(bench, method):
                nodes.append(diagnosis(bench, method, seed))
    for method in options.methods:
        steps = training(bench, method, method, bench.seed).settings.kept_steps
        nodes += step_curve(bench, method, method, steps, seeds)
    parts = options.ablation_seeds if bench.train.network.kind == "sit" else 0
    seeds = range(bench.seed, bench.seed + parts)
    steps = options.ablation_steps or options.steps
    first = options.methods[0] if options.methods else "sit"
    kept = training(bench, first, first, bench.seed).settings.kept_steps
    if seeds and steps not in kept:
        raise UsageError(
            f"maskalign.ablation_steps={steps} is not a step that every method is scored at "
            f"({', '.join(map(str, kept))}); choose one of these"
        )
    for name, changes in ablations(bench) if seeds else ():
        nodes += [training(bench, name, "maskalign", seed, [steps], **changes) for seed in seeds]
        nodes += step_curve(bench, name, "maskalign", [steps], seeds)
    return nodes if with_scores else [node for node in nodes if _is_unscored(node, options.steps)]


def _is_unscored(node: Node, last_step: int) -> bool:
    """Whether a node stays where nothing is scored."""
    if node.stage is sample.STAGE:
        return node.settings.step == last_step
    return node.stage is not evaluate.STAGE


def ablations(bench: Bench) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and changed settings of every training that takes parts of MaskAlign away.

    The training that all settings name is none of them; without mask and mixing it is REG.
    """
    own, options = bench.train.maskalign, bench.maskalign
    for ratio in options.mask_ratios:
        if ratio != own.mask_ratio:
            yield f"maskalign-ratio{ratio:g}", {"mask_ratio": ratio}
    for layers in options.mix_layers:
        if layers != own.mix_layers:
            yield f"maskalign-mix{layers}", {"mix_layers": layers}
