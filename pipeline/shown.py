"""What MLflow is to show of runs: few charts, short names, and constants where they belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Chart:
    """One of the charts that MLflow's page opens on.

    Args:
        section: the heading that it stands under, with the others of that heading.
        metric: what is drawn, by its shared name.
        abscissa: what it is drawn over, as nodes name it; a metric that is drawn over several
            has a chart for each.
    """

    section: str
    metric: str
    abscissa: str


@dataclass(frozen=True)
class Summary:
    """What a finished run says as a whole: a value a claim, and words. note: all of it for a
    reader, as Markdown."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of what a model is asked. many: a list of such numbers in each row."""

    name: str
    type: str = "long"
    many: bool = False
    required: bool = True


@dataclass(frozen=True)
class Model:
    """What MLflow is to keep of an artifact.

    Args:
        answer: `"module:function"` of a function that takes the artifact, `settings`, the rows
            that are asked (a data frame) and the params beside them, and gives an array.
        settings: plain data, kept for `answer`.
        columns: of the rows.
        shape: of one item of the answer, float32.
        params: what may be said beside the rows, with defaults.
    """

    answer: str
    settings: Mapping[str, Any]
    columns: Sequence[Column]
    shape: Sequence[int]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """How the stages' results appear in MLflow.

    Args:
        charts: those that the page opens on, in order.
        constants: patterns of headline numbers that nobody measures (counts, seeds, floors): they
            become params.
        words: what the name of a stage's curve ends with, where it is not the stage's own name.
        summary: `"module:function"` of a function that takes a finished run and gives its
            `Summary`.
        models: by stage, the `"module:function"` of a function that takes an artifact and the
            nodes that read it, and gives the `Model` that MLflow is to keep of it.
    """

    charts: Sequence[Chart] = ()
    constants: Sequence[str] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    models: Mapping[str, str] = field(default_factory=dict)

    def name(self, stage: str, node: str) -> str:
        """What legends call a node's curve: `evaluate/sit-dpmpp2m` may be `sit dpmpp2m`."""
        own = node.partition("/")[2] or node
        return f"{own.replace('-', ' ')} {self.words.get(stage, stage)}".rstrip()

    def is_constant(self, metric: str) -> bool:
        return any(fnmatchcase(metric, pattern) for pattern in self.constants)

    def plain_charts(self) -> list[dict[str, Any]]:
        """The charts as plain data, as the spool keeps them."""
        return [asdict(chart) for chart in self.charts]
