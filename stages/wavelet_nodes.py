"""The nodes of the wavelet score: fits, risks beside baselines and networks, and samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipeline.errors import UsageError
from pipeline.graph import Node
from pipeline.stage import Settings
from stages import densities, draw, fit, prepare, risk, train
from stages.draw import DrawSettings
from stages.fit import FitOptions, FitSettings, check_levels
from stages.methods import table
from stages.prepare import PrepareSettings
from stages.risk import BASELINES, RiskOptions, RiskSettings
from stages.scoring_nodes import settings_of
from stages.solving import SolverOptions

if TYPE_CHECKING:
    from stages.bench import Bench

MODEL = re.compile(rf"({'|'.join(table.FAMILIES)})-d([1-9])(-folds)?")
# Without cross terms degree 1 is that of local.
_DEGREES = {"additive": (2, 3), "full": (1,)}
EVERY_MODEL = (
    *(f"{family}-d{n}" for family in table.FAMILIES for n in _DEGREES.get(family, (1, 2, 3))),
    "local-d2-folds",
)
PHOTOGRAPHS = "photographs"


class WaveletOptions(Settings):
    """Which wavelet scores are fitted, and how they are scored and sampled."""

    in_full: bool = Field(True, description="recipe full: fit `models` and compare their risks")
    models: tuple[str, ...] = Field(
        (
            "independent-d1",
            "independent-d3",
            "band-tied-d2",
            "local-d1",
            "local-d2",
            "additive-d3",
            "full-d1",
        ),
        description="recipe full: scores as FAMILY-dDEGREE, and -folds behind it to choose the "
        "ridge by folds",
    )
    all_models: tuple[str, ...] = Field(
        EVERY_MODEL, min_length=1, description="recipe wavelet: scores"
    )
    drawn: tuple[str, ...] = Field(
        ("independent-d1", "local-d2", "full-d1"),
        description="recipe wavelet: scores that are sampled, with all of sample.solvers",
    )
    num_samples: int = Field(100, ge=1, le=10**6, description="recipe wavelet: samples of each")
    with_photographs: bool = Field(
        True, description="recipe wavelet: fit and score on `photographs` too"
    )
    photographs: PrepareSettings = Field(
        PrepareSettings(dataset=PHOTOGRAPHS, grey=True, limit=3000),
        description="recipe wavelet: the second data set",
    )
    fit: FitOptions = Field(FitOptions(), description="basis, ridge and memory of all fits")
    risk: RiskOptions = Field(RiskOptions(), description="noise levels and bands")

    @model_validator(mode="after")
    def _models_fit(self) -> WaveletOptions:
        for name in ("models", "all_models", "drawn"):
            for model in getattr(self, name):
                if not MODEL.fullmatch(model):
                    raise ValueError(
                        f"{name} has '{model}'; write FAMILY-dDEGREE, such as local-d2, with "
                        f"FAMILY one of {', '.join(table.FAMILIES)}"
                    )
                family, degree, _ = MODEL.fullmatch(model).groups()
                try:
                    fit.check_family(False, family, int(degree))
                except ValueError as error:
                    raise ValueError(f"{name} has '{model}': {error}") from error
        return self

    def check(self, *names: str) -> None:
        """Raise UsageError for a score of the lists named, those that a recipe fits, which
        contradicts `fit`."""
        for name in names:
            for model in getattr(self, name):
                if self.fit.allow_biorthogonal and not model.startswith("full-"):
                    raise UsageError(
                        f"wavelet.{name} has '{model}', which contradicts wavelet.fit."
                        "allow_biorthogonal=true: without an orthonormal basis the noise is "
                        f"correlated between coefficients; set wavelet.{name}=[full-d1], or choose "
                        "an orthonormal wavelet and leave allow_biorthogonal unset"
                    )

    def fit_settings(self, model: str) -> FitSettings:
        """The settings of one score. Raises ValueError for what contradicts itself."""
        family, degree, folds = MODEL.fullmatch(model).groups()
        options = {name: getattr(self.fit, name) for name in FitOptions.model_fields}
        options |= {"ridge": None} if folds else {}
        chosen = {"family": family, "degree": int(degree)}
        fit.check_family(self.fit.allow_biorthogonal, **chosen)
        return FitSettings(**options | chosen)


# --- recipes ------------------------------------------------------------------------------------


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Fits of `models`, their risks and those of baselines and of the networks in `nodes`."""
    bench.wavelet.check("models")
    return [
        *_fits_and_risks(bench, bench.wavelet.models, bench.data, remedy="wavelet.in_full=false"),
        *_baseline_risks(bench),
        *_network_risks(bench, nodes),
    ]


