"""The HTML report of a run: what the report stage wrote, plus what only the engine knows.

The report artifact is the same bytes for the same results. Times, states and the command belong
to one run, so they are filled in here, at the marker that the stage leaves, and the page is written
into the run's folder, with every figure and table as a file beside it.
"""

from __future__ import annotations

import contextlib
import html
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import drawing, partial, progress, provenance
from pipeline.artifact import Artifact
from pipeline.errors import DamagedArtifactError
from pipeline.locations import write_own
from pipeline.record import in_words
from pipeline.results import Run
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store

MARKER = "<!-- pipeline:run -->"
STAGE, PAGE, FIGURES = "report", "report.html", "figures"


@dataclass(frozen=True)
class Published:
    """What was written into a run's folder: the page, and the files that MLflow does not have from
    the report's node; tables are those of them that it lays out."""

    page: Path
    files: Sequence[Path] = ()
    tables: Sequence[Path] = ()


@dataclass(frozen=True)
class Timed:
    """What stages have to say of measured times: HTML, and its figures as SVG by file stem."""

    text: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)


Call = Callable[..., Any]


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def report(catalog: Catalog, store: Store, data: Mapping[str, Any]) -> Path | None:
    """Write the report of a finished or partial run; its page, None if the recipe has no report."""
    published = publish(catalog, store, data)
    return published.page if published else None


def publish(
    catalog: Catalog, store: Store, data: Mapping[str, Any], call: Call = _here
) -> Published | None:
    """Write the page, figures and tables of a finished or partial run into the run's folder.

    In a partial run, or where the report's artifact is damaged, the report stage is run on what
    there is. A sweep wrote its own page. None if the recipe has no report.

    Args:
        call: where the stage is run: gives what a function makes of its arguments.
    """
    folder = store.run_path(data["id"])
    page = folder / PAGE
    if "sweep" in data:
        return Published(page) if page.is_file() else None
    with tempfile.TemporaryDirectory() as temporary:
        made = _finished(store, data)
        source, output = (made.folder(), type(made)) if made else (Path(temporary), None)
        if made is None:
            job, output = partial.job_of(catalog, store, data, STAGE) or (None, None)
            if job is None:
                return None
            files = call(partial.render, job, (PAGE, *output.tables, *output.tracked))
            _unpack(files, source)
        known = set(made.manifest.files) if made else None
        tables = _copy(source, folder, output.tables, known)
        files = _copy(source, folder, output.tracked, known)
        text = (source / PAGE).read_text(encoding="utf-8")
    timed = Timed()
    if catalog.report_timed:
        timed = resolve_name(catalog.report_timed)(Run(store, dict(data)))
    write_own(page, text.replace(MARKER, section(store, data, timed.text)))
    own = _write(folder / FIGURES, {**timed.figures, "graph": drawing.picture(data)})
    return Published(page, own) if made else Published(page, [*files, *own], tables)


def _finished(store: Store, data: Mapping[str, Any]) -> Artifact | None:
    """The report's artifact; None where it is missing or damaged."""
    for node in data["nodes"].values():
        if node["stage"] == STAGE:
            with contextlib.suppress(DamagedArtifactError):  # or not made yet
                return store.open(STAGE, node["key"])
    return None


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _copy(
    source: Path, folder: Path, patterns: Sequence[str], known: set[str] | None
) -> list[Path]:
    """Copy the files that match, of those that are known, into a folder; what an earlier report
    left there goes."""
    copied = []
    for pattern in patterns:
        found = {path.relative_to(source): path for path in sorted(source.glob(pattern))}
        fresh = {n: p for n, p in found.items() if known is None or n.as_posix() in known}
        for name, path in fresh.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)  # a link is not written through
            copied.append(Path(shutil.copyfile(path, folder / name)))
        for path in folder.glob(pattern):
            if path.relative_to(folder) not in fresh:
                path.unlink()
    return copied


def _write(folder: Path, figures: Mapping[str, str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name, svg in figures.items():
        paths.append(folder / f"{name}.svg")
        write_own(paths[-1], svg)
    return paths


def section(store: Store, data: Mapping[str, Any], timed: str = "") -> str:
    """The run itself as HTML: the graph with times, then, folded, command, code and speeds.

    timed: HTML of what stages have to say of measured times.
    """
    git = data["git"]
    facts = {
        "run": data["id"],
        "state": data["state"],
        "recipe and preset": f"{data['recipe']} / {data['preset']}",
        "begun (UTC)": data["created"][:19],
        "ended (UTC)": data.get("ended", "")[:19],
        "code": provenance.code(git),
        "command": data["command"],
        "figures as files": store.run_path(data["id"]) / FIGURES,
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
    where = data["command"], provenance.code(git, 12)
    words = f"<p>{html.escape(' at '.join(where))}; {html.escape(_spent(data))}</p>"
    rest = f"<table class='facts'>{rows}</table>{timed}{speeds(data)}"
    folded = f"<details class='rest'><summary>command, code, times</summary>{rest}</details>"
    return f"<style>{drawing.LOOK}</style>{words}{failed}{drawing.graph(data)}{folded}"


def _spent(data: Mapping[str, Any]) -> str:
    """How much of a run was made and how long it took, and what its picture shows."""
    nodes = data["nodes"].values()
    cached = sum(node["state"] == progress.REUSED for node in nodes)
    seconds = progress.duration(sum(node["seconds"] or 0.0 for node in nodes))
    return (
        f"{len(nodes)} nodes, {cached} of them cached, {seconds} of work in sum. A box is filled "
        "to its share of the longest one's time; cached nodes stand with the time they once took."
    )


def speeds(data: Mapping[str, Any]) -> str:
    """What nodes measured of their own speed, as a folded table; empty where none did."""
    lines = []
    for name, node in data["nodes"].items():
        for what, rows in node.get("timings", {}).items():
            texts = (name, what, in_words(rows))
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
            lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return ""
    return (
        "<details><summary>Measured speeds</summary><p>Times of nodes that shared the machine with "
        "others, or of an earlier run where a node was cached.</p><div class='wide'><table>"
        "<thead><tr><th>node</th><th>what</th><th>value, or step: value</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
