"""Read runs back: `run = results.latest("full"); run["train/sit"].metrics; run.table()`."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact, Manifest
from pipeline.errors import DamagedArtifactError, UsageError, nearest
from pipeline.holding import holder
from pipeline.record import RUNNING, STOPPED, brief
from pipeline.store import Store

if TYPE_CHECKING:
    import pandas

DEFAULT_STORE = "store"
NOTEBOOK = 4  # figures that a run shows of itself in a notebook


def default_store() -> str:
    """The store of this folder: `PIPELINE_STORE`, or `store` in the current directory."""
    return os.environ.get("PIPELINE_STORE") or DEFAULT_STORE


def opened(uri: str | None = None) -> Store:
    """The store of that name, or this folder's own.

    Raises:
        UsageError: there can be none of that name, or it cannot be read.
    """
    store = Store(default_store() if uri is None else uri)
    store.check_readable()
    return store


class RunNode:
    """One node of a run."""

    def __init__(self, store: Store, name: str, data: dict[str, Any]) -> None:
        self._store, self.name, self.data = store, name, data

    @property
    def state(self) -> str:
        return self.data["state"]

    @cached_property
    def _read(self) -> tuple[Manifest | None, DamagedArtifactError | None]:
        """Its manifest as it was when it was first asked for, or what is wrong with it."""
        try:
            return self._store.manifest(self.data["stage"], self.data["key"]), None
        except DamagedArtifactError as error:
            return None, error

    @property
    def manifest(self) -> Manifest | None:
        """Raises DamagedArtifactError where there is one that cannot be read."""
        manifest, damage = self._read
        if damage is not None:
            raise damage
        return manifest

    @property
    def damage(self) -> str:
        """What is wrong with its manifest, "" if nothing is."""
        return str(self._read[1] or "")

    @property
    def metrics(self) -> dict[str, float]:
        """Headline numbers; empty while the node has not finished, or where they are damaged."""
        manifest = self._read[0]
        return dict(manifest.metrics) if manifest else {}

    @property
    def speeds(self) -> dict[str, list[list[float | None]]]:
        """What it measured of its own speed, `{name: [[step, value], ...]}`; of many values the
        median, without step."""
        manifest = self._read[0]
        return brief(manifest.timings) if manifest else {}

    @property
    def artifact(self) -> Artifact:
        """The artifact, checked against its manifest.

        Raises:
            UsageError: the node has not finished.
        """
        if self.manifest is None:
            raise UsageError(f"{self.name} has no artifact: {self.state}")
        return self._store.open(self.data["stage"], self.data["key"])

    def load(self) -> Any:
        """The artifact's payload in memory; its class says in what form."""
        return self.artifact.load()

    def _repr_html_(self) -> str:
        """The node in a notebook: its state and everything it measured."""
        rows = "".join(_row("td", text.split(" ", 1)) for text in measured(self.metrics))
        state = self.damage or f"{self.state} {self.data['error']}"
        return f"<b>{html.escape(self.name)}</b> {html.escape(state)}<table>{rows}</table>"

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """`{metric: [(step, value), ...]}`."""
        by_metric: dict[str, list[tuple[int, float]]] = {}
        for metric, step, value in self.artifact.curves():
            by_metric.setdefault(metric, []).append((step, value))
        return by_metric