def recipe_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """The recipe wavelet: all scores on both data sets, and samples of some."""
    options = bench.wavelet
    options.check("all_models", "drawn")
    models = tuple(dict.fromkeys((*options.all_models, *options.drawn)))
    found = [
        *_fits_and_risks(bench, models, bench.data),
        *_baseline_risks(bench),
        *_network_risks(bench, nodes),
        *_drawn(bench, bench.data),
    ]
    if not options.with_photographs:
        return found
    photographs, end = options.photographs, PHOTOGRAPHS
    where = f"prepare/{end}"
    return [
        *found,
        Node(where, prepare.STAGE, photographs, resources=bench.resources.prepare),
        *_fits_and_risks(bench, models, photographs, where, end, "wavelet.with_photographs=false"),
        *_baseline_risks(bench, where, end),
        *_drawn(bench, photographs, end),
    ]


# --- nodes --------------------------------------------------------------------------------------


def _named(*parts: str) -> str:
    return "-".join(part for part in parts if part)


def _fits_and_risks(
    bench: Bench,
    models: Sequence[str],
    images: PrepareSettings,
    data: str = "prepare",
    end: str = "",
    remedy: str = "",
) -> Iterator[Node]:
    for model in models:
        settings = bench.wavelet.fit_settings(model)
        _check(bench, settings, images, remedy)
        name = _named("fit/wavelet", model, end)
        tags = {"method": f"wavelet-{model}", "dataset": images.dataset}
        inputs = {"data": data}
        yield Node(name, fit.STAGE, settings, inputs, bench.resources.fit, tags)
        inputs = {"data": data, "score": name}
        yield _risk_node(bench, _named("wavelet", model, end), inputs, tags, denoiser="score")


def _check(bench: Bench, settings: FitSettings, images: PrepareSettings, remedy: str) -> None:
    """Refuse, before any work, what size, levels and memory cannot do where they are known."""
    size, channels = images.image_size, images.image_channels
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


def _baseline_risks(bench: Bench, data: str = "prepare", end: str = "") -> Iterator[Node]:
    dataset = PHOTOGRAPHS if end else bench.data.dataset
    for kind in BASELINES:
        tags = {"method": kind, "dataset": dataset}
        yield _risk_node(bench, _named(kind, end), {"data": data}, tags, denoiser=kind)


def _network_risks(bench: Bench, nodes: Sequence[Node]) -> Iterator[Node]:
    """Of every network trained on the recipe's own data from scratch that denoises images alone,
    without labels and with them."""
    for node in nodes:
        if node.stage is not train.STAGE or node.inputs["data"] != "prepare":
            continue
        if node.settings.method in table.TOKEN_LOSSES or "start" in node.inputs:
            continue
        model = node.name.partition("/")[2]
        inputs = {"data": "prepare", "model": node.name}
        for labelled in (False, True):
            tags = {**node.tags, "dataset": bench.data.dataset, "labelled": str(labelled)}
            name = _named(model, "labelled" if labelled else "")
            yield _risk_node(bench, name, inputs, tags, denoiser="network", labelled=labelled)


def _drawn(bench: Bench, images: PrepareSettings, end: str = "") -> Iterator[Node]:
    sweep = bench.sample
    for model in bench.wavelet.drawn:
        for solver in sweep.solvers:
            options = sweep.options(
                solver=solver, nfe=_nfe(solver, sweep.nfe), grid=sweep.grid_of(solver)
            )
            common = {name: getattr(options, name) for name in SolverOptions.model_fields}
            settings = DrawSettings(
                **common
                | {"guidance": 1.0, "device": "cpu", "seed": bench.seed}
                | {"num_samples": bench.wavelet.num_samples}
            )
            inputs = {"score": _named("fit/wavelet", model, end)}
            if densities.needs_spectrum(settings.grid):
                inputs["spectrum"] = f"spectrum/{end}" if end else "spectrum"
            tags = {"method": f"wavelet-{model}", "solver": solver, "dataset": images.dataset}
            name = _named("draw/wavelet", model, solver, end)
            yield Node(name, draw.STAGE, settings, inputs, bench.resources.draw, tags)


def _nfe(solver: str, nfe: int) -> int:
    return nfe - (solver in table.ODD_SOLVERS and nfe % 2 == 0)
