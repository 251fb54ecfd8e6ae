"""The stage `evaluate`: scores of sets of samples over training steps or over NFE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.features import FeatureSet
from stages.artifacts.samples import Samples
from stages.artifacts.scores import Row, Scores, headline, mean_over_seeds, row_of, write
from stages.methods.fewest import FEWEST_OF_SUBSETS as FEWEST
from stages.methods.fewest import most_neighbours

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.graph import Node
    from stages.artifacts.features import FeatureArrays
    from stages.methods.protocol import Protocol, Score

BLOCK = 256  # samples compared at once with those of the reference

SHARD_NUMBERS = 10**7  # features of the sets that one task scores, about


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

    @model_validator(mode="after")
    def _neighbours_fit(self) -> EvaluateOptions:
        self.check_neighbours(self.num_samples, f"num_samples={self.num_samples}")
        return self

    def check_neighbours(self, count: int, because: str) -> None:
        """Raise ValueError where `count` images of each set have too few neighbours."""
        most = most_neighbours(count)
        if self.neighbours > most:
            raise ValueError(
                f"neighbours={self.neighbours} is too many for {because}: precision and "
                f"recall take at most {most} there; lower it, or raise the other"
            )


class EvaluateSettings(EvaluateOptions):
    """The stage's settings."""

    abscissa: Literal["training_step", "nfe"] = Field(
        "training_step", description="what the sets differ in, and the curves are drawn over"
    )
    seed: int = Field(0, ge=0, description="of the blocks and subsets that errors come from")


def features_node(samples: str) -> str:
    """The name of the node with the features of a sample node's images."""
    return f"features/{samples.partition('/')[2] or samples}"


@dataclass(frozen=True)
class Judge:
    """What every set is scored against, and the scores of real images.

    floors: by metric. protocol: without the details that single metrics add.
    """

    train: FeatureSet
    protocol: Protocol
    floors: Mapping[str, float]
    settings: EvaluateSettings

    def generator(self) -> torch.Generator:
        import torch

        return torch.Generator().manual_seed(self.settings.seed)

    def score(
        self,
        metric: str,
        value: float,
        error: float | None,
        kind: str,
        caution: str = "",
        details: str = "",
    ) -> Score:
        from stages.methods.protocol import Score

        return Score(
            metric=metric,
            value=value,
            protocol=replace(self.protocol, details=details),
            error=error,
            error_kind=kind if error is not None else "none",
            floor=self.floors.get(metric),
            caution=caution,
        )


def run(context: Context) -> Result:
    """Score every set of samples, in the order of the abscissa."""
    settings: EvaluateSettings = context.settings
    samples, reference = context.inputs["samples"], context.inputs.get("reference")
    features = {name: context.inputs["features"][features_node(name)] for name in samples}
    sets = sorted(samples, key=lambda name: (samples[name].description[settings.abscissa], name))
    _check(samples, features, reference, settings)
    _check_reference(context.inputs["train"], settings)
    held_out = context.inputs["held_out"]
    _check_extractors([*features.values(), held_out], context.inputs["train"])
    pairs = [(samples[name], features[name]) for name in sets]
    with raised_as(StageError):
        judge = _judge(context.inputs["train"], held_out, settings)
        context.progress(0, len(sets), "sets")
        shards = _shards(pairs, held_out.description["extractor"]["dimension"], settings)
        by_shard = context.map(score_sets, shards, judge, reference)
        scores = [scores for shard in by_shard for scores in shard]
    context.progress(len(sets), len(sets), "sets")
    facts = {name: samples[name].description for name in sets}
    singles = [
        row_of(name, facts[name], score)
        for name, of_set in zip(sets, scores, strict=True)
        for score in of_set
    ]
    rows = mean_over_seeds(singles, facts)
    for line in _summaries(rows):
        context.log(line)
    write(context.path, singles, rows)
    return Result(
        metrics=headline(rows),
        curves=[(r.score.metric, getattr(r, settings.abscissa), r.score.value) for r in rows],
        abscissa=settings.abscissa,
        timings=_times(samples, settings.abscissa),
    )


