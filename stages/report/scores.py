"""Scores in the report: tables by protocol, every score with its error, plots of one protocol."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.pages.curves import grouped, mean_score, score_curve
from stages.pages.figures import Axes, Figure, plot
from stages.pages.findings import OPEN, side
from stages.pages.looks import score_name
from stages.pages.page import Section, folded, score_cell, table

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.methods.protocol import Protocol, Score

# Scores of the overview, in this order, where a set has them.
OVERVIEW = (
    *("fid", "fid_infinity", "fid_held_out", "fid_gap", "sfid", "kid"),
    *("precision", "recall", "density", "coverage", "inception_score", "memorization_ratio"),
)
# Which way they get better; the others are not to be ranked. More only up to what real images
# score: samples crowded around few images have more density, and more precision, than those.
LESS = ("fid", "fid_infinity", "fid_held_out", "sfid", "kid", "memorization_ratio")
MORE = ("precision", "recall", "coverage", "inception_score")
FIRST = ("fid", "kid", "precision", "recall", "coverage", "memorization_ratio")
UNFOLDED = 30  # curves; later sections compare them, and a longer table would bury those


def overview(scores: Mapping[str, Sequence[Row]], left_out: str = "") -> Section:
    """The last set of every curve, one table for each protocol, and all scores folded away.

    left_out: which scores were not taken, and how they are; empty where all were.
    """
    tables = []
    protocols = _by_protocol(scores)
    for protocol, curves in protocols.items():
        tables += [_words(protocol, curves), _last_sets(curves), _cautions(curves)]
    lines = list(_lines(scores))
    tables.append(folded(f"all {len(lines)} scores", table([HEADING, *lines])))
    text = (
        "<p>Scores stand in one table only where they were measured under one protocol: same "
        "extractor, reference and number of samples. An error is one standard error; its kind "
        "says what it holds: <b>seeds</b> the spread over repeated trainings or samplings, "
        "<b>influence</b> and <b>jackknife</b> only that of one set of samples, from what each "
        "sample or block of them contributes. In a table the best of a column is <b>bold</b>, of "
        "each measurement where a column holds several; "
        "<i>italic</i> is what is not beyond the 95 % interval of its difference to that: paired "
        "where both sets are from the same noise and labels, Student's over seeds. Density is not "
        "ranked, nor is a column whose highest value is above what real images score.</p>"
    )
    if left_out:
        text += f"<p>{html.escape(left_out)}.</p>"
    most = max(protocols.items(), key=lambda item: len(item[1]))
    return Section("Scores", text, tables, first=_best_of(*most))


def _last(curves: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Score]]:
    """The scores of every curve's last set, by curve and metric."""
    return {
        name: {row.score.metric: row.score for row in rows if row.node == rows[-1].node}
        for name, rows in curves.items()
    }


def _bests(of: Mapping[str, Mapping[str, Score]], metric: str) -> dict[Protocol, str]:
    """The curve whose score is the best of each measurement: protocol with the metric's own
    details. None where nothing ranks them."""
    alike: dict[Protocol, dict[str, Score]] = {}
    for name, scores in of.items():
        if metric in scores and metric in (*LESS, *MORE):
            alike.setdefault(scores[metric].protocol, {})[name] = scores[metric]
    found = {protocol: _best(metric, scores) for protocol, scores in alike.items()}
    return {protocol: name for protocol, name in found.items() if name is not None}


def _best(metric: str, scores: Mapping[str, Score]) -> str | None:
    values = {name: one.value for name, one in scores.items()}
    if len(set(values.values())) < 2:
        return None
    name = (min if metric in LESS else max)(values, key=values.__getitem__)
    floor = scores[name].floor
    passed = metric in MORE and floor is not None and values[name] > floor
    return None if passed else name


def _look(one: Score, best: Score | None) -> str:
    """`best`, or `close` where the difference to the best is within its 95 % interval."""
    from stages.methods.effects import combined

    if best is None:
        return ""
    if one is best:
        return "best"
    found = combined([(1.0, one), (-1.0, best)])
    return "close" if side(one.value - best.value, found.error, found.degrees) == OPEN else ""


