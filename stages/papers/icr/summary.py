"""What is said of a scan: its rows beside scores of samples, headlines, curves, and the alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from stages.settings.scans import OVER_STEPS
from stages.settings.sigmas import sigma_1000

if TYPE_CHECKING:
    from stages.artifacts.data import Data
    from stages.artifacts.network import TrainedNetwork
    from stages.artifacts.scan import ScanRow
    from stages.artifacts.scores import Row, Scores
    from stages.methods.alarm import Alarm
    from stages.settings.scans import ScanSettings

CURVES = {
    "icr": "icr",
    "icr_naive": "naive",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "rankme": "rankme",
    "trace_signal": "trace_signal",
    "trace_noise": "trace_noise",
    "denoising_mse": "denoising_mse",
    "denoising_mse_train": "denoising_mse_train",
    "denoising_ratio": "denoising_ratio",
    "probe_accuracy": "probe_accuracy",
    "memorization_ratio": "memorization_ratio",
    "fid": "fid",
}


def with_scores(rows: Sequence[ScanRow], scores: Scores | None) -> list[ScanRow]:
    """The rows with memorisation ratio and FID of the samples of the same step."""
    by_metric: Mapping[tuple[int, str], Row] = {}
    if scores is not None:
        by_metric = {(row.training_step, row.score.metric): row for row in scores.load()}

    def of(step: int, metric: str) -> tuple[float | None, float | None]:
        row = by_metric.get((step, metric))
        return (None, None) if row is None else (row.score.value, row.score.error)

    beside = []
    for row in rows:
        ratio, ratio_error = of(row.step, "memorization_ratio")
        fid, fid_error = of(row.step, "fid")
        shares = {"memorization_ratio": ratio, "memorization_error": ratio_error}
        beside.append(replace(row, **shares, fid=fid, fid_error=fid_error))
    return beside


def facts_of(
    settings: ScanSettings, rows: Sequence[ScanRow], model: TrainedNetwork, data: Data
) -> dict[str, Any]:
    """Plain facts of a scan and its rows; see `Scan.description`."""
    import torch

    from stages.methods.alarm import alarm, pooled_error
    from stages.papers.icr.measure import middle_layer

    kind = model.description["network"]
    values = torch.tensor([row.icr_seeds for row in rows], dtype=torch.float64)
    error = pooled_error(values) if len(rows) > 1 else None
    raised = None
    if not settings.sigmas:
        raised = alarm([row.step for row in rows], values, settings.alarm_errors)
    past = [
        row.step
        for row in rows
        if row.memorization_ratio is not None and row.memorization_ratio > settings.memorized
    ]
    described = ("method", "network", "seed", "num_images")
    names = (
        "strength",
        "num_views",
        "view_seeds",
        "images",
        "num_images",
        "components",
        "memorized",
    )
    return {
        "abscissa": settings.abscissa,
        "model": {name: model.description.get(name) for name in described},
        "dataset": data.description["name"],
        "std": data.description["std"],
        "layer": settings.layer or middle_layer(kind, model.load().network()),
        "pooling": settings.pooling,
        **{name: getattr(settings, name) for name in names},
        "icr_error": error,
        "alarm": None if raised is None else _plain(raised),
        "memorization_step": past[0] if past and not settings.sigmas else None,
        "rows": [asdict(row) for row in rows],
    }


def _plain(found: Alarm) -> dict[str, Any]:
    plain = {k: None if isinstance(v, float) and v != v else v for k, v in asdict(found).items()}
    return plain | {"words": found.words}


def metrics_of(facts: Mapping[str, Any], rows: Sequence[ScanRow]) -> dict[str, float]:
    """Headlines: the last row's, the minimum of ICR, the rise since, and where copies begin."""
    last, raised = rows[-1], facts["alarm"]
    lowest = min(rows, key=lambda row: row.icr)
    metrics: dict[str, float | None] = {"icr": last.icr, "icr_minimum": lowest.icr}
    if raised is None:
        metrics["icr_minimum_sigma"] = lowest.sigma
        probed = [row for row in rows if row.probe_accuracy is not None]
        if probed:
            best = max(probed, key=lambda row: row.probe_accuracy)
            metrics |= {"probe_accuracy": best.probe_accuracy, "probe_accuracy_sigma": best.sigma}
    else:
        metrics |= {
            "icr_minimum_step": raised["step"],
            "icr_rise": raised["rise"],
            "icr_rise_standard_error": raised["standard_error"],
            "alarm_false_rate": raised["false_alarms"],
            "icr_fall": rows[0].icr - last.icr,
            "alarm_step": raised["confirmed_step"],
            "memorization_step": facts["memorization_step"],
            "memorization_ratio": last.memorization_ratio,
            "fid": last.fid,
            "probe_accuracy": last.probe_accuracy,
        }
    metrics |= {"denoising_mse": last.denoising_mse, "denoising_ratio": last.denoising_ratio}
    metrics |= {"icr_standard_error": facts["icr_error"]}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def curves_of(
    abscissa: str, rows: Sequence[ScanRow], error: float | None
) -> list[tuple[str, int, float]]:
    """Curve points over the scan's own abscissa."""
    points = []
    for row in rows:
        at = row.step if abscissa == OVER_STEPS else sigma_1000(row.sigma)
        values = {metric: getattr(row, name) for metric, name in CURVES.items()}
        values["icr_standard_error"] = error
        points += [(metric, at, value) for metric, value in values.items() if value is not None]
    return points


def tags_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow says of the scan: `alarm` only of one that is confirmed, else `alarm_state`."""
    if (raised := facts["alarm"]) is None:
        return {}
    return {"alarm_state" if raised["confirmed_step"] is None else "alarm": raised["words"]}


def lines_of(facts: Mapping[str, Any], rows: Sequence[ScanRow]) -> list[str]:
    """A line a row for the log, with the guards that acted, and the alarm."""
    lines = []
    for row in rows:
        text = f"step {row.step} sigma {row.sigma:g}: ICR {row.icr:.4f}"
        for name in (
            "denoising_mse",
            "denoising_ratio",
            "probe_accuracy",
            "memorization_ratio",
            "fid",
        ):
            value = getattr(row, name)
            text += "" if value is None else f", {name} {value:.4g}"
        lines.append(text)
        lines += [f"step {row.step} sigma {row.sigma:g}: guard, {guard}" for guard in row.guards]
    if facts["alarm"] is not None:
        lines.append(facts["alarm"]["words"])
    return lines
