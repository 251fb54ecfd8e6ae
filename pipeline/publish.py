"""The HTML report of a run: what the report stage wrote, plus what only the engine knows.

The report artifact is the same bytes for the same results. Times, states and the command belong
to one run, so they are filled in here, at the marker that the stage leaves, and the file is
written into the run's folder.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import drawing, progress, worker
from pipeline.artifact import Artifact
from pipeline.errors import DamagedArtifactError, UsageError
from pipeline.graph import Graph, Node
from pipeline.results import Run
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store

MARKER = "<!-- pipeline:run -->"
STAGE, PAGE = "report", "report.html"


def report(catalog: Catalog, store: Store, data: Mapping[str, Any]) -> Path | None:
    """Write `report.html` of a finished or partial run; None if the recipe has no report.

    In a partial run the report stage is run here on what there is. A sweep wrote its own page.
    """
    if "sweep" in data:
        own = store.run_path(data["id"]) / PAGE
        return own if own.is_file() else None
    for node in data["nodes"].values():
        if node["stage"] == STAGE and store.manifest(STAGE, node["key"]) is not None:
            page = (store.open(STAGE, node["key"]).path / PAGE).read_text()
            break
    else:
        page = _partial(catalog, store, data)
    if page is None:
        return None
    path = store.run_path(data["id"]) / PAGE
    timed = (
        resolve_name(catalog.report_timed)(Run(store, dict(data))) if catalog.report_timed else ""
    )
    path.write_text(page.replace(MARKER, section(store, data, timed)))
    return path


def _partial(catalog: Catalog, store: Store, data: Mapping[str, Any]) -> str | None:
    try:
        settings = catalog.settings.model_validate(data["settings"])
    except ValueError as error:
        raise UsageError(
            f"run {data['id']} was made by a version with other settings, and its report was not "
            "finished; run the recipe again"
        ) from error
    graph = Graph(catalog.recipes[data["recipe"]](settings), catalog.exclude_sources)
    for node in graph:
        if node.stage.name == STAGE:
            return _render(store, data, node, graph)
    return None


def _render(store: Store, data: Mapping[str, Any], node: Node, graph: Graph) -> str:
    inputs: dict[str, Any] = {}
    for slot, declared in node.stage.inputs.items():
        found = {name: _available(store, data, name) for name in node.slot(slot)}
        found = {name: artifact for name, artifact in found.items() if artifact is not None}
        inputs[slot] = found if declared.many else next(iter(found.values()), None)
    job = worker.Job(
        node=node.name,
        key="",
        identity=graph.identities[node.name],
        run=node.stage.run,
        output=node.stage.output.type_name(),
        settings=node.settings,
        inputs={},
        store=store.uri,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        context = worker.WorkerContext(job, inputs, path, path, _unheard, worker.run_inline)
        resolve_name(node.stage.run)(context)
        return (path / PAGE).read_text()


def _unheard(event: tuple) -> None:
    """Nobody watches the report of a partial run being made."""


def _available(store: Store, data: Mapping[str, Any], name: str) -> Artifact | None:
    node = data["nodes"].get(name)
    try:
        return store.open(node["stage"], node["key"]) if node else None
    except DamagedArtifactError:
        return None


def section(store: Store, data: Mapping[str, Any], timed: str = "") -> str:
    """The run itself as HTML: command, code, packages, and the graph with times.

    timed: HTML of what stages have to say of measured times.
    """
    git = data["git"]
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts = {
        "run": data["id"],
        "state": data["state"],
        "recipe and preset": f"{data['recipe']} / {data['preset']}",
        "begun (UTC)": data["created"][:19],
        "ended (UTC)": data.get("ended", "")[:19],
        "code": git.get("revision", "unknown") + dirty,
        "command": data["command"],
        "the same again, exactly": f"python -m pipeline run {data['recipe']} "
        f"--preset {store.run_path(data['id']) / 'settings.yaml'}",
    }
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in facts.items()
    )
    failed = "".join(
        f"<p class='failed'><b>{html.escape(name)}</b>: {html.escape(node['error'])}</p>"
        for name, node in data["nodes"].items()
        if node["state"] in (progress.FAILED, progress.BLOCKED)
    )
    times = speeds(data)
    return f"<table class='facts'>{rows}</table>{failed}{timed}{times}{drawing.graph(data)}"


def speeds(data: Mapping[str, Any]) -> str:
    """What nodes measured of their own speed, as a folded table; empty where none did."""
    lines = []
    for name, node in data["nodes"].items():
        for what, rows in node.get("timings", {}).items():
            values = ", ".join(
                f"median {value:.3g}" if step is None else f"{step:g}: {value:.3g}"
                for step, value in rows
            )
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in (name, what, values))
            lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return ""
    return (
        "<details><summary>Measured speeds</summary><p>Times of nodes that shared the machine with "
        "others, or of an earlier run where a node was cached.</p><div class='wide'><table>"
        "<thead><tr><th>node</th><th>what</th><th>value, or step: value</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
