"""What recipes that make nodes from others' settings share: finding those, and naming by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import UsageError, raised_as
from pipeline.graph import Node
from pipeline.stage import Settings
from stages.artifacts.extractor import EMBEDDED
from stages.data import encode, prepare, spectrum
from stages.data.counted import unlabelled
from stages.data.encode import EncodeSettings
from stages.encoders.weights import FOLDER
from stages.sampling import decode, sample
from stages.sampling.decode import DecodeSettings
from stages.scoring import evaluate, extractor, features
from stages.scoring.evaluate import EvaluateSettings
from stages.scoring.extractor import ExtractorSettings
from stages.scoring.features import FeatureSettings
from stages.settings import densities, teachers
from stages.settings.extractors import ExtractorOptions
from stages.settings.methods import options_of
from stages.settings.solvers import runnable_nfe
from stages.settings.teachers import TeachOptions, TeachSettings, check_grids
from stages.training import teach, train
from stages.training.train import TrainSettings

if TYPE_CHECKING:
    from stages.bench import Bench
    from stages.data.options import PrepareSettings
    from stages.sampling.sample import SampleSettings


def spectrum_nodes(bench: Bench, name: str = "spectrum") -> list[Node]:
    """`spectrum`, of the data, or `spectrum/NAME`, of the data set `prepare/NAME`.

    Raises UsageError for latents that were not allowed.
    """
    own = name == "spectrum"
    data = data_node(bench) if own else name.replace("spectrum", "prepare", 1)
    if own and bench.is_latent and not bench.spectrum.allow_latent:
        setting = "data.latent=true" if bench.data.holds_latents else "latents.autoencoder"
        raise UsageError(
            f"{setting} and CSFlow contradict each other: the eye's contrast sensitivity is "
            "measured against luminance on a screen, and a frequency in a latent is no frequency "
            "in the picture; leave CSFlow out (csflow.in_full=false in recipe full), or set "
            "spectrum.allow_latent=true to go on at your own risk"
        )
    resources = bench.resources.spectrum
    return [Node(name, spectrum.STAGE, bench.spectrum, {"data": data}, resources)]


SettingsT = TypeVar("SettingsT", bound=Settings)


REFERENCES = {"train": "features/train", "held_out": "features/held-out"}


def settings_of(kind: type[SettingsT], *options: Settings, **more: object) -> SettingsT:
    """Settings of a stage from the fields that it shares with others, and further ones.

    What is given later takes the place of what is given earlier.
    """
    shared = [given.shared_with(kind) for given in options]
    return kind(**{name: value for fields in [*shared, more] for name, value in fields.items()})


def extractor_nodes(bench: Bench) -> list[Node]:
    """The extractor, and features of the training and the held-out images."""
    weights = weights_of(bench.extractor)
    settings = settings_of(ExtractorSettings, bench.extractor, seed=bench.seed, weights=weights)
    inputs = {"data": pixels_node(bench)}
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
        {"data": pixels_node(bench), "extractor": "extractor"}
        | ({"samples": samples} if samples else {}),
        bench.resources.features,
    )


def weights_of(options: ExtractorOptions | TeachOptions) -> str | None:
    """Where weights are looked for, for workers that may run in another folder."""
    if options.kind == EMBEDDED:
        return None
    return str(Path(options.weights or FOLDER).expanduser().absolute())


def spectrum_input(kind: str, name: str = "spectrum") -> dict[str, str]:
    """The input of a node whose density or grid is of this kind."""
    return {"spectrum": name} if densities.needs_spectrum(kind) else {}


PREPARE, PIXELS, ENCODE = "prepare", "prepare/pixels", "encode"


def data_node(bench: Bench) -> str:
    """The node with what networks are trained on."""
    return PREPARE if bench.latents.autoencoder is None else ENCODE


def pixels_node(bench: Bench) -> str:
    """The node with the pictures that samples are compared with."""
    return PIXELS if bench.latents.autoencoder is not None and bench.data.holds_latents else PREPARE


def pixel_nodes(bench: Bench) -> list[Node]:
    """The pictures. Raises UsageError where only their latents are given."""
    name = pixels_node(bench)
    images = bench.data if name == PREPARE else bench.teach.pixels
    if images is None:
        raise UsageError(
            "data.latent=true and latents.autoencoder: samples are decoded and compared with "
            "pictures; set teach.pixels to the same images as pixels, such as "
            "teach.pixels.path=FOLDER, or leave out data.latent and give pixels, which are encoded"
        )
    return [Node(name, prepare.STAGE, images, resources=bench.resources.prepare)]


def prepare_nodes(bench: Bench) -> list[Node]:
    """The data set, and its latents where networks are trained on these."""
    if bench.latents.autoencoder is None:
        return [Node(PREPARE, prepare.STAGE, bench.data, resources=bench.resources.prepare)]
    nodes = pixel_nodes(bench)
    inputs, options = {"pixels": nodes[0].name}, bench.latents
    if bench.data.holds_latents:
        if options.flips:
            raise UsageError(
                "latents.flips=true and data.latent=true contradict each other: only pixels can "
                "be mirrored before they are encoded; leave latents.flips unset, or give pixels"
            )
        nodes.append(Node(PREPARE, prepare.STAGE, bench.data, resources=bench.resources.prepare))
        inputs["latents"] = PREPARE
    _check_encoded(bench, nodes[0].settings)
    settings = settings_of(EncodeSettings, options, shard_size=options.encode_shard)
    return [*nodes, Node(ENCODE, encode.STAGE, settings, inputs, bench.resources.encode)]


def _check_encoded(bench: Bench, images: PrepareSettings) -> None:
    """Raise UsageError where images do not fit the autoencoder, as far as both are known."""
    known = bench.geometry
    if known is None:
        return
    size, channels = images.image_size, images.image_channels
    sides = (known.factor,) * 2 if size is None else (size, size)
    with raised_as(UsageError):
        known.latent_shape((known.channels if channels is None else channels, *sides))


def decode_node(bench: Bench, samples: Node) -> Node:
    """`decode/NAME`: the pictures of samples, rounded as a published protocol may state."""
    options, rounding = bench.latents, bench.evaluate.rounding_stated
    return Node(
        f"decode/{samples.name.partition('/')[2]}",
        decode.STAGE,
        settings_of(DecodeSettings, options, shard_size=options.decode_shard, rounding=rounding),
        {"samples": samples.name, "data": data_node(bench)},
        bench.resources.decode,
        samples.tags,
    )


def train_node(
    bench: Bench,
    name: str | None = None,
    seed: int | None = None,
    tags: Mapping[str, str] | None = None,
    **changes: object,
) -> Node:
    """`train/NAME`: the recipe's own training, or one with another seed and changed settings."""
    seed = bench.seed if seed is None else seed
    settings = settings_of(TrainSettings, bench.train, seed=seed, live=bench.scan.watch())
    settings = settings.revised(**changes)
    return Node(
        f"train/{name or settings.method}{seed_suffix(bench, seed)}",
        train.STAGE,
        settings,
        inputs={"data": data_node(bench)}
        | spectrum_input(settings.drawn.kind)
        | teacher_inputs(bench, settings.method),
        resources=bench.resources.train,
        tags={"method": settings.method, **(tags or {})},
    )


def train_nodes(bench: Bench) -> list[Node]:
    """The trainings."""
    return [train_node(bench)]


def sample_node(
    bench: Bench,
    name: str,
    model: str,
    settings: SampleSettings,
    tags: Mapping[str, str] | None = None,
    **inputs: str,
) -> Node:
    """`sample/NAME`, of the network of a node."""
    own = {"method": bench.train.method, "solver": settings.solver, "grid": settings.grid}
    return Node(
        f"sample/{name}",
        sample.STAGE,
        settings,
        inputs={"model": model} | spectrum_input(settings.grid) | inputs,
        resources=bench.resources.sample,
        tags={**own, **(tags or {})},
    )


def curve(
    bench: Bench,
    name: str,
    samples: Sequence[Node],
    reference: str | None = None,
    abscissa: str = "nfe",
    tags: Mapping[str, str] | None = None,
    **changes: object,
) -> list[Node]:
    """Samples, and `evaluate/NAME`, their scores.

    reference: the samples that trajectory_rms refers to. tags: None for those of the samples.
    """
    options = {"seed": bench.seed, "abscissa": abscissa}
    if abscissa == "nfe":
        options["num_samples"] = min(bench.evaluate.num_samples, bench.sample.sweep_samples)
    scores = Node(
        f"evaluate/{name}",
        evaluate.STAGE,
        settings_of(EvaluateSettings, bench.evaluate, **options | changes),
        inputs={"samples": [node.name for node in samples]}
        | ({"reference": reference} if reference else {}),
        resources=bench.resources.evaluate,
        tags=samples[0].tags if tags is None else tags,
    )
    return [*samples, scores]


def step_curve(
    bench: Bench,
    name: str,
    method: str,
    steps: Sequence[int],
    seeds: Sequence[int],
    trained: int | None = None,
    seeded: bool = True,
) -> list[Node]:
    """Samples of `train/NAME` at steps from several seeds, and their scores over steps.

    trained: the seed of the training that all sample; None lets every seed sample its own. seeded:
    whether tags name the seed.
    """
    options, nodes = bench.sample, []
    for step in steps:
        for seed in seeds:
            model = f"train/{name}{seed_suffix(bench, seed if trained is None else trained)}"
            settings = options.options(step=step, seed=seed, **options.of_checkpoints())
            tags = {"method": method} | ({"seed": str(seed)} if seeded else {})
            which = f"{name}-step{step}{seed_suffix(bench, seed)}"
            nodes.append(sample_node(bench, which, model, settings, tags))
    solver = options.checkpoint_solver or options.solver
    tags = {"method": method, "solver": solver, "grid": options.grid}
    return curve(bench, name, nodes, abscissa="training_step", tags=tags)


def checkpoint_nodes(bench: Bench) -> list[Node]:
    """Samples of every checkpoint, from one or several seeds, and their scores over training
    steps."""
    own, steps = bench.train.method, bench.train.kept_steps
    seeds = range(bench.seed, bench.seed + bench.sample.num_seeds)
    return step_curve(bench, own, own, steps, seeds, trained=bench.seed, seeded=False)


def swept(bench: Bench, **changes: object) -> SampleSettings:
    """Settings of samples over NFE."""
    count = bench.sample.sweep_samples
    return bench.sample.options(**{"seed": bench.seed, "num_samples": count} | changes)


def reference_node(bench: Bench, method: str, model: str, seed: int) -> Node:
    """The samples of a network from the noise of a seed that trajectory_rms refers to."""
    nfe = runnable_nfe(bench.sample.solver, bench.sample.reference_nfe)
    name, tags = f"{method}-reference{seed_suffix(bench, seed)}", {"method": method}
    return sample_node(bench, name, model, swept(bench, nfe=nfe, seed=seed), tags)


def solver_nodes(bench: Bench, given: str | None = None) -> list[Node]:
    """Samples of the last checkpoint over solvers and NFE, and their scores over NFE.

    given: the node of the network, where it is not the recipe's own training.
    """
    model = given or train_node(bench).name
    method = model.partition("/")[2] if given else bench.train.method
    nodes = [reference := reference_node(bench, method, model, bench.seed)]
    for solver in dict.fromkeys(bench.sample.solvers):
        name, grid = f"{method}-{solver}", bench.sample.grid_of(solver)
        samples = [
            sample_node(
                bench,
                f"{name}-nfe{nfe}",
                model,
                swept(bench, solver=solver, nfe=nfe, grid=grid),
                {"method": method},
            )
            for nfe in bench.sample.nfes_of(solver)
        ]
        nodes += curve(bench, name, samples, reference.name)
    return nodes


def seed_suffix(bench: Bench, seed: int) -> str:
    """What the names of nodes of a seed end with; nothing for the run's own."""
    return "" if seed == bench.seed else f"-seed{seed}"


TEACH = "teach"


def pixels_input(bench: Bench) -> dict[str, str]:
    """Where a teacher looks at other images than the data: the pixels of latents."""
    if bench.latents.autoencoder is not None:
        return {"pixels": pixels_node(bench)}
    return {} if bench.teach.pixels is None else {"pixels": PIXELS}


def teacher_inputs(bench: Bench, method: str) -> dict[str, str]:
    """The inputs of what aligns with a teacher by this method; none where it does not.

    The pixels are there in either of its modes, since `teach` itself may choose.
    """
    return {"teacher": TEACH, **pixels_input(bench)} if options_of(method).uses_teacher else {}


def teacher_nodes(bench: Bench) -> list[Node]:
    """The teacher. Raises UsageError where it does not fit the network, or cannot see."""
    options, patch = bench.teach, bench.train.network.patch
    encoded = bench.latents.autoencoder is not None
    if encoded and not bench.data.holds_latents and options.pixels is not None:
        raise UsageError(
            "teach.pixels and latents.autoencoder contradict each other: the teacher sees the "
            "pixels that are encoded; leave teach.pixels unset"
        )
    if bench.data.holds_latents and options.pixels is None:
        raise UsageError(
            "data.latent=true, and a teacher sees pixels: set teach.pixels to the same images as "
            "pixels, such as teach.pixels.dataset=folder and teach.pixels.path=FOLDER"
        )
    if options.objective == teachers.LABELS and unlabelled(
        seen := options.pixels or bench.pictures
    ):
        raise UsageError(
            f"teach.objective=labels learns classes, and {seen.path} has no class folders; set "
            "teach.objective=simclr, or put the images of each class into a folder of its own"
        )
    if options.kind == teachers.EMBEDDED and options.patch is None and bench.shrink > 1:
        options = options.revised(patch=patch * bench.shrink)
    if options.kind != teachers.EMBEDDED or options.pixels is None or encoded:
        with raised_as(UsageError):
            check_grids(options, bench.network_shape[0], patch, bench.pictures.image_size)
    seed = bench.seed if options.seed is None else options.seed
    more = {"seed": seed, "student_patch": patch, "weights": weights_of(options)}
    settings = settings_of(TeachSettings, options, **more)
    inputs, nodes = {"data": data_node(bench), **pixels_input(bench)}, []
    if options.pixels is not None and not encoded:
        nodes.append(Node(PIXELS, prepare.STAGE, options.pixels, resources=bench.resources.prepare))
    return [*nodes, Node(TEACH, teach.STAGE, settings, inputs, bench.resources.teach)]