def _times(samples: Mapping[str, Samples], abscissa: str) -> dict[str, list[tuple[int, float]]]:
    """What a sample took when the sets were made, in milliseconds, beside the scores."""
    times: dict[str, list[tuple[int, float]]] = {}
    for artifact in samples.values():
        facts, timings = artifact.description, artifact.manifest.timings
        for name in ("sampling", "network"):
            if f"{name}_seconds" in timings:
                each = 1000 * timings[f"{name}_seconds"] / facts["num_samples"]
                rows = times.setdefault(f"{name}_milliseconds_per_sample", [])
                rows.append((facts[abscissa], each))
    return {name: sorted(rows) for name, rows in times.items()}


def _check(
    samples: Mapping[str, Samples],
    features: Mapping[str, FeatureSet],
    reference: Samples | None,
    settings: EvaluateSettings,
) -> None:
    """Raise StageError where sets are too small, or were not made from the reference's noise."""
    if not samples:
        raise StageError("there are no samples to evaluate; connect at least one sample node")
    for node, artifact in samples.items():
        facts = artifact.description
        if features[node].description["samples"] != facts:
            raise StageError(f"{features_node(node)} holds features of other samples than {node}")
        if facts["num_samples"] < settings.num_samples:
            raise StageError(
                f"{node} holds {facts['num_samples']} samples, fewer than "
                f"evaluate.num_samples={settings.num_samples}; lower it, or give more samples"
            )
        if reference is None:
            continue
        expected = reference.description
        differing = [k for k in ("seed", "method", "training_step") if facts[k] != expected[k]]
        if differing:
            raise StageError(
                f"{node} and the reference differ in {differing[0]} ({facts[differing[0]]} against "
                f"{expected[differing[0]]}); trajectory_rms compares samples of one model from "
                "the same noise"
            )


def _check_reference(train: FeatureSet, settings: EvaluateSettings) -> None:
    """Raise StageError where there are too few training images to score against."""
    count = train.description["num_images"]
    if count < FEWEST:
        raise StageError(
            f"there are {count} training images, and scores need at least {FEWEST}; raise "
            "data.limit, or give more images"
        )
    with raised_as(StageError):
        settings.check_neighbours(min(count, settings.num_samples), f"{count} training images")


def _check_extractors(sets: Iterable[FeatureSet], train: FeatureSet) -> None:
    """Raise StageError where features come from several extractors."""
    expected = train.description["extractor"]
    for artifact in sets:
        if artifact.description["extractor"] != expected:
            raise StageError(
                f"{artifact} was made with another extractor than the training images' features; "
                "their distances mean nothing"
            )


def _judge(train: FeatureSet, held_out: FeatureSet, settings: EvaluateSettings) -> Judge:
    from stages.methods.protocol import Protocol

    facts = train.description
    extractor, count = facts["extractor"], settings.num_samples
    protocol = Protocol(
        name=f"{facts['data']}-{extractor['name']}-{count}",
        extractor=extractor["name"],
        extractor_hash=extractor["weights_hash"],
        resize=extractor["resize"],
        # Other archives and folders have the same name.
        reference=f"{facts['data']} training images {facts['data_digest']}",
        num_reference=facts["num_images"],
        num_samples=count,
    )
    floors = _floors(train.load(), held_out.load(), settings)
    return Judge(train, protocol, floors, settings)


