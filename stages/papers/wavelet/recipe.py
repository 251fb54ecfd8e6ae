"""The nodes of the wavelet score: fits, risks beside baselines and networks, and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.data import prepare
from stages.data.options import PrepareSettings
from stages.methods import table
from stages.papers.wavelet import draw, fit, risk
from stages.papers.wavelet.draw import DrawSettings
from stages.papers.wavelet.fit import FitSettings, check_levels
from stages.papers.wavelet.options import PHOTOGRAPHS
from stages.papers.wavelet.risk import BASELINES, RiskSettings
from stages.recipes.given import GIVEN, model_nodes, sees_images_alone
from stages.recipes.nodes import (
    data_node,
    prepare_nodes,
    settings_of,
    spectrum_input,
)
from stages.settings.solvers import UNIFORM, runnable_nfe
from stages.training import train

if TYPE_CHECKING:
    from stages.bench import Bench


def recipe(bench: Bench) -> list[Node]:
    """Wavelet scores in depth: all families and degrees, on photographs too, and their samples."""
    nodes = [*prepare_nodes(bench), *model_nodes(bench)]
    return [*nodes, *recipe_nodes(bench, nodes)]


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Fits of `models`, their risks and those of baselines and of the networks in `nodes`."""
    bench.wavelet.check("models")
    return [
        *_fits_and_risks(bench, bench.wavelet.models, bench.data, remedy="wavelet.in_full=false"),
        *_baseline_risks(bench),
        *_network_risks(bench, nodes if sees_images_alone(bench.networks.facts() or {}) else []),
    ]


def recipe_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The recipe wavelet: all scores on both data sets, and samples of some."""
    options = bench.wavelet
    options.check("all_models", "drawn")
    models = tuple(dict.fromkeys((*options.all_models, *options.drawn)))
    own = [
        *_fits_and_risks(bench, models, bench.data),
        *_baseline_risks(bench),
        *_network_risks(bench, nodes),
        *_drawn(bench, bench.data),
    ]
    if not options.with_photographs:
        return own
    photographs, end = options.photographs, PHOTOGRAPHS
    where = f"prepare/{end}"
    return [
        *own,
        Node(where, prepare.STAGE, photographs, resources=bench.resources.prepare),
        *_fits_and_risks(bench, models, photographs, where, end, "wavelet.with_photographs=false"),
        *_baseline_risks(bench, where, end),
        *_drawn(bench, photographs, end),
    ]


def _named(*parts: str) -> str:
    return "-".join(part for part in parts if part)


def _fits_and_risks(
    bench: Bench,
    models: Sequence[str],
    images: PrepareSettings,
    data: str = "",
    end: str = "",
    remedy: str = "",
) -> Iterator[Node]:
    for model in models:
        settings = bench.wavelet.fit_settings(model)
        _check(bench, settings, images, remedy)
        name = _named("fit/wavelet", model, end)
        tags = {"method": f"wavelet-{model}", "dataset": images.dataset}
        inputs = {"data": data or data_node(bench)}
        yield Node(name, fit.STAGE, settings, inputs, bench.resources.fit, tags)
        inputs = {**inputs, "score": name}
        yield _risk_node(bench, _named("wavelet", model, end), inputs, tags, denoiser="score")


def _check(bench: Bench, settings: FitSettings, images: PrepareSettings, remedy: str) -> None:
    """Refuse, before any work, what size, levels and memory cannot do where they are known."""
    size, channels = images.image_size, images.image_channels
    if images is bench.data:
        size, channels = bench.network_shape
    if size is None:
        return
    try:
        check_levels(bench.wavelet.risk.map_levels, size, "map_levels")
        check_levels(settings.levels, size)
        if channels is not None:
            settings.check_early(channels, size)
    except ValueError as error:
        other = f"; or leave this out with {remedy}" if remedy else ""
        raise UsageError(f"wavelet, {settings.name} on {images.dataset}: {error}{other}") from error


def _risk_node(
    bench: Bench, name: str, inputs: dict[str, str], tags: dict[str, str], **changes: object
) -> Node:
    settings = settings_of(RiskSettings, bench.wavelet.risk, seed=bench.seed, **changes)
    return Node(f"risk/{name}", risk.STAGE, settings, inputs, bench.resources.risk, tags)


def _baseline_risks(bench: Bench, data: str = "", end: str = "") -> Iterator[Node]:
    dataset = PHOTOGRAPHS if end else bench.data.dataset
    for kind in BASELINES:
        tags = {"method": kind, "dataset": dataset}
        inputs = {"data": data or data_node(bench)}
        yield _risk_node(bench, _named(kind, end), inputs, tags, denoiser=kind)


def _network_risks(bench: Bench, nodes: Sequence[Node]) -> Iterator[Node]:
    """Of every network trained on the recipe's own data from scratch that denoises images alone,
    and of the one given; without labels and with them."""
    for node in nodes:
        if node.name == GIVEN:
            yield from _given_risks(bench, node)
            continue
        if node.stage is not train.STAGE or node.inputs["data"] != data_node(bench):
            continue
        if node.settings.loss_options.uses_class_token or "start" in node.inputs:
            continue
        model = node.name.partition("/")[2]
        inputs = {"data": data_node(bench), "model": node.name}
        for labelled in (False, True):
            tags = {**node.tags, "dataset": bench.data.dataset, "labelled": str(labelled)}
            name = _named(model, "labelled" if labelled else "")
            yield _risk_node(bench, name, inputs, tags, denoiser="network", labelled=labelled)


def _given_risks(bench: Bench, node: Node) -> Iterator[Node]:
    """Of a network from elsewhere, as far as it can be asked: with labels where it knows classes,
    without where it has a null class. Raises UsageError where it carries a class token."""
    facts = bench.networks.facts() or {}
    if not sees_images_alone(facts):
        raise UsageError(
            f"networks.path={bench.networks.path} denoises image and class token together, and "
            "held-out images come without one; give another network"
        )
    asked = [False] if facts.get("null_class", True) else []
    asked += [True] if facts.get("num_classes", 1) else []
    for labelled in asked:
        tags = {**node.tags, "dataset": bench.data.dataset, "labelled": str(labelled)}
        inputs = {"data": data_node(bench), "model": node.name}
        name = _named("given", "labelled" if labelled else "")
        yield _risk_node(bench, name, inputs, tags, denoiser="network", labelled=labelled)


def _drawn(bench: Bench, images: PrepareSettings, end: str = "") -> Iterator[Node]:
    sweep = bench.sample
    for model in bench.wavelet.drawn:
        for solver in dict.fromkeys((*sweep.solvers, *bench.wavelet.drawn_fitted)):
            grid = UNIFORM if table.SOLVERS[solver].own_levels else sweep.grid_of(solver)
            nfe = runnable_nfe(solver, sweep.nfe)
            options = sweep.options(solver=solver, nfe=nfe, grid=grid)
            more = {"guidance": 1.0, "device": "cpu", "num_samples": bench.wavelet.num_samples}
            settings = settings_of(DrawSettings, options, seed=bench.seed, **more)
            inputs = {"score": _named("fit/wavelet", model, end)}
            inputs |= spectrum_input(settings.grid, f"spectrum/{end}" if end else "spectrum")
            tags = {"method": f"wavelet-{model}", "solver": solver, "dataset": images.dataset}
            name = _named("draw/wavelet", model, solver, end)
            yield Node(name, draw.STAGE, settings, inputs, bench.resources.draw, tags)
