"""What a sweep tries and how its trials are judged: files in `spaces/` that people edit.

```
recipe: full
metrics:                                    # the first decides, unless `objective` names another
  fid: {node: evaluate/sit, direction: min}
parameters:
  train.lr: {loguniform: [0.001, 0.02]}     # uniform, loguniform, randint (both ends included)
  train.network.depth: {grid: [2, 4]}       # grid or choice: these values
settings: {csflow.in_full: false}           # of all trials
search: random                              # grid, random or optuna
trials: 12
seeds: 3                                    # each trial with so many seeds, from the run's own on
seeded: [train, sample]                     # the stages that they are of; unset is `seed` itself
halving: {metric: loss/velocity, node: train/sit, direction: min, grace: 0.25}
```

`points` (a list of settings) stands instead of `parameters` where no grid fits. A node may hold
settings, as in `evaluate/{train.method}`, or be a pattern such as `evaluate/sit-*` that fits one
node of each trial.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import pydantic
from pydantic import Field, model_validator

from pipeline import yaml12
from pipeline.errors import UsageError, nearest
from pipeline.stage import Settings
from pipeline.written import meant

FOLDER = Path(__file__).parent / "spaces"
LISTS, RANGES = ("grid", "choice"), ("uniform", "loguniform", "randint")
Direction = Literal["min", "max"]


class Measure(Settings):
    """A number that a node reports."""

    node: str = Field(description="the node, or a pattern that one node of each trial fits")
    direction: Direction = Field(description="whether less or more of it is better")
    metric: str | None = Field(None, description="its name; unset is the name it stands under")


class Halving(Settings):
    """Stop the trials that lag behind (ASHA, Li et al. 2020) on a curve told during the work."""

    node: str = Field(description="the node that tells the curve, such as a training")
    metric: str = Field(description="the curve")
    direction: Direction = Field("min", description="whether less or more of it is better")
    grace: int | float = Field(
        gt=0,
        description="the first step of the curve at which a trial may stop; below 1 as a share of "
        "all its steps",
    )
    reduction: float = Field(
        3.0, ge=1.1, le=100, description="one of so many trials goes on to so many times the steps"
    )

    @model_validator(mode="after")
    def _is_a_step(self) -> Halving:
        if self.grace >= 1 and self.grace != int(self.grace):
            raise ValueError(
                f"grace={self.grace:g} is no step: give a whole number, or a share below 1"
            )
        return self


class Space(Settings):
    """A search space and how to search it."""

    description: str = Field("", description="what it answers")
    recipe: str = Field(description="the recipe whose nodes are run")
    preset: str | None = Field(None, description="what --preset is when it is not given")
    settings: dict[str, Any] = Field({}, description="settings of all trials, by dotted path")
    metrics: dict[str, Measure] = Field(min_length=1, description="what trials are judged by")
    objective: str | None = Field(None, description="the metric that decides; unset is the first")
    parameters: dict[str, dict[str, Any]] = Field({}, description="values tried, by dotted path")
    points: tuple[dict[str, Any], ...] = Field((), description="or the trials one by one")
    search: Literal["grid", "random", "optuna"] = Field("grid", description="how values are chosen")
    trials: int | None = Field(None, ge=1, le=100_000, description="how many, at most")
    seeds: int = Field(
        1, ge=1, le=1000, description="seeds each trial is run with, counted from the run's own"
    )
    seeded: tuple[str, ...] = Field(
        (),
        description="the stages whose nodes have these seeds, so that others, such as what scores "
        "them, stay as they are; unset changes the setting `seed`",
    )
    search_seed: int = Field(0, ge=0, description="of random values")
    halving: Halving | None = Field(None, description="early stopping; unset is none")

    @model_validator(mode="after")
    def _fits_together(self) -> Space:
        if self.objective is not None and self.objective not in self.metrics:
            hint = nearest(self.objective, self.metrics)
            known = ", ".join(self.metrics)
            raise ValueError(f"objective '{self.objective}' is none of its metrics{hint} ({known})")
        if bool(self.parameters) == bool(self.points):
            empty = "it is empty" if not self.parameters else "it has both"
            raise ValueError(f"{empty}; give either parameters or points")
        names = {path for point in self.points for path in point}
        for point in self.points:
            if missing := sorted(names - point.keys()):
                raise ValueError(f"the point {point} lacks {missing[0]}; every point sets the same")
        if self.points and self.search != "grid":
            raise ValueError(f"points and search={self.search} contradict each other; use grid")
        if len({canonical(point) for point in self.points}) < len(self.points):
            raise ValueError(f"points has {_first_twice(self.points)} twice; leave one out")
        for parameter in self.ranges():
            if self.search == "grid" and parameter.kind in RANGES:
                raise ValueError(
                    f"{parameter.path} is {parameter.kind} and search=grid tries single values; "
                    "give it as grid: [...], or set search: random"
                )
        for path in self.paths:
            if path in self.settings:
                raise ValueError(f"{path} is both a parameter and in settings; leave one out")
            if path == "seed" and self.seeds > 1:
                raise ValueError(f"seed is a parameter and seeds={self.seeds}; leave one out")
            for other in (*self.paths, *self.settings):
                if within(path, other) or within(other, path):
                    where = "a parameter" if other in self.paths else "in settings"
                    raise ValueError(
                        f"{path} is a parameter and {other} is {where}, and one is part of the "
                        "other; leave one out"
                    )
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search={self.search} needs trials: how many to try")
        return self

    @property
    def decides(self) -> str:
        """The name of the metric that decides."""
        return self.objective or next(iter(self.metrics))

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted paths that trials differ in."""
        return tuple(self.parameters) or tuple(self.points[0])

    def ranges(self) -> list[Parameter]:
        """The parameters; ValueError for one that cannot be."""
        return [Parameter.of(path, spec) for path, spec in self.parameters.items()]

    def values(self) -> list[dict[str, Any]]:
        """The values of every trial of a grid or random search, none twice, in order.

        Random values of a trial depend on the seed, its number and the path alone: more trials,
        or another parameter, leave them as they are. A grid larger than `trials` is sampled.
        """
        if self.search != "grid":
            return self._drawn()
        combinations = [dict(point) for point in self.points] or list(_product(self.ranges()))
        if self.trials is not None and self.trials < len(combinations):
            kept = sorted(
                Random(f"{self.search_seed}").sample(range(len(combinations)), self.trials)
            )
            combinations = [combinations[i] for i in kept]
        return combinations

    def _drawn(self) -> list[dict[str, Any]]:
        drawn: dict[str, dict[str, Any]] = {}
        for index in range(100 * self.trials):  # a small space may be used up before
            values = {
                p.path: p.draw(Random(f"{self.search_seed}/{index}/{p.path}"))
                for p in self.ranges()
            }
            drawn.setdefault(canonical(values), values)
            if len(drawn) == self.trials:
                break
        return list(drawn.values())


