"""What a sweep leaves: the table, best.yaml, the page, and MLflow's tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline import track
from pipeline.session import say, ui_command
from pipeline.store import Store
from sweeps.check import Checked
from sweeps.outcome import Outcome
from sweeps.record import SweepRecord
from sweeps.target import Sweep, nested

BEST, PAGE = "best.yaml", "report.html"


def finish(
    store: Store,
    sweep: Sweep,
    checked: Checked,
    entry: SweepRecord,
    outcome: Outcome,
    tracker: track.Tracker,
    tracking_uri: str | None,
) -> None:
    """Write and say the results of a sweep, tracked at `tracking_uri` or else in the store."""
    say(f"\n{outcome.text()}\n\n{outcome.verdict()}\n")
    if outcome.best is not None:
        best = entry.folder / BEST
        best.write_text(preset_text(sweep, checked, outcome, entry.id), encoding="utf-8")
        tracker.artifact(best)
        for row in outcome.rows:
            tracker.tag(row.trial.name, {"best": str(row is outcome.best).lower()})
        tracker.tag("", {"best_trial": outcome.best.trial.name})
        say(f"run it: python -m pipeline run {sweep.space.recipe} --preset {best}")
    from sweeps import page

    try:
        path = page.write(entry, outcome)
    except Exception as error:
        # The results are safe without their picture.
        say(f"warning: no report was written ({type(error).__name__}: {error})")
    else:
        tracker.artifact(path, "report")
        say(f"report:  {path}")
    say(f"compare: {ui_command(store, tracking_uri)}")


def preset_text(sweep: Sweep, checked: Checked, outcome: Outcome, sweep_id: str) -> str:
    """A preset file of the best trial: the sweep's preset with what it changes.

    A run of it finds what the trial made with its first seed in the cache.
    """
    values: dict[str, Any] = dict(outcome.best.trial.values)
    flat = checked.first.resolved.flat()
    changed = dict(sweep.space.settings)
    for text in sweep.overrides:
        path = text.partition("=")[0].strip()
        changed |= {p: v for p, v in flat.items() if p == path or p.startswith(f"{path}.")}
    base = sweep.preset or checked.first.resolved.preset
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(Path(base).absolute())
    tree = {"extends": base, **nested(changed | values)}
    head = f"# The best trial of sweep {sweep_id}: {outcome.best.trial.name}.\n"
    head += f"# {outcome.verdict()}\n"
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