def _floors(
    train: FeatureArrays, held_out: FeatureArrays, settings: EvaluateSettings
) -> dict[str, float]:
    """What real images score, at the same sizes where there are enough of them.

    Fréchet distances scale to these sizes; precision, recall, density and coverage take two halves
    of all real images at most; the Inception score and the memorisation ratio the held-out images.
    """
    import torch

    from stages.methods import quality
    from stages.methods.frechet import real_floor

    generator = torch.Generator().manual_seed(settings.seed)
    count, reference = settings.num_samples, len(train.features)
    real = torch.cat([train.features, held_out.features])
    repeats = 10 if real.shape[1] <= 512 else 3
    floors = {"fid_infinity": 0.0, "kid": 0.0, "trajectory_rms": 0.0}
    floors["fid"] = real_floor(real, count, reference, repeats, generator)
    if train.spatial is not None:
        maps = torch.cat([train.spatial, held_out.spatial]).flatten(1)
        floors["sfid"] = real_floor(maps, count, reference, repeats, generator)
    half = min(count, len(real) // 2, quality.LARGEST_MANIFOLD)
    if half > settings.neighbours + 2:
        order = torch.randperm(len(real), generator=generator)
        first, second = real[order[:half]], real[order[half : 2 * half]]
        manifolds = quality.precision_recall(first, second, settings.neighbours, blocks=0)
        floors |= {name: getattr(manifolds, name).value for name in MANIFOLDS}
    if held_out.logits is not None:
        floors["inception_score"] = quality.inception_score(held_out.logits, blocks=0).value
    if _has_neighbours(held_out):
        floors["memorization_ratio"] = _memorised(held_out, settings).mean().item()
    return floors


MANIFOLDS = ("precision", "recall", "density", "coverage")


def _shards(
    pairs: Sequence[tuple[Samples, FeatureSet]], dimension: int, settings: EvaluateSettings
) -> list[Sequence[tuple[Samples, FeatureSet]]]:
    """Sets in groups of enough work to be worth another process."""
    size = max(1, SHARD_NUMBERS // (settings.num_samples * dimension))
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def score_sets(
    shard: Sequence[tuple[Samples, FeatureSet]], judge: Judge, reference: Samples | None
) -> list[list[Score]]:
    """The scores of every set of a shard."""
    return [score_set(*pair, judge, reference) for pair in shard]


def score_set(
    samples: Samples, features: FeatureSet, judge: Judge, reference: Samples | None
) -> list[Score]:
    """All scores of one set of samples."""
    count = judge.settings.num_samples
    arrays = features.load(count)
    scores = list(_feature_scores(arrays, judge.train.load(), judge))
    among = features.description.get("nearest_among")
    scores += _memorization(arrays, judge, samples.description, among)
    if reference is not None:
        scores += _trajectories(samples, reference, judge)
    return scores


def _feature_scores(
    found: FeatureArrays, reference: FeatureArrays, judge: Judge
) -> Iterator[Score]:
    """Scores from features (n, d) against the training images' (m, d)."""
    from stages.methods import quality
    from stages.methods.frechet import from_features

    fd = from_features(found.features, reference.features, generator=judge.generator())
    yield judge.score("fid", fd.distance, fd.standard_error, "jackknife", fd.caution)
    yield judge.score("fid_infinity", fd.infinity, fd.standard_error, "jackknife", fd.caution)
    if found.spatial is not None:
        sfd = quality.spatial_frechet(found.spatial, reference.spatial, generator=judge.generator())
        yield judge.score("sfid", sfd.distance, sfd.standard_error, "jackknife", sfd.caution)
    kid = quality.kernel_distance(found.features, reference.features, generator=judge.generator())
    yield judge.score("kid", kid.value, kid.standard_error, "subsets")
    fewest = min(len(found.features), len(reference.features), quality.LARGEST_MANIFOLD)
    k = judge.settings.neighbours
    # Samples are in random order, with the noise of each; training images are in that of the data.
    drawn = _drawn(reference.features, fewest, judge.generator())
    manifolds = quality.precision_recall(
        found.features[:fewest], drawn, k, generator=judge.generator()
    )
    for name in MANIFOLDS:
        estimate = getattr(manifolds, name)
        details = f"k={k}, {fewest} of each"
        yield judge.score(
            name, estimate.value, estimate.standard_error, "jackknife", details=details
        )
    if found.logits is not None:
        inception = quality.inception_score(found.logits, generator=judge.generator())
        yield judge.score("inception_score", inception.value, inception.standard_error, "jackknife")


def _drawn(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows at random, or all rows as they are."""
    import torch

    if count == len(features):
        return features
    return features[torch.randperm(len(features), generator=generator)[:count]]


def _has_neighbours(found: FeatureArrays) -> bool:
    """Whether two training images are known for each image."""
    return found.neighbour_distances is not None and found.neighbour_distances.shape[1] > 1


def _memorised(found: FeatureArrays, settings: EvaluateSettings) -> Tensor:
    """(n,) 1.0 where the nearest training image is much nearer than the second nearest."""
    nearest, second = found.neighbour_distances[:, 0], found.neighbour_distances[:, 1]
    return (nearest < settings.memorization_threshold * second).double()


def _memorization(
    found: FeatureArrays, judge: Judge, samples: Mapping[str, Any], among: int | None = None
) -> Iterator[Score]:
    """The share of copies among the images that the samples' model was trained on, or the first of
    them."""
    if not _has_neighbours(found):
        return
    values = _memorised(found, judge.settings)
    details = f"pixels, threshold {judge.settings.memorization_threshold:.4g}"
    seen = samples.get("num_training_images")
    if among is not None:
        seen = min(among, seen or judge.protocol.num_reference)
    if seen not in (None, judge.protocol.num_reference):
        details += f", among {seen} training images"
    error = _error_of_mean(values)
    yield judge.score(
        "memorization_ratio", values.mean().item(), error, "jackknife", details=details
    )


def _trajectories(samples: Samples, reference: Samples, judge: Judge) -> Iterator[Score]:
    """Root mean square distance per pixel to the reference's samples from the same noise."""
    import torch

    parts, count = [], judge.settings.num_samples
    for start in range(0, count, BLOCK):
        which = slice(start, min(start + BLOCK, count))
        difference = samples.images(which).double() - reference.images(which).double()
        parts.append(difference.square_().flatten(1).mean(1))
    squares = torch.cat(parts)
    rms = squares.mean().sqrt().item()
    # The jackknife of a root is, to first order, that of the mean over twice the root.
    error = _error_of_mean(squares) / (2 * rms) if rms > 0 else 0.0
    facts = reference.description
    details = f"to {facts['solver']}, NFE {facts['nfe']}, grid {facts['grid']}"
    if facts["correction"] != "none":
        details += f", correction {facts['correction']}"
    yield judge.score("trajectory_rms", rms, error, "jackknife", details=details)


def _error_of_mean(values: Tensor) -> float:
    """Delete-one jackknife error of the mean of (n,) values."""
    return (values.std() / len(values) ** 0.5).item()


def _summaries(rows: Sequence[Row]) -> Iterator[str]:
    for node in dict.fromkeys(row.node for row in rows):
        scores = [row.score for row in rows if row.node == node]
        yield f"{node}: " + ", ".join(f"{s.metric} {s.value:.4g}" for s in scores)
        for caution in dict.fromkeys(s.caution for s in scores if s.caution):
            yield f"{node}: caution, {caution}"


METRICS = (
    *("fid", "fid_infinity", "kid", "sfid", "inception_score", "precision", "recall"),
    *("density", "coverage", "memorization_ratio"),
)


def _metrics(node: Node) -> tuple[str, ...]:
    return METRICS + (("trajectory_rms",) if node.slot("reference") else ())


STAGE = Stage(
    name="evaluate",
    settings=EvaluateSettings,
    output=Scores,
    run="stages.scoring.evaluate:run",
    inputs={
        "samples": Input(Samples, many=True),
        "features": Input(FeatureSet, many=True),
        "train": Input(FeatureSet),
        "held_out": Input(FeatureSet),
        "reference": Input(Samples, optional=True),
    },
    version=2,
    metrics=_metrics,
)
