"""Runs side by side as one self-contained page: settings, scores, curves, samples of one noise."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import provenance
from pipeline.compare import Comparison, Line, node_words
from pipeline.progress import duration
from pipeline.results import Run
from stages.pages.curves import SEED, score_curve
from stages.pages.figures import PANEL, Axes, Curve, Figure, plot
from stages.pages.page import Picture, Section, figure, folded, page, pictures, table
from stages.report.compare_scores import HEADLINES, Place, aligned, collect, opened
from stages.sampling import sample
from stages.scoring import evaluate, external

if TYPE_CHECKING:
    from stages.artifacts.scores import Row

# Curves that are drawn beside scores; all others are in MLflow.
METRICS = re.compile(r"loss/.+|icr|probe_accuracy|denoising_mse|lipschitz_(mean|max)|alignment_gap")
LOGARITHMIC = re.compile(r"loss/(?!alignment|total).+|fid|trajectory_rms|denoising_mse")
ABSCISSAS = {
    "training_step": ("training step", 1.0),
    "nfe": ("network evaluations (NFE)", 1.0),
    "sigma_1000": ("sigma", 1e-3),
    "step": ("solver's step", 1.0),
}
SHOWN = 3  # panels of a section, a row of them, before anybody asks for more
PICTURE_BYTES = 6 * 2**20  # all pictures of a page together


def compared(of: Comparison) -> str:
    """The page of a comparison."""
    names = ", ".join(
        f"{letter} = {html.escape(run.id)}" for letter, run in zip(of.letters, of.runs, strict=True)
    )
    sections = [
        _runs(of),
        _settings(of),
        *_scores(of),
        *_score_curves(of),
        *_curves(of),
        *_samples(of),
        _nodes(of),
    ]
    return page(f"{len(of.runs)} runs side by side", names, sections)


def _runs(of: Comparison) -> Section:
    rows: list[tuple[Any, ...]] = [("", *of.letters)]
    for word, key in (("run", "id"), ("recipe", "recipe"), ("preset", "preset")):
        rows.append((word, *(run.data[key] for run in of.runs)))
    rows.append(("state", *(run.state for run in of.runs)))
    rows.append(("begun (UTC)", *(run.data["created"][:19] for run in of.runs)))
    rows.append(("code", *(provenance.code(run.data["git"], 12) for run in of.runs)))
    rows.append(("command", *(run.data["command"] for run in of.runs)))
    return Section("Runs", "", [table(rows)], whole=True)


def _settings(of: Comparison) -> Section:
    if not of.settings:
        return Section("Settings that differ", "<p>No setting differs.</p>")
    rows = [("setting", *of.letters), *((one.key, *one.values) for one in of.settings)]
    return Section("Settings that differ", "", [table(rows)], whole=True)


# --- numbers --------------------------------------------------------------------------------------


def _scores(of: Comparison) -> Iterator[Section]:
    if of.scores:
        shown = [line for line in of.scores if line.headline]
        rest = _groups(of, of.scores)
        text = (
            "<p>The last set of samples that the runs share. Errors are one standard error of one "
            "set of images unless seeds are named: they do not hold the spread that other seeds "
            "of training would show. Differences are subtracted only under one protocol. Of sets "
            "made from the same noise and labels they are <b>paired</b>, sample by sample; else "
            "their errors are added as of independent sets. <b>Lower</b> and <b>higher</b> are "
            "beyond the 95 % interval of the difference, <b>within noise</b> is inside it.</p>"
        )
        every = folded(f"all {len(of.scores)} scores", "".join(rest))
        first = "".join(_groups(of, shown))
        yield Section("Scores", text, [every], first=first)
    scored = {line.node for line in of.scores}
    others = [line for line in of.measures if line.node not in scored]
    if others:
        rows = [("node", "metric", *of.letters)]
        rows += [(line.name, line.metric, *line.values) for line in others]
        tables = [folded(f"{len(others)} lines", table(rows))]
        yield Section("Other measurements that differ", "", tables, whole=True)


def _groups(of: Comparison, lines: Sequence[Line]) -> list[str]:
    """A table for each protocol, under its words."""
    parts = []
    heading = ("scores", "metric", *of.letters, *(f"{letter} - A" for letter in of.letters[1:]))
    for group in dict.fromkeys(line.group for line in lines):
        rows = [heading]
        rows += [
            (line.name, line.metric, *line.values, *line.differences)
            for line in lines
            if line.group == group
        ]
        parts.append(f"<p>{html.escape(group)}</p>{table(rows)}")
    return parts


# --- curves ---------------------------------------------------------------------------------------


def _score_curves(of: Comparison) -> Iterator[Section]:
    """One section for each abscissa: a panel for each curve and metric, never two protocols in one
    panel."""
    scores = collect(of.runs)
    for over, label in (("training_step", "training steps"), ("nfe", "NFE")):
        groups: dict[tuple[str, str], list[dict[Any, list[Row]]]] = {}
        for index, one in enumerate(scores):
            for place, row in one.items():
                if place.over == over and place.metric in HEADLINES[over] and place.at is not None:
                    lines = groups.setdefault((place.metric, place.curve), [{} for _ in scores])
                    lines[index].setdefault(row.score.protocol, []).append(row)
        panels = [
            panel
            for metric in HEADLINES[over]
            for (name, curve), lines in groups.items()
            if name == metric
            for panel in _score_panels(of, Place(curve, metric, over, None), lines)
        ]
        if panels:
            text = "<p>Bars: one standard error.</p>"
            yield _of_panels(f"Scores over {label}", text, panels)


def _of_panels(title: str, text: str, panels: Sequence[Figure]) -> Section:
    """A section that shows its first panels, and the others when somebody asks."""
    first = f"<div class='panels'>{''.join(map(figure, panels[:SHOWN]))}</div>"
    return Section(title, text, panels=panels[SHOWN:], first=first)


def _score_panels(
    of: Comparison, place: Place, lines: Sequence[Mapping[Any, list[Row]]]
) -> Iterator[Figure]:
    protocols = dict.fromkeys(protocol for one in lines for protocol in one)
    for protocol in protocols:
        rows = {
            letter: one[protocol]
            for letter, one in zip(of.letters, lines, strict=True)
            if protocol in one
        }
        if len(rows) < 2 and (len(protocols) == 1 or len(of.runs) < 2):
            continue
        note = "" if len(protocols) == 1 else f"; protocol {protocol.name}, {_against(protocol)}"
        curves = [
            score_curve(letter, [getattr(r, place.over) for r in of_run], [r.score for r in of_run])
            for letter, of_run in rows.items()
        ]
        yield _panel(f"{place.metric} {place.curve}{note}", place.metric, place.over, curves)


def _against(protocol: Any) -> str:
    details = f", {protocol.details}" if protocol.details else ""
    return f"extractor {protocol.extractor_hash[:12]}, {protocol.reference}{details}"


def _curves(of: Comparison) -> Iterator[Section]:
    """Losses, contractivity, risks and all that other nodes draw; a panel for each node and
    metric, of nodes with different results."""
    panels: dict[str, list[Figure]] = {}
    equal = 0
    for common, runs in _nodes_beside(of):
        manifests = {letter: run[name].manifest for letter, (run, name) in runs.items()}
        manifests = {k: m for k, m in manifests.items() if m is not None and m.curves}
        if len(manifests) < 2 or common.startswith(f"{evaluate.STAGE.name}/"):
            continue
        if len({manifest.key for manifest in manifests.values()}) == 1:
            equal += 1
            continue
        abscissa = next(iter(manifests.values())).abscissa or "step"
        by_letter = {letter: _points(opened(*runs[letter])) for letter in manifests}
        for metric in dict.fromkeys(metric for one in by_letter.values() for metric in one):
            curves = [Curve(k, *one[metric]) for k, one in by_letter.items() if metric in one]
            if METRICS.fullmatch(metric) and len(curves) > 1:
                panel = _panel(f"{metric} {common}", metric, abscissa, curves)
                panels.setdefault(common.partition("/")[0], []).append(panel)
    if panels:
        text = (
            f"<p>{equal} nodes with curves have the same result in all runs.</p>" if equal else ""
        )
        yield _of_panels("Other curves", text, [p for some in panels.values() for p in some])


def _nodes_beside(of: Comparison) -> Iterator[tuple[str, dict[str, tuple[Run, str]]]]:
    """Every node's common name, with the runs that have it and its name there, by their letters."""
    names = aligned(of.runs)
    for common in dict.fromkeys(name for one in names for name in one):
        runs = zip(of.letters, of.runs, names, strict=True)
        yield common, {letter: (run, one[common]) for letter, run, one in runs if common in one}


