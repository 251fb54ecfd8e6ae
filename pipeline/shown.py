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
    """What a finished run says as a whole: a value a claim, and words."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


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
        models: by stage, the `"module:function"` of a function that takes a store's uri and a
            node's manifest and gives the `pipeline.track.models.Model` that MLflow is to keep.
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
