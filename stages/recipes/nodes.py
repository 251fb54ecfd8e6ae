"""What recipes that make nodes from others' settings share: finding those, and naming by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import UsageError
from pipeline.graph import Node
from pipeline.stage import Settings
from stages.artifacts.extractor import EMBEDDED
from stages.data import prepare, spectrum
from stages.encoders.weights import FOLDER
from stages.sampling import sample
from stages.scoring import evaluate, extractor, features
from stages.scoring.evaluate import EvaluateSettings
from stages.scoring.extractor import ExtractorSettings
from stages.scoring.features import FeatureSettings
from stages.settings import densities
from stages.settings.extractors import ExtractorOptions
from stages.settings.methods import options_of
from stages.settings.solvers import runnable_nfe
from stages.training import teach, train
from stages.training.teach import TeachOptions, TeachSettings, check_grids
from stages.training.train import TrainSettings

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.bench import Bench
    from stages.training.teach import TeachOptions


def spectrum_nodes(bench: Bench, name: str = "spectrum") -> list[Node]:
    """`spectrum`, of the data, or `spectrum/NAME`, of the data set `prepare/NAME`.

    Raises UsageError for latents that were not allowed.
    """
    data = name.replace("spectrum", "prepare", 1)
    if data == "prepare" and bench.data.latent and not bench.spectrum.allow_latent:
        raise UsageError(
            "data.latent=true and CSFlow contradict each other: the eye's contrast sensitivity is "
            "measured against luminance on a screen, and a frequency in a latent is no frequency "
            "in the picture; leave CSFlow out (csflow.in_full=false in recipe full), or set "
            "spectrum.allow_latent=true to go on at your own risk"
        )
    resources = bench.resources.spectrum
    return [Node(name, spectrum.STAGE, bench.spectrum, {"data": data}, resources)]


SettingsT = TypeVar("SettingsT", bound=Settings)


REFERENCES = {"train": "features/train", "held_out": "features/held-out"}


def settings_of(kind: type[SettingsT], options: Settings, **more: object) -> SettingsT:
    """Settings of a stage from those of a preset's section that it has, and further ones."""
    names = kind.model_fields.keys() & type(options).model_fields.keys()
    return kind(**{name: getattr(options, name) for name in names} | more)


def extractor_nodes(bench: Bench) -> list[Node]:
    """The extractor, and features of the training and the held-out images."""
    weights = weights_of(bench.extractor)
    settings = settings_of(ExtractorSettings, bench.extractor, seed=bench.seed, weights=weights)
    inputs = {"data": "prepare"}
    node = Node("extractor", extractor.STAGE, settings, inputs, bench.resources.extractor)
    return [
        node,
        own_features_node(bench, REFERENCES["train"], "train"),
        own_features_node(bench, REFERENCES["held_out"], "test"),
    ]


def own_features_node(bench: Bench, name: str, part: str = "samples", samples: str = "") -> Node:
    return Node(
        name,
        features.STAGE,
        settings_of(
            FeatureSettings, bench.extractor, part=part, weights=weights_of(bench.extractor)
        ),
        {"data": "prepare", "extractor": "extractor"} | ({"samples": samples} if samples else {}),
        bench.resources.features,
    )


def weights_of(options: ExtractorOptions | TeachOptions) -> str | None:
    """Where weights are looked for, for workers that may run in another folder."""
    if options.kind == EMBEDDED:
        return None
    return str(Path(options.weights or FOLDER).expanduser().absolute())


def _spectrum_input(kind: str) -> dict[str, str]:
    """The input of a node whose density or grid is of this kind."""
    return {"spectrum": "spectrum"} if densities.needs_spectrum(kind) else {}


def prepare_nodes(bench: Bench) -> list[Node]:
    """The data set."""
    return [Node("prepare", prepare.STAGE, bench.data, resources=bench.resources.prepare)]


def train_nodes(bench: Bench) -> list[Node]:
    """The trainings."""
    settings = TrainSettings(**_fields(bench.train), seed=bench.seed, live=bench.scan.watch())
    return [
        Node(
            f"train/{settings.method}",
            train.STAGE,
            settings,
            inputs={"data": "prepare"}
            | _spectrum_input(settings.density.kind)
            | needs_teacher(settings.method),
            resources=bench.resources.train,
            tags={"method": settings.method},
        )
    ]


def checkpoint_nodes(bench: Bench, method: str) -> list[Node]:
    """Samples of every checkpoint, from one or several seeds, and their scores over training
    steps."""
    seeds = range(bench.seed, bench.seed + bench.sample.num_seeds)
    nodes = [
        _sample_node(
            bench,
            method,
            f"step{step}{seed_suffix(bench, seed)}",
            step=step,
            seed=seed,
            **bench.sample.of_checkpoints(),
        )
        for step in bench.train.kept_steps
        for seed in seeds
    ]
    names = [node.name for node in nodes]
    return [*nodes, _evaluate_node(bench, method, f"evaluate/{method}", names)]


