"""The nodes of the ICR: two U-Nets, on all and on few images, their samples, scores and scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.data.options import HELD_OUT
from stages.papers.icr import scan
from stages.recipes.given import GIVEN, check_given, sees_images_alone
from stages.recipes.nodes import (
    curve,
    data_node,
    extractor_nodes,
    prepare_nodes,
    seed_suffix,
    settings_of,
)
from stages.sampling import sample
from stages.sampling.sample import SampleSettings
from stages.settings.elsewhere import NetworkOptions
from stages.settings.scans import ScannedOptions, ScanSettings
from stages.training import checkpoint, train
from stages.training.checkpoint import CheckpointSettings
from stages.training.train import TrainSettings

if TYPE_CHECKING:
    from stages.bench import Bench


RICH, LIMITED = "unet-rich", "unet-limited"


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Both trainings with samples and scores of their checkpoints, and the three scans; of a
    network given its own scans alone."""
    _check_held_out(bench)
    if bench.networks.path is not None:
        facts = bench.networks.facts() or {}
        given = [node for node in nodes if node.name == GIVEN] if sees_images_alone(facts) else []
        return [node for model in given for node in _scans_of(bench, model)]
    return _of_seed(bench.model_copy(update={"icr": bench.icr.shortened()}), bench.seed)


def recipe_nodes(bench: Bench) -> list[Node]:
    """The recipe icr: both trainings from several seeds, and networks trained elsewhere.

    Raises UsageError where there is nothing to scan.
    """
    seeds, paths = range(bench.seed, bench.seed + bench.icr.num_seeds), bench.icr.paths
    if bench.networks.path is not None:
        seeds = range(0)  # it is run instead of trainings
    elif not seeds and not paths:
        raise UsageError(
            "icr.num_seeds=0 and no icr.paths leave nothing to scan; set icr.paths or "
            "networks.path to networks trained elsewhere, or icr.num_seeds to 1 or more"
        )
    _check_held_out(bench)
    nodes = [node for seed in seeds for node in _of_seed(bench, seed)]
    own = {node.name.partition("/")[2] for node in nodes}
    if bench.networks.path is not None:
        nodes += _given(bench, bench.networks, GIVEN.partition("/")[2], "networks.path")
        own = {"given"}
    for path, name in zip(paths, _names(paths, own), strict=True):
        nodes += _given(bench, NetworkOptions(path=path), name, "icr.paths")
    return nodes


def _check_held_out(bench: Bench) -> None:
    """Raise UsageError for more held-out images than there can be, where that is known early."""
    data, asked = bench.data, bench.scan.num_images
    own = [data.held_out or HELD_OUT] if data.dataset == "digits" else []
    most = min([*own, *([data.limit_held_out] if data.limit_held_out else [])], default=asked)
    if asked > most:
        raise UsageError(
            f"scan.num_images={asked} is above the {most} held-out images that data.dataset="
            f"{data.dataset} and data.limit_held_out leave; lower it"
        )


def _of_seed(bench: Bench, seed: int) -> list[Node]:
    end = seed_suffix(bench, seed)
    # Where an alarm may end a training, only its last checkpoint is known to be there.
    steps = (None,) if bench.scan.stop else bench.icr.checkpoints
    nodes = []
    for name, limit in ((RICH, bench.icr.train.limit), (LIMITED, bench.icr.limited)):
        trained = _train_node(bench, f"{name}{end}", limit, seed)
        nodes += [trained, *_scanned(bench, trained, steps, "edm", seed)]
        if name == RICH:
            nodes.append(_sigma_node(bench, trained, end))
    return nodes


def _scans_of(bench: Bench, model: Node) -> list[Node]:
    """At the noise level of checkpoints, and over noise levels."""
    name = model.name.partition("/")[2]
    return [_scan_node(bench, f"scan/{name}", model), _sigma_node(bench, model)]


def _names(paths: Sequence[str], own: Container[str]) -> list[str]:
    """A name for each folder that no other network has: its own, with its parent's before it where
    that is not enough, and a number behind where that is not either."""
    folders = [Path(path).expanduser().absolute() for path in paths]
    plain = Counter(folder.name for folder in folders)
    names: list[str] = []

    def free(name: str) -> bool:
        nodes = {f"{name}{end}" for end in ("", "-sigma")}
        others = {*names, *(f"{other}-sigma" for other in names)}
        return not nodes & others and not any(node in own for node in nodes)

    for folder in folders:
        longer = f"{folder.parent.name}-{folder.name}"
        tried = [folder.name] if plain[folder.name] == 1 else []
        numbered = (f"{longer}-{n}" for n in count(2))
        names.append(next(name for name in chain(tried, [longer], numbered) if free(name)))
    return names