@dataclass(frozen=True)
class Parameter:
    """A setting that trials differ in. values: those of a list, or the two ends of a range."""

    path: str
    kind: str
    values: tuple[Any, ...]

    @classmethod
    def of(cls, path: str, spec: Mapping[str, Any]) -> Parameter:
        """From a space file's `{kind: [...]}`. Raises ValueError."""
        if len(spec) != 1:
            raise ValueError(f"{path}: give one of {', '.join(LISTS + RANGES)}, such as grid: [1]")
        ((kind, values),) = spec.items()
        if kind not in LISTS + RANGES:
            hint = nearest(kind, LISTS + RANGES)
            raise ValueError(
                f"{path}: unknown kind '{kind}'{hint} (known: {', '.join(LISTS + RANGES)})"
            )
        if kind in LISTS and not isinstance(values, list | dict | None):
            values = [values]
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: {kind} has no values; give a list such as [1, 2]")
        if kind in RANGES:
            values = _ends(path, kind, values)
        elif len({canonical(value) for value in values}) < len(values):
            raise ValueError(f"{path}: {kind} has {_first_twice(values)} twice; leave one out")
        return cls(path, kind, tuple(values))

    @property
    def plain(self) -> bool:
        """Whether each value is one that a search can hold as it is."""
        scalars = bool | int | float | str | None
        return self.kind in RANGES or all(isinstance(value, scalars) for value in self.values)

    def draw(self, random: Random) -> Any:
        """A random value, with four digits, so that files and tables show it whole."""
        if self.kind in LISTS:
            return random.choice(self.values)
        low, high = self.values
        if self.kind == "randint":
            return random.randint(low, high)
        if self.kind == "uniform":
            return _short(random.uniform(low, high), low, high)
        return _short(math.exp(random.uniform(math.log(low), math.log(high))), low, high)


