"""What a sweep found: means and errors over seeds, which trial is best and whether that is sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.methods import decisions
from stages.pages.findings import OPEN, difference, paired, side
from sweeps.record import FINISHED, TrialRecord
from sweeps.space import Space

if TYPE_CHECKING:
    from stages.methods.protocol import Score
    from sweeps.scored import Reader


@dataclass(frozen=True)
class Value:
    """A metric of a trial: mean over its seeds, and the standard error of that mean if known.

    With one seed the error is that of its score, or else the one that the node itself reports, if
    any. of_seeds: the values of several seeds, the same ones for every trial. scores: one a seed,
    where they are stored.
    """

    mean: float
    error: float | None = None
    of_seeds: tuple[float, ...] = ()
    scores: tuple[Score, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        reported: Sequence[float | None],
        scores: tuple[Score, ...] = (),
    ) -> Value:
        if len(values) > 1:
            mean, error, _ = decisions.over_seeds(values)
            return cls(mean, error, tuple(values), scores)
        error = scores[0].error if scores else reported[0] if reported else None
        return cls(values[0], error, scores=scores)

    def __str__(self) -> str:
        if not self.error:
            return f"{self.mean:.4g}"
        if not math.isfinite(self.error):
            return f"{self.mean:.4g} ± {self.error:g}"
        digits = min(max(0, 1 - math.floor(math.log10(self.error))), 12)
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """A trial with its metrics by name; none while it has not finished."""

    trial: TrialRecord
    metrics: Mapping[str, Value]


@dataclass(frozen=True)
class Outcome:
    """The trials of a sweep, the finished ones from the best to the worst, then the others."""

    space: Space
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls, space: Space, trials: Sequence[TrialRecord], scores: Reader | None = None
    ) -> Outcome:
        """scores: reads those of a trial, whose samples are then paired between trials."""
        rows = [Row(trial, _values(space, trial, scores)) for trial in trials]
        sign = 1 if space.metrics[space.decides].direction == "min" else -1
        finished = [row for row in rows if row.metrics]

        def rank(row: Row) -> tuple[bool, float]:
            value = row.metrics[space.decides].mean
            return math.isnan(value), sign * value  # what is no number comes last

        finished.sort(key=rank)
        return cls(space, (*finished, *(row for row in rows if not row.metrics)))

    @property
    def finished(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.metrics)

    @property
    def best(self) -> Row | None:
        return self.finished[0] if self.finished else None

    @property
    def rivals(self) -> tuple[Row, ...]:
        """The finished trials that the best is not separated from beyond the 95 % interval."""
        if self.best is None:
            return ()
        first = self.best.metrics[self.space.decides]
        others = [(row, row.metrics[self.space.decides]) for row in self.finished[1:]]
        return tuple(row for row, value in others if within_noise(first, value))

    def verdict(self) -> str:
        """One or two sentences on the best trial."""
        if self.best is None:
            return "No trial finished."
        name, decides = self.best.trial.name, self.space.decides
        first = self.best.metrics[decides]
        said = f"Best: {name}, {decides} {first} ({assigned(self.best.trial.values)})."
        if len(self.finished) == 1:
            return said
        following = self.finished[1]
        second = following.metrics[decides]
        if first.error is None or second.error is None:
            return f"{said} Its error is not known: say nothing of small differences (--seeds 3)."
        if not self.rivals:
            return f"{said} Separated from the next, {following.trial.name}, at 95 %."
        others = ", ".join(row.trial.name for row in self.rivals[:5])
        more = f" and {len(self.rivals) - 5} more" if len(self.rivals) > 5 else ""
        return f"{said} Within noise: not separated at 95 % from {others}{more}."

    def table(self) -> list[list[Any]]:
        """The heading and a line for every trial, as texts."""
        metrics = self.space.metrics
        paths = {p: p if name in metrics else name for p, name in short(self.space.paths).items()}
        lines: list[list[Any]] = [["trial", *paths.values(), *self.space.metrics, ""]]
        for row in self.rows:
            values = [shown(row.trial.values.get(path)) for path in paths]
            metrics = [str(row.metrics.get(name, "")) for name in self.space.metrics]
            lines.append([row.trial.name, *values, *metrics, self._remark(row)])
        return lines

    def _remark(self, row: Row) -> str:
        if row is self.best:
            return "best"
        if row in self.rivals:
            return "within noise of the best"
        if row.metrics:
            return ""
        trial = row.trial
        if trial.reports and not trial.error:
            step, value = trial.reports[-1]
            metric = self.space.halving.metric if self.space.halving else "curve"
            return f"{trial.state} at step {step} ({metric} {value:.4g})"
        return f"{trial.state}: {trial.error}" if trial.error else trial.state

    def text(self) -> str:
        """The table as aligned lines."""
        lines = [[str(cell) for cell in line] for line in self.table()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def _values(space: Space, trial: TrialRecord, scores: Reader | None) -> dict[str, Value]:
    if trial.state != FINISHED:
        return {}
    found = {space.decides: scores(space, trial)} if scores else {}
    return {
        name: Value.of(trial.measured[name], trial.errors.get(name, ()), found.get(name, ()))
        for name in space.metrics
    }


def within_noise(first: Value, second: Value) -> bool:
    """Whether the 95 % interval of the difference of two means holds none.

    Scores of the same samples' noise are paired, as in reports. Several seeds are paired with
    themselves, by Student's t. Other single values have the errors that their nodes report, taken
    for independent; where one is not known, nothing is said to be noise.
    """
    between = {"": dict(enumerate(first.scores))}, {"": dict(enumerate(second.scores))}
    if len(first.scores) == len(second.scores) and (pairs := paired(*between)):
        effect = difference(pairs)
        said = side(*effect.tested, effect.freedom)
        return said == OPEN
    if len(first.of_seeds) > 1 and len(first.of_seeds) == len(second.of_seeds):
        parts = [a - b for a, b in zip(first.of_seeds, second.of_seeds, strict=True)]
        gap, error, degrees = decisions.over_seeds(parts)
        return side(gap, error, degrees) == OPEN
    if first.error is None or second.error is None:
        return False
    return side(first.mean - second.mean, math.hypot(first.error, second.error)) == OPEN


def short(paths: Sequence[str]) -> dict[str, str]:
    """Each path's last part, or as much of it as tells it from the others."""
    names = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[-length:])
            if sum(f".{other}".endswith(f".{name}") for other in paths) == 1:
                break
        names[path] = name
    return names


def shown(value: Any) -> str:
    """A setting's value in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def assigned(values: Mapping[str, Any]) -> str:
    """`lr=0.002, depth=4`."""
    names = short(tuple(values))
    return ", ".join(f"{names[path]}={shown(value)}" for path, value in values.items())
