"""Saved views of MLflow's chart page: few charts of all runs, side by side.

Left to itself, MLflow folds child runs away, draws every metric there is, and lays curves over
different abscissas into one chart. A saved view is an experiment's tag that MLflow's "Views" menu
lists and that an address may name. There are three kinds: the charts that the stages declare, over
all curves; the same for the curves of one abscissa; and the runs themselves, as a table of what
each found and how their settings differ.

A metric that is declared over several abscissas would be one chart of all of them. Its curves bring
the abscissa as a metric of their own (`axis`), which only they have, and the chart is drawn over
that; so is what is drawn over anything but training steps, so that the axis says what it is.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

TAG = "mlflow.sharedViewState."
KIND_TAG = ("mlflow.experimentKind", "custom_model_development")
SHOWS, CURVES, RUN = "shows", "curves", "run"  # the tag of MLflow's runs by which views find them
CHARTS_VIEW, RUNS_VIEW = "charts", "runs"
NAMES = {CHARTS_VIEW: "Charts", RUNS_VIEW: "Runs compared"}
STEP = "training_step"  # what MLflow means by a step
LOGARITHMIC = {"sigma_1000": ("log10 sigma", 1000)}  # MLflow draws such axes linearly

Charts = Sequence[Mapping[str, str]]  # `Chart`s of `pipeline.shown` as plain data


def axis(abscissa: str) -> str:
    """The metric that a chart over an abscissa is drawn over."""
    return LOGARITHMIC[abscissa][0] if abscissa in LOGARITHMIC else abscissa


def place(abscissa: str, step: int) -> float | None:
    """Where a step is on the axis; None where it is nowhere, as 0 on a logarithmic one."""
    if abscissa not in LOGARITHMIC:
        return float(step)
    return math.log10(step / LOGARITHMIC[abscissa][1]) if step > 0 else None


def over_axis(charts: Charts) -> set[tuple[str, str]]:
    """Metric and abscissa of the charts that are drawn over an axis of their own."""
    over: dict[str, set[str]] = {}
    for chart in charts:
        over.setdefault(chart["metric"], set()).add(chart["abscissa"])
    return {
        (chart["metric"], chart["abscissa"])
        for chart in charts
        if chart["abscissa"] != STEP or len(over[chart["metric"]]) > 1
    }


def key(view: str) -> str:
    """A view's key in URLs and in its tag."""
    if view in NAMES:
        return view
    return "by-" + re.sub(r"[^a-z0-9]+", "-", view.lower()).strip("-")


def name(view: str) -> str:
    """What the menu calls a view."""
    return NAMES.get(view) or f"Curves by {view.replace('_', ' ')}"


def view_of(tag: str, value: str) -> str | None:
    """The view that `tag` stored, or None for one that somebody else saved."""
    if not tag.startswith(TAG):
        return None
    try:
        view = json.loads(value)["view"]
    except (ValueError, KeyError, TypeError):
        return None
    return view if tag == TAG + key(view) else None


def tag(view: str, charts: Charts = ()) -> tuple[str, str]:
    """The experiment's tag that saves a view: its name and value.

    view: `CHARTS_VIEW`, `RUNS_VIEW`, or an abscissa.
    """
    packed = base64.b64encode(zlib.compress(json.dumps(_state(view, charts)).encode())).decode()
    now_ms = int(time.time() * 1000)
    stored = {
        "name": name(view),
        "view": view,
        "createdAt": now_ms,
        "updatedAt": now_ms,
        "state": f"deflate;{packed}",
    }
    return TAG + key(view), json.dumps(stored)


def is_current(stored: str | None, value: str) -> bool:
    """Whether a stored view needs no other: it is the same, or a person has changed it."""
    try:
        old, new = json.loads(stored or ""), json.loads(value)
        changed = old["updatedAt"] != old["createdAt"] or "view" not in old
        return changed or old["state"] == new["state"]
    except (ValueError, KeyError, TypeError):
        return False


def _state(view: str, charts: Charts) -> dict[str, Any]:
    quoted = view.replace("'", "")
    filters = {
        CHARTS_VIEW: f"tags.{SHOWS} = '{CURVES}'",
        RUNS_VIEW: f"tags.{SHOWS} = '{RUN}'",
    }
    cards, sections = _laid_out(view, charts)
    return {
        "searchFilter": filters.get(view, f"tags.abscissa = '{quoted}'"),
        # Any order but by time shows children beside each other instead of below their parents.
        "orderByKey": "tags.`pipeline.run_id`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["tags.`node`", "tags.`method`", "tags.`cached`"],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS" if view == RUNS_VIEW else "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": bool(sections),
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        **({"compareRunCharts": cards, "compareRunSections": sections} if sections else {}),
    }


def _laid_out(view: str, charts: Charts) -> tuple[list[dict], list[dict]]:
    """Cards and sections; what else there is, MLflow puts into the folded sections at the end.

    No sections where no chart is declared: MLflow then draws all there is.
    """
    if view == RUNS_VIEW:
        tables = {"What each run found": "Model metrics", "Settings that differ": "Parameters"}
        cards = [
            _differences(title, of, differing=of == "Parameters") for title, of in tables.items()
        ]
        sections = [_section(title, title, columns=1, height=560) for title in tables]
        return cards, [*sections, *_folded(())]
    among = [chart for chart in charts if view in (CHARTS_VIEW, chart["abscissa"])]
    if not among:
        return [], []
    own_axis = over_axis(charts)
    headings = list(dict.fromkeys(chart["section"] for chart in among))
    cards = [
        _line(
            chart["metric"],
            section=f"section {headings.index(chart['section'])}",
            over=axis(chart["abscissa"])
            if (chart["metric"], chart["abscissa"]) in own_axis
            else "",
        )
        for chart in among
    ]
    # In three columns beside the list of runs, titles are cut off.
    sections = [
        _section(f"section {at}", heading, columns=2) for at, heading in enumerate(headings)
    ]
    return cards, [*sections, *_folded(headings)]


def _folded(headings: Sequence[str]) -> list[dict[str, Any]]:
    """Sections for what no chart is declared of, under the headings that MLflow looks for."""
    rest = {"": "rest", "loss": "losses", "denoising_mse": "bands", "System metrics": "system"}
    return [
        _section(uuid, heading, shown=False)
        for heading, uuid in rest.items()
        if heading not in headings
    ]


def _section(
    uuid: str, heading: str, shown: bool = True, columns: int = 3, height: int = 360
) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": heading,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _card(uuid: str, section: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
    }


def _line(metric: str, section: str, over: str) -> dict[str, Any]:
    """A line chart over the step, or `over` a metric."""
    return _card(f"{metric} {over}", section, "LINE") | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric" if over else "step",
        "selectedXAxisMetricKey": over,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }


def _differences(title: str, group: str, differing: bool) -> dict[str, Any]:
    """A table with a row for each metric or param and a column for each run."""
    return _card(f"{title} (table)", title, "DIFFERENCE") | {
        "compareGroups": [group],
        "chartName": title,
        "showChangeFromBaseline": False,
        "showDifferencesOnly": differing,
        "baselineColumnUuid": "",
    }