def _short(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.4g}"), low), high)


def _ends(path: str, kind: str, values: Sequence[Any]) -> list[int | float]:
    """The two ends of a range. Raises ValueError."""
    values = [float(v) if isinstance(v, str) and yaml12.NUMBER.fullmatch(v) else v for v in values]
    numbers = all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if len(values) != 2 or not numbers:
        raise ValueError(f"{path}: {kind} takes two numbers, as in {kind}: [1, 8], not {values}")
    low, high = values
    if kind == "randint":
        if any(v != int(v) for v in values):
            raise ValueError(f"{path}: randint takes whole numbers, not {values}")
        low, high = int(low), int(high)
    if not low < high:
        raise ValueError(f"{path}: {kind} from {low} to {high} is empty; give the lower end first")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{path}: loguniform from {low} reaches zero; begin above it")
    return [low, high]


def _product(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    if not parameters:
        yield {}
        return
    first, *rest = parameters
    for value in first.values:
        for others in _product(rest):
            yield {first.path: value} | others


def _first_twice(values: Sequence[Any]) -> Any:
    texts = [canonical(value) for value in values]
    return next(v for v, text in zip(values, texts, strict=True) if texts.count(text) > 1)


def within(path: str, group: str) -> bool:
    """Whether a dotted path is below another."""
    return path.startswith(f"{group}.")


JSON = "json:"  # begins the names of values that travel as text


def encoded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values as a search holds them: what is no plain value, such as a list, as JSON."""
    plain = {parameter.path: parameter.plain for parameter in space.ranges()}
    return {
        path if plain[path] else f"{JSON}{path}": value if plain[path] else json.dumps(value)
        for path, value in values.items()
    }


def decoded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The way back from `encoded`."""
    return {
        path.removeprefix(JSON): json.loads(value) if path.startswith(JSON) else value
        for path, value in config.items()
    }


def canonical(value: Any) -> str:
    """One text for equal values, whatever the order of keys."""
    return json.dumps(value, sort_keys=True)


def names() -> list[str]:
    """The named spaces."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str, file: str | None = None, **changes: Any) -> Space:
    """A named space, or one from a file.

    Args:
        changes: fields that the command line sets; None leaves what the file says.

    Raises:
        UsageError: there is no such space, or it is wrong; one sentence.
    """
    if not re.fullmatch(r"\w[\w.+-]{,99}", name):
        raise UsageError(
            f"sweep name '{name}': runs and folders are called after it; take up to 100 letters, "
            "digits, '-', '_' and '.', with a letter or digit first"
        )
    if file is None and name not in names():
        raise UsageError(
            f"unknown sweep '{name}'{nearest(name, names())} (known: {', '.join(names())}; or give "
            "your own space with --space FILE)"
        )
    path = Path(file) if file is not None else FOLDER / f"{name}.yaml"
    tree = meant(Space, yaml12.read(path, "space"), f"space {path.stem}")
    tree |= {key: value for key, value in changes.items() if value is not None}
    try:
        return Space.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UsageError(f"space {path.stem}: {_explain(error)}") from error


def _explain(error: pydantic.ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{place}: {message}" if place else message
    if problem["type"] == "extra_forbidden":
        owner = {"metrics": Measure, "halving": Halving}.get(str(problem["loc"][0]), Space)
        return f"unknown key '{place}'{nearest(str(problem['loc'][-1]), owner.model_fields)}"
    if problem["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
