"""A report of what there is: its stage run on those of its inputs that were made, and not kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import worker
from pipeline.artifact import Artifact
from pipeline.errors import DamagedArtifactError, UsageError
from pipeline.graph import Graph
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store


def job_of(
    catalog: Catalog, store: Store, data: Mapping[str, Any], stage: str
) -> tuple[worker.Job, type[Artifact]] | None:
    """What makes the report of a run, and its kind; None if the recipe has no such stage.

    Raises:
        UsageError: the run was made by a version with other settings or recipes.
    """
    try:
        settings = catalog.settings.model_validate(data["settings"])
        recipe = catalog.recipes[data["recipe"]]
    except (ValueError, KeyError) as error:
        other = "without this recipe" if isinstance(error, KeyError) else "with other settings"
        raise UsageError(
            f"run {data['id']} was made by a version {other}, and its report was not finished; run "
            "the recipe again"
        ) from error
    graph = Graph(recipe(settings), catalog.exclude_sources)
    node = next((node for node in graph if node.stage.name == stage), None)
    if node is None:
        return None

    def recorded(name: str) -> tuple[str, str] | None:
        entry = data["nodes"].get(name)
        return entry and (entry["stage"], entry["key"])

    return worker.job_of(graph, node, "", store.uri, recorded), node.stage.output


def render(job: worker.Job, patterns: Sequence[str]) -> dict[str, bytes]:
    """The files of these patterns that the report's stage writes on what there is, by name.

    What it finds damaged while it reads is left out as well.

    Raises what the stage does, or:
        DamagedArtifactError: something is damaged that is none of its inputs.
    """
    worker.set_threads(job.identity.threads)
    inputs = dict(job.inputs)
    while True:
        try:
            return _rendered(job, inputs, patterns)
        except DamagedArtifactError as error:
            fewer = {slot: _without(value, error.where) for slot, value in inputs.items()}
            if fewer == inputs:
                raise
            inputs = fewer


def _without(value: Any, where: tuple[str, str] | None) -> Any:
    """What a slot reads, without the artifact at a place."""
    if isinstance(value, Mapping):
        return {name: place for name, place in value.items() if place != where}
    return None if value == where else value


def _rendered(
    job: worker.Job, places: Mapping[str, Any], patterns: Sequence[str]
) -> dict[str, bytes]:
    store = Store(job.store)
    function = resolve_name(job.run)  # its module knows the classes of what it reads
    inputs = {slot: _opened(store, value) for slot, value in places.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        function(worker.WorkerContext(job, inputs, folder, folder, _unheard, worker.run_inline))
        found = {path for pattern in patterns for path in folder.glob(pattern)}
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def _opened(store: Store, value: Any) -> Any:
    """As a worker opens inputs, without those that are not there."""
    if isinstance(value, Mapping):
        opened = {name: _opened(store, place) for name, place in value.items()}
        return {name: artifact for name, artifact in opened.items() if artifact is not None}
    try:
        return None if value is None else store.open(*value)
    except DamagedArtifactError:
        return None


def _unheard(event: tuple) -> None:
    """Nobody watches it being made."""
