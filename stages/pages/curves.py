"""Curves of scores, gathered from the artifacts that hold them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.pages.figures import Axes, Curve, Figure, plot

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.methods.protocol import Score

METRICS = ("trajectory_rms", "fid")
PLAIN, LITERAL = "none", "literal"
NFE = "network evaluations (NFE)"
STEP = "training step"
SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True, order=True)
class Which:
    """A curve over NFE: a model and how it was solved."""

    method: str
    time_density: str
    training_step: int
    grid: str
    solver: str
    correction: str

    @property
    def model(self) -> str:
        trained = f", trained with t {self.time_density}" if self.time_density else ""
        return f"{self.method}, step {self.training_step}{trained}"

    @property
    def solved(self) -> str:
        correction = "" if self.correction == PLAIN else f", {self.correction}"
        return f"{self.solver}{correction}"


ByNfe = Mapping[int, Mapping[int, "Score"]]
Metrics = Mapping[str, ByNfe]
Curves = dict[Which, dict[str, dict[int, dict[int, "Score"]]]]


def collect(scores: Mapping[str, Sequence[Row]]) -> Curves:
    """Scores by curve, metric, NFE and seed; means over seeds are made here from single sets."""
    curves: Curves = {}
    for row in (row for rows in scores.values() for row in rows):
        if row.score.metric in METRICS and row.seed is not None:
            which = Which(**{name: getattr(row, name) for name in Which.__annotations__})
            by_nfe = curves.setdefault(which, {}).setdefault(row.score.metric, {})
            by_nfe.setdefault(row.nfe, {})[row.seed] = row.score
    return dict(sorted(curves.items(), key=lambda item: item[0]))


def of_metric(curves: Curves, metric: str) -> dict[Which, ByNfe]:
    """The curves that have a metric, without the others."""
    return {which: metrics[metric] for which, metrics in curves.items() if metric in metrics}


def by_condition(by_nfe: ByNfe) -> dict[str, Mapping[int, Score]]:
    """Scores by seed, under the conditions that claims name."""
    return {f"NFE {nfe}": by_seed for nfe, by_seed in sorted(by_nfe.items())}


def most_seeds(curves: Mapping[Any, Metrics]) -> int:
    """How many seeds the score with the most of them has."""
    return max(len(s) for m in curves.values() for n in m.values() for s in n.values())


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean over seeds with its error, or the only seed's score."""
    from stages.methods.protocol import over_seeds

    return over_seeds(scores) if len(scores) > 1 else scores[0]


def score_curve(name: str, x: Sequence[float], scores: Sequence[Score]) -> Curve:
    """A line of scores with their errors."""
    return Curve(name, x, [score.value for score in scores], [score.error for score in scores])


def over_nfe(name: str, by_nfe: ByNfe) -> Curve:
    """A line of the means over seeds, over evaluations."""
    ordered = dict(sorted(by_nfe.items()))
    means = [mean_score(list(by_seed.values())) for by_seed in ordered.values()]
    return score_curve(name, list(ordered), means)


def plot_over_nfe(stem: str, metric: str, curves: Sequence[Curve], caption: str) -> Figure:
    """Lines of a metric over evaluations, both axes logarithmic."""
    ticks = sorted({x for curve in curves for x in curve.x})
    return plot(stem, caption, curves, Axes(NFE, metric, log_x=True, log_y=True, ticks=ticks))


def group(node: str) -> str:
    """What the seeds of a training have in common: `maskalign` of `train/maskalign-seed2`."""
    return SEED.sub("", node.partition("/")[2])


def by_training(of_nodes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values of nodes by training and the end of the name that tells its seed, such as `-seed1`;
    the run's own seed has none."""
    groups: dict[str, dict[str, Any]] = {}
    for node, value in of_nodes.items():
        name = group(node)
        groups.setdefault(name, {})[node.partition("/")[2].removeprefix(name)] = value
    return groups


def grouped(of_nodes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of the same training with several seeds, together."""
    return {name: list(by_seed.values()) for name, by_seed in by_training(of_nodes).items()}


def mean_curve(name: str, many: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """The mean of curves [(x, y), ...] at the x that all have, with the error over them."""
    tables = [dict(rows) for rows in many]
    at = [x for x in tables[0] if all(x in other for other in tables)]
    values = [[by_x[x] for by_x in tables] for x in at]
    errors = None
    if len(many) > 1:
        errors = [statistics.stdev(of_x) / len(of_x) ** 0.5 for of_x in values]
    return Curve(name, at, [statistics.fmean(of_x) for of_x in values], errors)


DENSITY = " a="  # grids of densities are named like "csflow a=0.4"


def without_densities(scores: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """The curves that compare solvers: those on grids of densities are CSFlow's to show."""
    kept = {name: rows for name, rows in scores.items() if DENSITY not in rows[0].grid}
    return kept or dict(scores)
