"""Runs side by side: settings that differ, nodes, and what they measured.

The engine knows settings, nodes and metrics. What scores mean, when two of them may be subtracted,
and pictures come from the functions that the catalog names (`compare_scores`, `compare_page`).
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline import progress, results
from pipeline.config import flatten
from pipeline.errors import UsageError, printable
from pipeline.stage import Catalog, resolve

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pipeline.store import Store

MISSING = ""
MOST = 8  # runs that fit beside each other
LONGEST = 60  # lines of a table in the terminal


@dataclass(frozen=True)
class Changed:
    """A setting with its value in every run, as text; empty where a run does not have it."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class NodeLine:
    """A node with its state and seconds in every run, None where a run does not have it.

    same: every run has it, with one and the same result.
    """

    name: str
    states: tuple[str | None, ...]
    seconds: tuple[float | None, ...]
    same: bool


@dataclass(frozen=True)
class Line:
    """One measured quantity over the runs.

    group: under what it was measured (a protocol), the same words for lines that compare.
    values: as texts, empty where a run lacks it. differences: against the first run, one for every
    further run; or why there is none. headline: whether the terminal shows it. node: the node that
    measured it.
    """

    group: str
    name: str
    metric: str
    values: tuple[str, ...]
    differences: tuple[str, ...] = ()
    headline: bool = True
    node: str = ""