def _given(bench: Bench, options: NetworkOptions, name: str, setting: str) -> list[Node]:
    """A network trained elsewhere: samples, scores and scans of all its checkpoints.

    Raises UsageError for one that cannot be scanned.
    """
    scanned = _scans_to_come(bench, bench.icr.components)
    more = {"setting": setting, "scanned": scanned}
    settings = CheckpointSettings(**options.model_dump() | more)
    where = f"{setting}={settings.path}"
    if setting == "icr.paths":
        checkpoint.sources_of(settings)
    facts = settings.facts(setting) or {}
    _check_scanned(where, facts)
    check_given(bench, facts, where)
    tags = {"method": str(facts.get("method", "given")), "path": settings.path}
    inputs, resources = {"data": data_node(bench)}, bench.resources.checkpoint
    given = Node(f"checkpoint/{name}", checkpoint.STAGE, settings, inputs, resources, tags)
    ours = facts.get("format") == "bench"
    # Of the project's own folders all checkpoints; files of the field hold one.
    steps = tuple(facts.get("steps", ())) if ours and options.step is None else (None,)
    over_sigma = settings.over_sigma or facts.get("method") == "edm"
    scanned = _scanned(bench, given, steps, "edm" if over_sigma else "uniform_t", bench.seed)
    return [given, *scanned, _sigma_node(bench, given)]


def _check_scanned(named: str, facts: Mapping[str, Any]) -> None:
    """Raise UsageError for a network whose held-out images alone say too little."""
    if not sees_images_alone(facts):
        raise UsageError(
            f"{named}: a network of method {facts.get('method', 'given')} sees image and class "
            "token together, and held-out images come without one; leave it out"
        )


def _scans_to_come(bench: Bench, *components: int | None) -> tuple[ScannedOptions, ...]:
    """The scan over checkpoints, and those over noise levels with so many components."""
    return tuple(settings_of(ScannedOptions, bench.scan, components=n) for n in (None, *components))


def _train_node(bench: Bench, model: str, limit: int | None, seed: int) -> Node:
    """`train/MODEL` on the first `limit` images; where it runs is train's."""
    options, (size, _) = bench.icr.train, bench.network_shape
    if size is not None and size % options.network.divisor:
        raise UsageError(
            f"icr.train.network.multipliers={options.network.multipliers} halves the images' side "
            f"of {size} pixels too often; give fewer, set data.size to a multiple of "
            f"{options.network.divisor}, or leave this out with icr.in_full=false"
        )
    rich = model.startswith(RICH)
    setting, most = "icr.train.limit" if rich else "icr.limited", bench.data.most_train
    if most is not None and bench.latents.flips:
        most *= 2
    if limit is not None and most is not None and limit > most:
        raise UsageError(
            f"{setting}={limit} is above the {most} training images that data.dataset="
            f"{bench.data.dataset} and data.limit leave; lower it, or leave this out with "
            "icr.in_full=false"
        )
    where = bench.train.model_dump(include={"device", "num_workers"})
    changed = {"limit": limit, "checkpoint_steps": bench.icr.checkpoints, "seed": seed}
    changed |= {"live": bench.scan.watch(may_stop=True), "limit_setting": setting}
    changed |= {"scanned": _scans_to_come(bench, *([bench.icr.components] if rich else []))}
    settings = TrainSettings.model_validate(options.model_dump() | where | changed)
    tags = {"method": settings.method, "data": "all" if limit is None else f"{limit} images"}
    tags |= {"seed": str(seed)}
    inputs = {"data": data_node(bench)}
    return Node(f"train/{model}", train.STAGE, settings, inputs, bench.resources.train, tags)


def _scanned(
    bench: Bench, model: Node, steps: Sequence[int | None], grid: str, seed: int
) -> list[Node]:
    """Samples of a model's checkpoints, their scores over training steps, and the scan."""
    name = model.name.partition("/")[2]
    tags = {**model.tags, "solver": "dpmpp2m", "grid": grid}
    samples = [_sample_node(bench, model, step, grid, seed, tags) for step in steps]
    changes = {"seed": seed, "num_samples": bench.icr.num_samples}
    nodes = curve(bench, name, samples, abscissa="training_step", tags=tags, **changes)
    return [*nodes, _scan_node(bench, f"scan/{name}", model, scores=nodes[-1].name)]


def _sample_node(
    bench: Bench, model: Node, step: int | None, grid: str, seed: int, tags: dict[str, str]
) -> Node:
    options = bench.icr
    settings = SampleSettings(
        solver="dpmpp2m",
        grid=grid,
        nfe=options.nfe,
        num_samples=options.num_samples,
        block_size=min(256, options.num_samples),
        device=bench.sample.device,
        step=step,
        seed=seed,
    )
    name = f"sample/{model.name.partition('/')[2]}-" + ("last" if step is None else f"step{step}")
    inputs = {"model": model.name}
    return Node(name, sample.STAGE, settings, inputs, bench.resources.sample, tags)


def _sigma_node(bench: Bench, model: Node, end: str = "") -> Node:
    """`scan/MODEL-sigma`: over noise levels at the last checkpoint."""
    name = model.name.partition("/")[2].removesuffix(end)
    more = {"sigmas": bench.icr.sigmas, "components": bench.icr.components}
    return _scan_node(bench, f"scan/{name}-sigma{end}", model, more)


def _scan_node(
    bench: Bench, name: str, model: Node, more: Mapping[str, Any] | None = None, **inputs: str
) -> Node:
    settings = settings_of(ScanSettings, bench.scan, **more or {})
    inputs = {"model": model.name, "data": data_node(bench), **inputs}
    return Node(name, scan.STAGE, settings, inputs, bench.resources.scan, model.tags)


def recipe(bench: Bench) -> list[Node]:
    """The memorisation warning in depth: several seeds, all checkpoints, networks given by path."""
    return [*prepare_nodes(bench), *extractor_nodes(bench), *recipe_nodes(bench)]
