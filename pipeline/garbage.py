"""What of a store can go: what no kept run uses, and what killed commands left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import UsageError
from pipeline.holding import holder
from pipeline.store import Store
from pipeline.track.spool import SPOOL, is_pending


def garbage(
    store: Store, keep: int, say: Callable[[str], object] = lambda text: None
) -> tuple[list[str], int]:
    """Folders that can go: what no one of the newest `keep` runs of each recipe and preset uses.

    Work areas of unfinished nodes of kept runs stay, and so do older runs of which MLflow lacks
    something. Returned with the number of runs kept.

    Args:
        say: hears which older runs stay, and why.

    Raises:
        UsageError: a run is going on, or its record is damaged, or `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"--keep {keep}: give 0 or more")
    kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
    doomed, unsent = [], []
    for data in store.runs(_refuse):
        where = holder(store, data["id"])
        if where:
            raise UsageError(
                f"run {data['id']} is going on ({where}); wait for it, or stop it first"
            )
        group = kept.setdefault((data["recipe"], data["preset"]), [])
        folder = store.local / "runs" / data["id"]
        if len(group) < keep:
            group.append(data)
        elif is_pending(folder):
            unsent.append(data)
            say(
                f"run {data['id']} stays: MLflow lacks some of it; `python -m pipeline send` "
                f"sends that, or remove {folder / SPOOL} to do without"
            )
        else:
            doomed.append(f"runs/{data['id']}")
    runs = [data for group in kept.values() for data in group] + unsent
    used = {(n["stage"], n["key"]) for data in runs for n in data["nodes"].values()}
    doomed += [f"artifacts/{s}/{k}" for s, k in store.artifacts() if (s, k) not in used]
    for stage in store.location.children("work"):
        for key in store.location.children(f"work/{stage}"):
            if (stage, key) not in used:
                doomed.append(f"work/{stage}/{key}")
    doomed += [f"memory/{stage}" for stage in store.location.children("memory")]
    doomed += [f"quarantine/{name}" for name in store.location.children("quarantine")]
    # What is left half written lies also below folders that go anyway, or stay.
    doomed += [n for n in store.leftovers() if not any(n.startswith(f"{d}/") for d in doomed)]
    return doomed, len(runs)


def _refuse(text: str) -> None:
    """Without a run's record it is not known what it uses."""
    raise UsageError(text)