def _best_of(protocol: Protocol, curves: Mapping[str, Sequence[Row]]) -> str:
    """The best of each of the first metrics beside what real images get, as a small table."""
    of = _last(curves)
    lines: list[tuple[Any, ...]] = []
    for metric in FIRST:
        bests = _bests(of, metric)
        for measured, name in bests.items():
            one = of[name][metric]
            curve = name.removeprefix("evaluate/")
            better = "lower" if metric in LESS else "higher"
            which = f", {measured.details}" if len(bests) > 1 and measured.details else ""
            best = score_cell(one.value, one.error)
            words = f"{score_name(metric)} ({better} is better){which}"
            lines.append((words, best, curve, one.floor))
    if not lines:
        return ""
    caption = f"<p class='note'>The best last sets of protocol {html.escape(protocol.name)}.</p>"
    return caption + table([("score", "best", "of", "real images"), *lines])


def plots(
    name: str, scores: Mapping[str, Sequence[Row]], metric: str, over: str, label: str, **axes: Any
) -> list[Figure]:
    """A metric of every curve over `over`: one figure for each protocol, never two on one axis.
    Trainings that differ in the seed alone are one curve, their mean.

    name: stem of the figures' files. label: the abscissa in words. axes: of `figures.Axes`.
    """
    by_protocol: dict[Protocol, dict[str, list[Row]]] = {}
    for curve, rows in scores.items():
        for row in rows:
            if row.score.metric == metric:
                by_protocol.setdefault(row.score.protocol, {}).setdefault(curve, []).append(row)
    figures = []
    for index, (protocol, curves) in enumerate(by_protocol.items()):
        stem = name if index == 0 else f"{name}-{index + 1}"
        figures.append(_plot(stem, curves, protocol, metric, over, label, **axes))
    return figures


def _plot(
    stem: str,
    curves: Mapping[str, Sequence[Row]],
    protocol: Protocol,
    metric: str,
    over: str,
    label: str,
    **axes: Any,
) -> Figure:
    points = {name: _over_seeds(many, over) for name, many in grouped(curves).items()}
    kinds = {name: _kinds(scores) for name, (_, scores) in points.items()}
    mixed = len(set(kinds.values())) > 1
    lines = [
        score_curve(name + (f" ({kinds[name]})" if mixed else ""), at, scores)
        for name, (at, scores) in points.items()
    ]
    which = "of the kind that the legend names" if mixed else f"({next(iter(kinds.values()))})"
    details = f", {protocol.details}" if protocol.details else ""
    caption = (
        f"{score_name(metric)} over {label}; protocol {protocol.name}{details}, "
        f"{protocol.num_samples} samples a point; bars: one standard error {which}."
    )
    places = sorted({x for line in lines for x in line.x})
    ticks = apart(places, logarithmic=axes.get("log_x", False))
    return plot(stem, caption, lines, Axes(label, metric, ticks=ticks, **axes))


def _over_seeds(many: Sequence[Sequence[Row]], over: str) -> tuple[list[float], list[Score]]:
    """Where a training of one seed was scored, and how; of several at the places that all have, or
    the first where these are none."""
    tables = [{getattr(row, over): row.score for row in rows} for rows in many]
    at = [x for x in tables[0] if all(x in table for table in tables)]
    if len(many) == 1 or not at:
        return [getattr(row, over) for row in many[0]], [row.score for row in many[0]]
    return at, [mean_score([table[x] for table in tables]) for x in at]


def _kinds(scores: Iterable[Score]) -> str:
    """What the errors of some scores are, in words."""
    kinds = {
        f"{score.num_seeds} seeds" if score.error_kind == "seeds" else score.error_kind: None
        for score in scores
    }
    return ", ".join(kinds)


def apart(values: Sequence[float], logarithmic: bool = False) -> list[float]:
    """Ascending values without those whose labels would lie over the one before."""
    scale = math.log if logarithmic else float
    least = 0.07 * (scale(values[-1]) - scale(values[0]))
    kept: list[float] = []
    for value in values:
        if not kept or scale(value) - scale(kept[-1]) >= least:
            kept.append(value)
    return kept


