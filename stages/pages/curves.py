"""Curves of scores, gathered from the artifacts that hold them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.methods.protocol import Score


METRICS = ("trajectory_rms", "fid")


PLAIN, LITERAL = "none", "literal"


NFE = "network evaluations (NFE)"


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


Curves = dict[Which, dict[str, dict[int, dict[int, "Score"]]]]


def collect(scores: Mapping[str, Sequence[Row]]) -> Curves:
    """Scores by curve, metric, NFE and seed; means over seeds are made here from single sets."""
    found: Curves = {}
    compared: dict[str, set[Which]] = {}
    for rows in scores.values():
        for row in rows:
            if row.score.metric in METRICS and row.seed is not None:
                which = Which(
                    row.method,
                    row.time_density,
                    row.training_step,
                    row.grid,
                    row.solver,
                    row.correction,
                )
                by_nfe = found.setdefault(which, {}).setdefault(row.score.metric, {})
                by_nfe.setdefault(row.nfe, {})[row.seed] = row.score
                compared.setdefault(which.model, set()).add(which)
    # A model that was solved in one way has nothing to be compared.
    return {which: found[which] for which in sorted(found) if len(compared[which.model]) > 1}


SEED = re.compile(r"-seed\d+$")


STEP = "training step"


def group(node: str) -> str:
    """What the seeds of a training have in common: `maskalign` of `train/maskalign-seed2`."""
    return SEED.sub("", node.partition("/")[2])


def grouped(found: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of the same training with several seeds, together."""
    groups: dict[str, list[Any]] = {}
    for name, value in found.items():
        groups.setdefault(group(name), []).append(value)
    return groups


def mean_curve(name: str, many: Sequence[Sequence[tuple[float, float]]]) -> Any:
    """The mean of curves [(x, y), ...] at the x that all have, with the error over them."""
    from stages.pages.figures import Curve

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
