"""Scores of several runs beside each other: aligned by what was sampled, subtracted only where
they were measured under one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.compare import Line
from pipeline.errors import DamagedArtifactError
from pipeline.results import Run
from stages.artifacts.scores import OldScoresError, Row
from stages.pages.findings import OPEN, difference, side
from stages.pages.page import with_error
from stages.scoring import evaluate, published

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from stages.methods.protocol import Protocol, Score

# Drawn, and shown in the terminal of the last set that the runs share.
HEADLINES = {
    "training_step": ("fid", "memorization_ratio"),
    "nfe": ("fid", "trajectory_rms"),
}
OVER = {"training_step": "training step", "nfe": "NFE"}
METHOD = "METHOD"
SCORING = (evaluate.STAGE.name, published.STAGE.name)
REFUSED = "refused"


@dataclass(frozen=True)
class Place:
    """Where a score stands: its evaluation, its metric, and over what it is drawn."""

    curve: str
    metric: str
    over: str
    at: int | None

    @property
    def words(self) -> str:
        return self.curve if self.at is None else f"{self.curve}, {OVER[self.over]} {self.at}"


def lines(runs: Sequence[Run]) -> list[Line]:
    """A line for every score that two runs or more have."""
    scores = collect(runs)
    last: dict[tuple[str, str], Place] = {}
    shared = []
    for place in dict.fromkeys(place for one in scores for place in one):
        if sum(place in one for one in scores) > 1:
            shared.append(place)
            last[place.curve, place.metric] = place
    return [
        _line(
            place,
            [one.get(place) for one in scores],
            headline=place.metric in HEADLINES[place.over]
            and last[place.curve, place.metric] == place,
        )
        for place in shared
    ] + list(_refusals(runs))


def collect(runs: Sequence[Run]) -> list[dict[Place, Row]]:
    """The scores of every run, by place, over its abscissa."""
    return [dict(_rows(run, name)) for run, name in zip(runs, aligned(runs), strict=True)]


def aligned(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """For every run, its nodes' names by the name under which runs are compared.

    Runs that differ in train.method have the same nodes under other names: there the method's own
    name gives way to a common word.
    """
    methods = [str(run.settings.get("train", {}).get("method", "")) for run in runs]
    if len(set(methods)) == 1:
        return [{name: name for name in run} for run in runs]
    return [
        {_common(name, method): name for name in run}
        for run, method in zip(runs, methods, strict=True)
    ]


def _common(name: str, method: str) -> str:
    stage, slash, rest = name.partition("/")
    own = method and (rest == method or rest.startswith(f"{method}-"))
    return f"{stage}{slash}{METHOD}{rest.removeprefix(method)}" if own else name


def opened(run: Run, name: str) -> Artifact | None:
    """The artifact of a node; None while there is none that can be read."""
    try:
        return run[name].artifact if run[name].manifest is not None else None
    except DamagedArtifactError:
        return None


def _rows(run: Run, names: Mapping[str, str]) -> Iterator[tuple[Place, Row]]:
    for common, name in names.items():
        if run[name].data["stage"] not in SCORING:
            continue
        artifact = opened(run, name)
        if artifact is None:
            continue
        over = artifact.settings["abscissa"]
        for row in _load(artifact):
            curve = common.removeprefix("evaluate/")
            yield Place(curve, row.score.metric, over, getattr(row, over)), row


def _load(artifact: Any) -> list[Row]:
    try:
        return artifact.load()
    except OldScoresError:
        return []  # `_refusals` says so


def _refusals(runs: Sequence[Run]) -> Iterator[Line]:
    """A line for each run whose scores another version stored."""
    for place, run in enumerate(runs):
        evaluations = [name for name in run if run[name].data["stage"] in SCORING]
        try:
            for artifact in filter(None, (opened(run, name) for name in evaluations)):
                artifact.load()
        except OldScoresError as error:
            values = tuple(REFUSED if i == place else "" for i in range(len(runs)))
            yield Line(f"run {run.id}: {error}", "scores", "all", values, ("",) * (len(runs) - 1))


def _line(place: Place, rows: Sequence[Row | None], headline: bool) -> Line:
    scores = [row.score if row else None for row in rows]
    known = [score for score in scores if score is not None]
    protocols = {score.protocol for score in known}
    group = _words(known[0].protocol) if len(protocols) == 1 else _refusal(known)
    details = known[0].protocol.details
    return Line(
        group,
        place.words,
        f"{place.metric} ({details})" if details and len(protocols) == 1 else place.metric,
        tuple(value(score) for score in scores),
        tuple(difference_in_words(scores[0], score) for score in scores[1:]),
        headline,
        node=f"evaluate/{place.curve}",
    )


def _words(protocol: Protocol) -> str:
    rules = f", {protocol.rules}" if protocol.rules else ""
    return (
        f"scores under protocol {protocol.name}: {protocol.num_samples} samples against "
        f"{protocol.num_reference or 'the'} {protocol.reference}, extractor {protocol.extractor} "
        f"({protocol.extractor_hash[:12]}){rules}"
    )


def value(score: Score | None) -> str:
    """A score with its error; the number of seeds where it is over seeds."""
    if score is None:
        return ""
    seeds = f" ({score.num_seeds} seeds)" if score.num_seeds > 1 else ""
    return with_error(score.value, score.error) + seeds


def difference_in_words(base: Score | None, other: Score | None) -> str:
    """other - base with its error and a verdict, how the error came about, or that they are not
    subtracted."""
    from stages.methods import effects, protocol

    if base is None or other is None:
        return ""
    if base == other:
        return "equal"
    try:
        gap = difference({"": {None: (other, base)}})
    except protocol.ProtocolError:
        return REFUSED
    sign, said = "+" if gap.value > 0 else "", side(*gap.tested, gap.freedom)
    said = "within noise" if said == OPEN else said
    paired = f", {gap.error_kind}" if gap.error_kind in (effects.PAIRED, effects.PARTLY) else ""
    return f"{sign}{with_error(gap.value, gap.error)}, {said}{paired}"


def _refusal(scores: Sequence[Score]) -> str:
    """That scores were measured differently, and in what, hashes shortened."""
    first, *others = (
        replace(score.protocol, extractor_hash=score.protocol.extractor_hash[:12])
        for score in scores
    )
    differences = dict.fromkeys(differs for other in others if (differs := first.differs(other)))
    return f"measured under different protocols, so not subtracted: {'; '.join(differences)}"