@dataclass(frozen=True)
class Comparison:
    """What two or more runs share, and where they differ."""

    runs: tuple[results.Run, ...]
    settings: tuple[Changed, ...]
    nodes: tuple[NodeLine, ...]
    scores: tuple[Line, ...]
    measures: tuple[Line, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """What tables and figures call the runs: A, B, ..."""
        return tuple(string.ascii_uppercase[: len(self.runs)])


def find(names: Sequence[str], store: Store) -> list[results.Run]:
    """The runs of these names, in their order.

    Raises:
        UsageError: a name is unknown or matches several runs, fewer than two different ones are
            named, or too many.
    """
    by_id = {run.id: run for run in (results.find(name, store) for name in names)}
    if len(by_id) < 2:
        same = f"; {' and '.join(names)} are one run" if len(names) > 1 else ""
        raise UsageError(f"compare takes two runs or more{same}; see python -m pipeline runs")
    if len(by_id) > MOST:
        raise UsageError(f"{len(by_id)} runs do not fit beside each other; give {MOST} at most")
    return list(by_id.values())


def compare(catalog: Catalog, runs: Sequence[results.Run]) -> Comparison:
    """Compare runs of any recipes, finished or not."""
    scores = resolve(catalog.compare_scores)(runs) if catalog.compare_scores else ()
    return Comparison(
        tuple(runs), tuple(settings(runs)), tuple(nodes(runs)), tuple(scores), tuple(measures(runs))
    )


def settings(runs: Sequence[results.Run]) -> Iterator[Changed]:
    """Recipe, preset and every resolved setting in which the runs differ."""
    for key in ("recipe", "preset"):
        values = tuple(str(run.data[key]) for run in runs)
        if len(set(values)) > 1:
            yield Changed(key, values)
    flat = [dict(flatten(run.settings)) for run in runs]
    for key in dict.fromkeys(key for one in flat for key in one):
        values = tuple(_text(one[key]) if key in one else MISSING for one in flat)
        if len(set(values)) > 1:
            yield Changed(key, values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def nodes(runs: Sequence[results.Run]) -> Iterator[NodeLine]:
    """Every node of every run."""
    for name in _union(runs):
        entries = [run.data["nodes"].get(name) for run in runs]
        keys = {(node["stage"], node["key"]) if node else None for node in entries}
        ended = all(node and node["state"] in (progress.DONE, progress.REUSED) for node in entries)
        yield NodeLine(
            name,
            tuple(node["state"] if node else None for node in entries),
            tuple(node["seconds"] if node else None for node in entries),
            same=ended and len(keys) == 1,
        )


def measures(runs: Sequence[results.Run]) -> Iterator[Line]:
    """The headline metrics of nodes that two runs or more have with different results."""
    for name in _union(runs):
        node_results = [run[name] if name in run.data["nodes"] else None for run in runs]
        # One damaged artifact, which `show` names, does not keep the others from being compared.
        manifests = [None if not n or n.damage else n.manifest for n in node_results]
        keys = [manifest.key for manifest in manifests if manifest is not None]
        if len(keys) < 2 or len(set(keys)) == 1:
            continue
        metrics = [dict(manifest.metrics) if manifest else {} for manifest in manifests]
        for metric in dict.fromkeys(key for one in metrics for key in one):
            if metric.endswith(("_standard_error", "_floor")):
                continue
            values = tuple(_value(one, metric) for one in metrics)
            if len(set(values)) > 1:
                yield Line("", name, metric, values, node=name)


def _value(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return MISSING
    error = metrics.get(f"{name}_standard_error")
    return f"{metrics[name]:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _union(runs: Sequence[results.Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run))


# --- the terminal ---------------------------------------------------------------------------------


def show(of: Comparison, console: Console) -> None:
    """Print a comparison as tables."""
    for part in _parts(of):
        console.print(part)


def _parts(of: Comparison) -> Iterator[RenderableType]:
    from rich.text import Text

    for letter, run in zip(of.letters, of.runs, strict=True):
        yield Text(f"{letter}  {headline(run)}")
    yield ""
    if of.settings:
        rows = ((one.key, *one.values) for one in of.settings)
        yield _table("settings that differ", ("setting", *of.letters), rows)
    else:
        yield Text("no setting differs")
    yield Text(f"\n{node_words(of)}\n")
    headlines = [line for line in of.scores if line.headline]
    for group in dict.fromkeys(line.group for line in headlines):
        rows = (
            (line.name, line.metric, *line.values, *line.differences)
            for line in headlines
            if line.group == group
        )
        differences = [f"{letter} - A" for letter in of.letters[1:]]
        yield _table(group, ("scores", "metric", *of.letters, *differences), rows)
    scored = {line.node for line in of.scores}
    others = [line for line in of.measures if line.node not in scored]
    if others:
        rows = ((line.name, line.metric, *line.values) for line in others)
        yield _table("other measurements that differ", ("node", "metric", *of.letters), rows)


def headline(run: results.Run) -> str:
    """A run in one line."""
    data = run.data
    begun = data["created"][:19].replace("T", " ")
    preset = printable(data["preset"])
    return f"{run.id}  {data['recipe']}/{preset}, {run.state}, begun {begun} UTC"


def node_words(of: Comparison) -> str:
    """How many nodes the runs share, and which only some of them have."""
    shared = [node for node in of.nodes if None not in node.states]
    same = sum(node.same for node in shared)
    parts = [
        f"{len(shared)} nodes are in {'both' if len(of.runs) == 2 else 'all'} runs, "
        f"{same} of them with one and the same result"
    ]
    for index, letter in enumerate(of.letters):
        own = [
            node.name
            for node in of.nodes
            if node.states[index] is not None
            and all(state is None for i, state in enumerate(node.states) if i != index)
        ]
        if own:
            more = f", ... ({len(own)})" if len(own) > 4 else ""
            parts.append(f"only in {letter}: {', '.join(own[:4])}{more}")
        ended = (progress.DONE, progress.REUSED, None)
        missing = [node.name for node in of.nodes if node.states[index] not in ended]
        if missing:
            parts.append(f"{letter} lacks {len(missing)} of its nodes ({missing[0]}, ...)")
    return "; ".join(parts)


def _table(title: str, heading: Iterable[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in heading:
        table.add_column(name, overflow="fold")
    for row in islice(rows, LONGEST):
        table.add_row(*(Text(printable(cell)) for cell in row))
    parts: list[RenderableType] = [Text(title, style="bold"), table]
    if len(rows) > LONGEST:
        parts.append(Text(f"... and {len(rows) - LONGEST} more lines: see the HTML page"))
    return Group(*parts, "")


def file_name(runs: Sequence[Any]) -> str:
    """The page's name in the first run's folder."""
    return f"compare-{'-'.join(run.id.rpartition('-')[2] for run in runs)}.html"
