"""The stage `evaluate`: scores of sets of samples over training steps or over NFE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.features import FeatureSet
from stages.artifacts.samples import Samples
from stages.artifacts.scores import Row, Scores, headline, mean_over_seeds, row_of, write
from stages.methods.fewest import FEWEST_SCORED as FEWEST
from stages.methods.fewest import most_neighbours
from stages.scoring.judge import MANIFOLDS, floors_follow_from, judge_of, score_sets

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.scoring.judge import Judge

SHARD_NUMBERS = 10**7  # features of the sets that one task scores, about
NO_NEIGHBOURS = (
    "precision, recall, density and coverage were left out: evaluate.neighbours=0; with "
    "evaluate.neighbours=5 they are taken"
)


class EvaluateOptions(Settings):
    """How sets of samples are scored."""

    num_samples: int = Field(
        1500, ge=FEWEST, le=10**7, description="samples of each set to score, the first ones"
    )
    neighbours: int = Field(
        5,
        ge=0,
        le=100,
        description="k of the k-th neighbour balls of precision, recall, density and coverage; 0 "
        "leaves these out",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where distances between sets are computed; of published protocols also where "
        "features are",
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
    seed: int = Field(
        0,
        ge=0,
        description="of images drawn for floors and from large sets, and of blocks",
    )


def features_node(samples: str) -> str:
    """The name of the node with the features of a sample node's images."""
    return f"features/{samples.partition('/')[2] or samples}"


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
    told = [samples[name].description for name in sets]
    in_shares = all("labels" in facts and facts.get("classes") != "random" for facts in told)
    with raised_as(StageError):
        judge = _judge(context, in_shares)
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
    for line in summaries(rows):
        context.log(line)
    if not settings.neighbours:
        context.log(NO_NEIGHBOURS)
    write(context.path, singles, rows)
    return Result(
        metrics=headline(rows),
        curves=[(r.score.metric, getattr(r, settings.abscissa), r.score.value) for r in rows],
        abscissa=settings.abscissa,
        timings=times(samples, settings.abscissa),
    )


def _judge(context: Context, in_shares: bool) -> Judge:
    """With the floors of another evaluation against the same images, where there was one."""
    given = context.inputs["train"], context.inputs["held_out"], context.settings, in_shares
    what = floors_follow_from(*given)
    known = context.recall(what)
    judge = judge_of(*given, floors=known)
    if known is None:
        context.remember(what, dict(judge.floors))
    return judge


def times(samples: Mapping[str, Samples], abscissa: str) -> dict[str, list[tuple[int, float]]]:
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
        if said := too_few(facts["num_samples"], settings):
            raise StageError(f"{node} {said}")
        if reference is not None:
            check_noise(node, facts, reference.description)


def wanted(settings: EvaluateSettings) -> int:
    """How many samples a set has to have."""
    return settings.num_samples


def too_few(count: int, settings: EvaluateSettings) -> str:
    """What is said of a set of fewer samples than are scored; empty of others."""
    if count >= wanted(settings):
        return ""
    remedy = "lower it, or give more samples"
    if count < FEWEST:
        remedy = f"give more: scores need at least {FEWEST}, and setting it lower does not help"
    return (
        f"holds {count} samples, fewer than evaluate.num_samples={settings.num_samples}; {remedy}"
    )


def check_noise(node: str, facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise StageError where samples are not of the reference's model and noise."""
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


def _shards(
    pairs: Sequence[tuple[Samples, FeatureSet]], dimension: int, settings: EvaluateSettings
) -> list[Sequence[tuple[Samples, FeatureSet]]]:
    """Sets in groups of enough work to be worth another process."""
    size = max(1, SHARD_NUMBERS // (settings.num_samples * dimension))
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def summaries(rows: Sequence[Row]) -> Iterator[str]:
    """The scores of every set in words, and its cautions."""
    for node in dict.fromkeys(row.node for row in rows):
        scores = [row.score for row in rows if row.node == node]
        yield f"{node}: " + ", ".join(f"{s.metric} {s.value:.4g}" for s in scores)
        for caution in dict.fromkeys(s.caution for s in scores if s.caution):
            yield f"{node}: caution, {caution}"


METRICS = (
    *("fid", "fid_infinity", "kid", "sfid", "inception_score"),
    *("memorization_ratio", "fid_held_out", "fid_gap"),
)


def _metrics(node: Node) -> tuple[str, ...]:
    more = MANIFOLDS if node.settings.neighbours else ()
    return (*METRICS, *more, *(("trajectory_rms",) if node.slot("reference") else ()))


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
    version=3,
    metrics=_metrics,
    estimate="stages.settings.costs:evaluate",
)