def _points(artifact: Any) -> dict[str, tuple[list[float], list[float]]]:
    points: dict[str, tuple[list[float], list[float]]] = {}
    for metric, step, value in artifact.curves() if artifact is not None else ():
        x, y = points.setdefault(metric, ([], []))
        x.append(step)
        y.append(value)
    return points


def _panel(title: str, metric: str, abscissa: str, curves: Sequence[Curve]) -> Figure:
    label, scale = ABSCISSAS.get(abscissa, (abscissa.replace("_", " "), 1.0))
    drawn = [Curve(c.name, [scale * x for x in c.x], c.y, c.error) for c in curves]
    positive = all(y > 0 for curve in drawn for y in curve.y)
    spaced = abscissa in ("nfe", "sigma_1000") and all(x > 0 for c in drawn for x in c.x)
    ticks = sorted({x for curve in drawn for x in curve.x}) if spaced else None
    axes = Axes(
        label,
        metric,
        log_x=spaced,
        log_y=positive and LOGARITHMIC.fullmatch(metric) is not None,
        ticks=ticks if ticks and len(ticks) <= 8 else None,
    )
    return plot(title, title, drawn, axes, PANEL)


# --- samples --------------------------------------------------------------------------------------


def _samples(of: Comparison) -> Iterator[Section]:
    """Grids of the same place of noise and class beside each other; those that a training of the
    runs' own seed ends with are seen first, and have the first claim on the page's size."""
    grids: dict[str, list[Picture]] = {}
    for common, runs in _nodes_beside(of):
        artifacts = {
            letter: artifact
            for letter, (run, name) in runs.items()
            if run[name].data["stage"] in _WITH_GRIDS
            and (artifact := opened(run, name)) is not None
        }
        if len({artifact.manifest.key for artifact in artifacts.values()}) > 1:
            grids[common] = list(_grids(artifacts))
    if not grids:
        return
    of_model = {
        name.partition("-step")[0]: name
        for name in grids
        if not SEED.search(name) and ("-step" in name or "/" not in name)
    }
    last, used = list(of_model.values()), 0
    shown: dict[str, str] = {}
    for common in (*last, *(name for name in grids if name not in last)):
        size = sum(len(picture.png) for picture in grids[common])
        if used + size <= PICTURE_BYTES:
            used += size
            shown[common] = f"<h3>{html.escape(common)}</h3>{pictures(grids[common])}"
    more = [shown[name] for name in grids if name in shown and name not in last]
    left_out = len(grids) - len(shown)
    text = (
        "<p>The same place in two grids is the same class, and the same noise where the seeds "
        "agree; nothing is selected. Nodes with the same result in all runs are left out.</p>"
    )
    tables = []
    if more:
        tables.append(folded(f"{len(more)} more", "".join(more)))
    if left_out:
        tables.append(f"<p>{left_out} sets more are left out to keep this file small.</p>")
    first = "".join(shown[name] for name in last if name in shown)
    yield Section("Samples", text, tables, first=first)


