"""Saved views of MLflow's chart page: the curves over one abscissa, of all runs, side by side.

MLflow folds child runs away as long as its page is sorted by time, and lays curves over different
abscissas into one chart. A saved view (an experiment's tag that MLflow's "Views" menu lists)
shows the children that share an abscissa, unfolded, the latest run first.
"""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
KIND_TAG = ("mlflow.experimentKind", "custom_model_development")


def key(abscissa: str) -> str:
    """The view's key in URLs and in its tag."""
    return "by-" + re.sub(r"[^a-z0-9]+", "-", abscissa.lower()).strip("-")


def name(abscissa: str) -> str:
    """What the menu calls the view."""
    return f"Curves by {abscissa.replace('_', ' ')}"


def abscissa_of(tag: str, value: str) -> str | None:
    """The abscissa of a view that `tag` stored, or None for a view that somebody else saved."""
    if not tag.startswith(f"{TAG}by-"):
        return None
    try:
        return json.loads(value)["abscissa"]
    except (ValueError, KeyError, TypeError):
        return None


def tag(abscissa: str) -> tuple[str, str]:
    """The experiment's tag that saves the view of an abscissa: name and value."""
    packed = base64.b64encode(zlib.compress(json.dumps(_state(abscissa)).encode())).decode()
    now_ms = int(time.time() * 1000)
    stored = {
        "name": name(abscissa),
        "abscissa": abscissa,
        "createdAt": now_ms,
        "updatedAt": now_ms,
        "state": f"deflate;{packed}",
    }
    return TAG + key(abscissa), json.dumps(stored)


def _state(abscissa: str) -> dict[str, Any]:
    quoted = abscissa.replace("'", "")
    return {
        "searchFilter": f"tags.abscissa = '{quoted}'",
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
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }
