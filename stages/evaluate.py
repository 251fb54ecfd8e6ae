"""The stage `evaluate`: scores of sets of samples over training steps or over NFE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.extract import Extractor
from stages.prepare import Data
from stages.sample import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from stages.extract import LoadedExtractor
    from stages.methods.protocol import Protocol, Score
    from stages.prepare import DataSet
    from stages.sample import SampleSet

FEWEST = 40  # below, the kernel distance has no two subsets of two images


class EvaluateOptions(Settings):
    """How sets of samples are scored."""

    num_samples: int = Field(
        1500, ge=FEWEST, le=10**7, description="samples of each set to score, the first ones"
    )
    neighbours: int = Field(
        5, ge=1, le=100, description="k of the k-th neighbour balls of precision and recall"
    )
    memorization_threshold: float = Field(
        1 / 3,
        gt=0,
        le=1,
        description="nearest over second nearest training distance below which a sample counts "
        "as memorised",
    )


class EvaluateSettings(EvaluateOptions):
    """The stage's settings."""

    abscissa: Literal["training_step", "nfe"] = Field(
        "training_step", description="what the sets differ in, and the curves are drawn over"
    )
    seed: int = Field(0, ge=0, description="of the blocks and subsets that errors come from")


@dataclass(frozen=True)
class Row:
    """One score of one set of samples, and which set it was.

    time_density: that of the training, in words. seed: of the samples' noise.
    """

    node: str
    method: str
    solver: str
    grid: str
    nfe: int
    training_step: int
    time_density: str
    seed: int
    score: Score


class Scores(Artifact):
    """Every score of every set, each with its error, its floor and its protocol."""

    def load(self) -> list[Row]:
        """All rows, in the order of the abscissa."""
        import pyarrow.parquet

        from stages.methods.protocol import Score

        rows = []
        for line in pyarrow.parquet.read_table(self.path / "scores.parquet").to_pylist():
            which = {name: line.pop(name) for name in Row.__annotations__ if name != "score"}
            protocol = {
                name.removeprefix("protocol_"): line.pop(name)
                for name in list(line)
                if name.startswith("protocol_")
            }
            rows.append(Row(**which, score=Score.from_dict(line | {"protocol": protocol})))
        return rows


@dataclass(frozen=True)
class Bench:
    """What every set is scored against. reference: (m, d) features of the training images."""

    data: DataSet
    extractor: LoadedExtractor
    protocol: Protocol
    floor: float
    settings: EvaluateSettings

    @property
    def reference(self) -> Tensor:
        return self.extractor.train

    def generator(self) -> Any:
        import torch

        return torch.Generator().manual_seed(self.settings.seed)


def run(context: Context) -> Result:
    """Score every set of samples, in the order of the abscissa."""
    settings: EvaluateSettings = context.settings
    sets = sorted(
        context.inputs["samples"].items(),
        key=lambda item: (item[1].description[settings.abscissa], item[0]),
    )
    reference = context.inputs.get("reference")
    _check(sets, reference, settings)
    try:
        bench = _bench(context.inputs["data"].load(), context.inputs["extractor"].load(), settings)
        rows: list[Row] = []
        for index, (node, artifact) in enumerate(sets):
            context.progress(index, len(sets), "sets", node)
            rows += _rows(node, artifact, reference, bench)
            context.log(f"{node}: {_summary(rows, node)}")
    except ValueError as error:
        raise StageError(str(error)) from error
    context.progress(len(sets), len(sets), "sets")
    _write(context.path / "scores.parquet", rows)
    return Result(
        metrics=_headline(rows, sets[-1][0]),
        curves=[(r.score.metric, getattr(r, settings.abscissa), r.score.value) for r in rows],
        abscissa=settings.abscissa,
    )


def _check(
    sets: Sequence[tuple[str, Samples]], reference: Samples | None, settings: EvaluateSettings
) -> None:
    """Raise StageError where sets are too small, or were not made from the reference's noise."""
    if not sets:
        raise StageError("there are no samples to evaluate; connect at least one sample node")
    for node, artifact in sets:
        found = artifact.description
        if found["num_samples"] < settings.num_samples:
            raise StageError(
                f"{node} holds {found['num_samples']} samples, fewer than "
                f"evaluate.num_samples={settings.num_samples}; lower it or raise "
                "sample.num_samples"
            )
        if reference is None:
            continue
        expected = reference.description
        differing = [k for k in ("seed", "method", "training_step") if found[k] != expected[k]]
        if differing:
            raise StageError(
                f"{node} and the reference differ in {differing[0]} ({found[differing[0]]} against "
                f"{expected[differing[0]]}); trajectory_rms compares samples of one model from "
                "the same noise"
            )


def _bench(data: DataSet, extractor: LoadedExtractor, settings: EvaluateSettings) -> Bench:
    import torch

    from stages.methods.frechet import real_floor
    from stages.methods.protocol import Protocol

    network, count = extractor.network, settings.num_samples
    protocol = Protocol(
        name=f"{data.name}-{network.name}-{count}",
        extractor=network.name,
        extractor_hash=network.weights_hash,
        resize=network.resize,
        reference=f"{data.name} training images",
        num_reference=len(extractor.train),
        num_samples=count,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    real = torch.cat([extractor.train, extractor.test])
    floor = real_floor(real, count, len(extractor.train), generator=generator)
    return Bench(data, extractor, protocol, floor.distance, settings)


def _rows(node: str, artifact: Samples, reference: Samples | None, bench: Bench) -> list[Row]:
    count, facts = bench.settings.num_samples, artifact.description
    samples = artifact.load()
    scores = list(_feature_scores(samples.images[:count], bench))
    scores += _image_scores(samples.images[:count], reference.load() if reference else None, bench)
    which = {k: facts[k] for k in Row.__annotations__ if k not in ("node", "score")}
    return [Row(node=node, score=score, **which) for score in scores]


def _feature_scores(images: Tensor, bench: Bench) -> Iterator[Score]:
    """Scores from features of (n, C, H, W), clipped to [-1, 1] as an image file would be."""
    from stages.methods import quality
    from stages.methods.frechet import from_features
    from stages.methods.protocol import Score

    def score(metric: str, value: float, error: float | None = None, kind: str = "none", **more):
        more = {"error": error, "error_kind": kind} | more
        return Score(metric=metric, value=value, protocol=bench.protocol, **more)

    found = bench.extractor(images.clamp(-1, 1))
    features, reference = found.features, bench.reference
    fd = from_features(features, reference, generator=bench.generator())
    error = (fd.standard_error, "jackknife")
    yield score("fid", fd.distance, *error, floor=bench.floor, caution=fd.caution)
    yield score("fid_infinity", fd.infinity, *error, floor=0.0, caution=fd.caution)
    kid = quality.kernel_distance(features, reference, generator=bench.generator())
    yield score("kid", kid.value, kid.standard_error, "subsets", floor=0.0)
    fewest = min(len(features), len(reference), quality.LARGEST_MANIFOLD)
    manifolds = quality.precision_recall(
        features[:fewest], reference[:fewest], bench.settings.neighbours, blocks=0
    )
    for name in ("precision", "recall", "density", "coverage"):
        yield score(name, getattr(manifolds, name).value)
    if found.logits is not None:
        inception = quality.inception_score(found.logits, generator=bench.generator())
        yield score("inception_score", inception.value, inception.standard_error, "jackknife")


def _image_scores(images: Tensor, reference: SampleSet | None, bench: Bench) -> Iterator[Score]:
    """Scores from pixels: memorisation, and the distance to the reference's trajectories."""
    from stages.methods import memorization
    from stages.methods.protocol import Score

    plain = {"protocol": bench.protocol, "error": None, "error_kind": "none"}
    threshold = bench.settings.memorization_threshold
    train = bench.data.train[:]
    yield Score(
        metric="memorization_ratio",
        value=memorization.ratio(images.clamp(-1, 1), train, threshold),
        floor=memorization.ratio(bench.data.test[:], train, threshold),
        **plain,
    )
    if reference is not None:
        difference = images.double() - reference.images[: len(images)].double()
        rms = difference.square().mean().sqrt().item()
        yield Score(metric="trajectory_rms", value=rms, floor=0.0, **plain)


def _summary(rows: Sequence[Row], node: str) -> str:
    found = {row.score.metric: row.score.value for row in rows if row.node == node}
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())


def _headline(rows: Sequence[Row], node: str) -> dict[str, float]:
    """The scores of one set, with the Fréchet distance's standard error and floor."""
    scores = {row.score.metric: row.score for row in rows if row.node == node}
    fid = scores["fid"]
    return {name: score.value for name, score in scores.items()} | {
        "fid_standard_error": fid.error,
        "fid_floor": fid.floor,
    }


def _write(path: Any, rows: Sequence[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = []
    for row in rows:
        which = {name: getattr(row, name) for name in Row.__annotations__ if name != "score"}
        score = row.score.to_dict()
        protocol = {f"protocol_{name}": value for name, value in score.pop("protocol").items()}
        lines.append(which | score | protocol)
    schema = pyarrow.schema(
        [(name, _column_type(pyarrow, name, lines)) for name in lines[0]],
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines, schema), path)


def _column_type(pyarrow: Any, name: str, lines: Sequence[dict[str, Any]]) -> Any:
    """Strings, whole numbers or floating-point numbers, by the column's values."""
    if name in ("value", "error", "floor"):
        return pyarrow.float64()
    return pyarrow.string() if isinstance(lines[0][name], str) else pyarrow.int64()


STAGE = Stage(
    name="evaluate",
    settings=EvaluateSettings,
    output=Scores,
    run="stages.evaluate:run",
    inputs={
        "samples": Input(Samples, many=True),
        "extractor": Input(Extractor),
        "data": Input(Data),
        "reference": Input(Samples, optional=True),
    },
)