class Run:
    """One run of a recipe."""

    def __init__(self, store: Store, data: dict[str, Any]) -> None:
        self.store, self.data = store, data

    def __repr__(self) -> str:
        return f"Run({self.id}, {self.state})"

    def _repr_html_(self) -> str:
        """The run in a notebook: what its nodes measured, and figures, scores first."""
        rows = [(name, *measured(self[name].metrics)[:5]) for name in self]
        table = "".join(_row("td", row) for row in rows if len(row) > 1)
        title = f"{self.id}: {self.data['recipe']}/{self.data['preset']}, {self.state}"
        figures = self.figures()
        first = sorted(figures, key=lambda path: "fid" not in path.stem)[:NOTEBOOK]
        pictures = "".join(map(_picture, first))
        more = f"<p>{len(figures)} figures in {html.escape(str(figures[0].parent))}</p>"
        return f"<b>{html.escape(title)}</b><table>{table}</table>{pictures}{more * bool(figures)}"

    def figures(self) -> list[Path]:
        """The figures of the report, as files; none before it is written."""
        return sorted((self.store.run_path(self.id) / "figures").glob("*.svg"))

    @property
    def id(self) -> str:
        return self.data["id"]

    @property
    def state(self) -> str:
        """`finished`, `failed`, `interrupted` (also when its command was killed) or `running`."""
        state = self.data["state"]
        if state == RUNNING:
            return RUNNING if holder(self.store, self.id) else STOPPED
        return state

    @property
    def settings(self) -> dict[str, Any]:
        return self.data["settings"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data["nodes"])

    def __getitem__(self, name: str) -> RunNode:
        if name not in self.data["nodes"]:
            hint = nearest(name, self.data["nodes"])
            raise UsageError(f"run {self.id} has no node '{name}'{hint}")
        return RunNode(self.store, name, self.data["nodes"][name])

    def rows(self) -> list[dict[str, Any]]:
        """One plain row a node: name, state, seconds and its metrics."""
        return [
            {"node": name, "state": self[name].state, "seconds": self[name].data["seconds"]}
            | self[name].metrics
            for name in self
        ]

    def table(self) -> pandas.DataFrame:
        """The rows as a data frame, indexed by node."""
        import pandas

        return pandas.DataFrame(self.rows()).set_index("node")

    def text(self, most: int = 5) -> str:
        """The nodes that measured something, as aligned lines of at most `most` metrics each."""
        rows = [(name, measured(self[name].metrics)[:most]) for name in self]
        width = max((len(name) for name in self), default=0)
        return "\n".join(f"{name:<{width}}  {'  '.join(texts)}" for name, texts in rows if texts)


def _row(kind: str, texts: Sequence[str]) -> str:
    cells = "".join(f"<{kind} style='text-align:left'>{html.escape(t)}</{kind}>" for t in texts)
    return f"<tr>{cells}</tr>"


def _picture(path: Path) -> str:
    """A figure as an image of its own, so that no style of it reaches the notebook."""
    code = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f"<img alt='{name}' style='max-width:45%' src='data:image/svg+xml;base64,{code}'>"


def measured(metrics: Mapping[str, float]) -> list[str]:
    """`fid 2.53 ± 0.62 (floor 1.59)` and the like, for every metric."""
    texts = []
    for name, value in metrics.items():
        if name.endswith(("_standard_error", "_floor")):
            continue
        error, floor = metrics.get(f"{name}_standard_error"), metrics.get(f"{name}_floor")
        text = f"{name} {value:.4g}"
        text += f" ± {error:.2g}" if error is not None else ""
        texts.append(text + (f" (floor {floor:.3g})" if floor is not None else ""))
    return texts


def runs(
    store: str | Store | None = None, unread: Callable[[str], object] = lambda text: None
) -> list[Run]:
    """All runs of a store, the newest first.

    Args:
        unread: hears a sentence about each whose record is damaged, which is left out.
    """
    opened_store = store if isinstance(store, Store) else opened(store)
    return [Run(opened_store, data) for data in opened_store.runs(unread)]


def latest(recipe: str | None = None, store: str | Store | None = None) -> Run:
    """The newest run, of one recipe if named.

    Raises:
        UsageError: there is none.
    """
    for run in runs(store):
        if recipe is None or run.data["recipe"] == recipe:
            return run
    what = f"no run of '{recipe}'" if recipe else "no run"
    raise UsageError(f"{what} in this store; begin with: python -m pipeline run {recipe or 'full'}")


def find(name: str, store: str | Store | None = None) -> Run:
    """A run by its id, by a unique part of it, or `latest`.

    Raises:
        UsageError: no run, or several, match.
    """
    all_runs = runs(store)
    if name == "latest":
        return latest(store=store)
    matches = [run for run in all_runs if run.id == name] or [r for r in all_runs if name in r.id]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"'{name}' names {len(matches)} runs: {', '.join(r.id for r in matches)}")
    near = nearest(name, [r.id for r in all_runs])
    raise UsageError(f"unknown run '{name}'{near}; python -m pipeline runs lists them")