def _by_protocol(scores: Mapping[str, Sequence[Row]]) -> dict[Protocol, dict[str, list[Row]]]:
    """Curves by the protocol they share, what single metrics add to it left out."""
    groups: dict[Protocol, dict[str, list[Row]]] = {}
    for curve, rows in scores.items():
        for row in rows:
            protocol = replace(row.score.protocol, details="")
            groups.setdefault(protocol, {}).setdefault(curve, []).append(row)
    return groups


def _words(protocol: Protocol, curves: Mapping[str, Sequence[Row]]) -> str:
    details: dict[str, dict[str, None]] = {}
    for rows in curves.values():
        for row in rows:
            if row.score.protocol.details:
                details.setdefault(row.score.protocol.details, {})[row.score.metric] = None
    more = f"; {protocol.rules}" if protocol.rules else ""
    more += "".join(f"; {', '.join(metrics)}: {words}" for words, metrics in details.items())
    count = "images (number not told)" if (n := protocol.num_reference) is None else f"{n}"
    return (
        f"<p>Protocol <b>{html.escape(protocol.name)}</b>: {protocol.num_samples} samples against "
        f"{count} of the {html.escape(protocol.reference)}, features of "
        f"{html.escape(protocol.extractor)} (weights "
        f"{html.escape(protocol.extractor_hash[:12])}), resize {html.escape(protocol.resize)}"
        f"{html.escape(more)}. The last line is what real images score: the floor, or for "
        "precision, recall, density, coverage and Inception score the value to reach.</p>"
    )


def _last_sets(curves: Mapping[str, Sequence[Row]]) -> str:
    present = {row.score.metric for rows in curves.values() for row in rows}
    metrics = [metric for metric in OVERVIEW if metric in present]
    names = map(score_name, metrics)
    lines: list[tuple[Any, ...]] = [("curve", "step", "solver", "NFE", "kind of error", *names)]
    of = _last(curves)
    best = {
        (metric, protocol): of[name][metric]
        for metric in metrics
        for protocol, name in _bests(of, metric).items()
    }
    floors: dict[str, float] = {}
    for name, rows in curves.items():
        last, by_metric = rows[-1], of[name]
        cells = [
            score_cell(one.value, one.error, _look(one, best.get((metric, one.protocol))))
            if (one := by_metric.get(metric)) is not None
            else ""
            for metric in metrics
        ]
        kinds = _kinds(by_metric[metric] for metric in metrics if metric in by_metric)
        curve = name.removeprefix("evaluate/")
        made = (last.training_step, last.solver, last.nfe) if last.nfe else (None, ELSEWHERE, None)
        lines.append((curve, *made, kinds, *cells))
        floors |= {m: s.floor for m, s in by_metric.items() if s.floor is not None}
    real = [f"{floors[metric]:.4g}" if metric in floors else "" for metric in metrics]
    lines.append(("real images", "", "", "", "", *real))
    if len(curves) <= UNFOLDED:
        return table(lines, "scores")
    return folded(f"the last sets of {len(curves)} curves", table(lines, "scores"))


def _cautions(curves: Mapping[str, Sequence[Row]]) -> str:
    by_caution: dict[str, list[str]] = {}
    for rows in curves.values():
        for row in rows:
            if row.score.caution:
                by_caution.setdefault(row.score.caution, []).append(row.score.metric)
    return "".join(
        f"<p class='failed'>{html.escape(', '.join(dict.fromkeys(metrics)))}: "
        f"{html.escape(caution)}.</p>"
        for caution, metrics in by_caution.items()
    )


ELSEWHERE = "made elsewhere"
HEADING = (
    *("set", "metric", "value", "error", "error_kind", "seeds", "floor", "N", "protocol"),
    *("details", "caution"),
)


def table_of(scores: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Every score as columns and data, the form in which MLflow shows tables."""
    return {"columns": list(HEADING), "data": [list(line) for line in _lines(scores)]}


def _lines(scores: Mapping[str, Sequence[Row]]) -> Iterator[tuple[Any, ...]]:
    for rows in scores.values():
        for row in rows:
            s, p = row.score, row.score.protocol
            yield (
                *(row.node, s.metric, s.value, s.error, s.error_kind, s.num_seeds, s.floor),
                *(p.num_samples, p.name, ", ".join(filter(None, (p.rules, p.details))), s.caution),
            )