_WITH_GRIDS = (sample.STAGE.name, external.STAGE.name)


def _grids(found: Mapping[str, Any]) -> Iterator[Picture]:
    seeds = {artifact.description["seed"] for artifact in found.values()}
    for letter, artifact in found.items():
        facts = artifact.description
        parts = [letter]
        if facts["training_step"] is not None:
            parts.append(f"training step {facts['training_step']}")
        if facts["nfe"]:
            parts.append(f"{facts['solver']}, {facts['nfe']} evaluations")
        if facts["seed"] is not None:
            parts.append(f"seed {facts['seed']}" + (": other noise" if len(seeds) > 1 else ""))
        yield Picture(", ".join(parts), (artifact.path / "grid.png").read_bytes())


def _nodes(of: Comparison) -> Section:
    rows: list[tuple[Any, ...]] = [("node", *of.letters, "result")]
    for node in of.nodes:
        cells = [
            "" if state is None else f"{state} {'' if took is None else duration(took)}"
            for state, took in zip(node.states, node.seconds, strict=True)
        ]
        rows.append((node.name, *cells, "the same" if node.same else ""))
    tables = [folded(f"all {len(of.nodes)} nodes", table(rows))]
    return Section("Nodes", f"<p>{html.escape(node_words(of))}.</p>", tables, whole=True)