def solver_nodes(bench: Bench, method: str) -> list[Node]:
    """Samples of the last checkpoint over solvers and NFE, and their scores over NFE."""
    count = {"num_samples": bench.sample.sweep_samples}
    reference = _sample_node(bench, method, "reference", nfe=_reference_nfe(bench), **count)
    nodes = [reference]
    for solver in dict.fromkeys(bench.sample.solvers):
        swept = [
            _sample_node(
                bench,
                method,
                f"{solver}-nfe{nfe}",
                solver=solver,
                nfe=nfe,
                grid=bench.sample.grid_of(solver),
                **count,
            )
            for nfe in bench.sample.nfes_of(solver)
        ]
        names = [node.name for node in swept]
        name = f"evaluate/{method}-{solver}"
        nodes += [*swept, _evaluate_node(bench, method, name, names, reference.name, solver)]
    return nodes


def _reference_nfe(bench: Bench) -> int:
    return runnable_nfe(bench.sample.solver, bench.sample.reference_nfe)


def _sample_node(bench: Bench, method: str, variant: str, **changes: object) -> Node:
    settings = bench.sample.options(**{"seed": bench.seed} | changes)
    return Node(
        f"sample/{method}-{variant}",
        sample.STAGE,
        settings,
        inputs={"model": f"train/{method}"} | _spectrum_input(settings.grid),
        resources=bench.resources.sample,
        tags={"method": method, "solver": settings.solver, "grid": settings.grid},
    )


def _evaluate_node(
    bench: Bench,
    method: str,
    name: str,
    samples: list[str],
    reference: str | None = None,
    solver: str | None = None,
) -> Node:
    abscissa = "nfe" if reference else "training_step"
    settings = settings_of(EvaluateSettings, bench.evaluate, seed=bench.seed, abscissa=abscissa)
    if reference:
        count = min(settings.num_samples, bench.sample.sweep_samples)
        settings = settings.revised(num_samples=count)
    return Node(
        name,
        evaluate.STAGE,
        settings,
        inputs={"samples": samples} | ({"reference": reference} if reference else {}),
        resources=bench.resources.evaluate,
        tags={
            "method": method,
            "solver": solver or bench.sample.checkpoint_solver or bench.sample.solver,
            "grid": bench.sample.grid_of(solver) if solver else bench.sample.grid,
        },
    )


def _fields(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in type(settings).model_fields}


def seed_suffix(bench: Bench, seed: int) -> str:
    """What the names of nodes of a seed end with; nothing for the run's own."""
    return "" if seed == bench.seed else f"-seed{seed}"


def reference_of(bench: Bench, nodes: Sequence[Node]) -> Node:
    """The samples of the recipe's own training that trajectory_rms refers to."""
    name = f"sample/{bench.train.method}-reference"
    return next(node for node in nodes if node.name == name)


def over_nfe(nodes: Sequence[Node]) -> Node:
    """The first scores over NFE."""
    return next(
        node for node in nodes if node.stage is evaluate.STAGE and node.settings.abscissa == "nfe"
    )


TEACH, PIXELS = "teach", "prepare/pixels"


def needs_teacher(method: str) -> dict[str, str]:
    """The input of a training by this method."""
    return {"teacher": TEACH} if options_of(method).uses_teacher else {}


def teacher_nodes(bench: Bench) -> list[Node]:
    """The teacher. Raises UsageError where it does not fit the network, or cannot see."""
    options, patch = bench.teach, bench.train.network.patch
    if bench.data.latent and options.pixels is None:
        raise UsageError(
            "data.latent=true, and a teacher sees pixels: set teach.pixels to the same images as "
            "pixels, such as teach.pixels.dataset=folder and teach.pixels.path=FOLDER"
        )
    if options.kind != teach.EMBEDDED or options.pixels is None:
        try:
            check_grids(options, bench.data.image_size, patch)
        except ValueError as error:
            raise UsageError(str(error)) from error
    more = {"seed": bench.seed, "student_patch": patch, "weights": weights_of(options)}
    settings = settings_of(TeachSettings, options, **more)
    inputs, nodes = {"data": "prepare"}, []
    if options.pixels is not None:
        inputs["pixels"] = PIXELS
        nodes.append(Node(PIXELS, prepare.STAGE, options.pixels, resources=bench.resources.prepare))
    return [*nodes, Node(TEACH, teach.STAGE, settings, inputs, bench.resources.teach)]
