"""What works on this machine, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator

from pipeline import address, environment, results, track
from pipeline import plan as planning
from pipeline.errors import BAD_USAGE, DONE, DamagedArtifactError, EarlierArtifactError, UsageError
from pipeline.provenance import installed
from pipeline.rayfiles import ray_folder
from pipeline.stage import Catalog
from pipeline.store import Store
from pipeline.track.redaction import redact

MINIMUM_PYTHON = (3, 11)
ENGINE = ("mlflow", "pydantic")  # needed beside the packages that results depend on


def examine(catalog: Catalog, store_uri: str, verify: bool = False) -> int:
    """Print one line a check; the exit code tells whether a run can work here."""
    healthy = True
    for good, text in _checks(catalog, store_uri, verify):
        print(f"{'ok  ' if good else 'FAIL' if good is False else 'note'}  {text}")
        healthy = healthy and good is not False
    return DONE if healthy else BAD_USAGE


def _checks(catalog: Catalog, store_uri: str, verify: bool) -> Iterator[tuple[bool | None, str]]:
    yield sys.version_info >= MINIMUM_PYTHON, f"Python {platform.python_version()}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield True, f"{len(os.sched_getaffinity(0))} CPU cores, {memory:.1f} GiB memory"
    for package in dict.fromkeys((*catalog.packages, *ENGINE)):
        version = installed(package)
        yield version != "missing", f"{package} {version}"
    yield from _torch()
    yield from _ray()
    yield from _store(store_uri, verify)
    for weights in catalog.weights:
        path = weights.find()
        where = f"found at {path}" if path else f"not there (needed for {weights.purpose})"
        yield True if path else None, f"{weights.file}: {where}{'' if path else weights.remedy}"
        if weights.note:
            yield None, f"{weights.file}: {weights.note}"


def _torch() -> Iterator[tuple[bool | None, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield False, f"torch cannot be imported ({error}); install it again"
        return
    if not torch.cuda.is_available():
        yield None, "no GPU that torch can use; everything runs on the CPU"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield True, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if planning.local_gpus() != torch.cuda.device_count():
        yield None, f"the engine sees {planning.local_gpus()} GPUs; set CUDA_VISIBLE_DEVICES"


def _ray() -> Iterator[tuple[bool | None, str]]:
    """Whether a Ray of our own can start, or the cluster of RAY_ADDRESS be joined."""
    chosen = address.given(None)
    try:
        environment.check_limits()
        if chosen is None:
            folder = ray_folder()
            told = f"Ray starts here, its files in {folder.path}"
            yield (None, f"{folder.moved}; {told}") if folder.moved else (True, told)
        else:
            address.check_address(chosen)
            address.check_alive(chosen)
            yield True, f"runs join the Ray cluster at {chosen} ({address.VARIABLE})"
    except UsageError as error:
        yield False, str(error)


def _store(uri: str, verify: bool) -> Iterator[tuple[bool | None, str]]:
    try:
        store = results.opened(uri)
        store.check_writable()
        environment.check_space(store.local)
    except UsageError as error:
        yield False, str(error)
        return
    count = sum(1 for _ in store.artifacts())
    free = shutil.disk_usage(store.local).free / 2**30
    yield True, f"store {store.uri}: writable, {count} artifacts, {free:.0f} GiB free"
    yield _tracking(store)
    yield from _verified(store) if verify else ()


def _tracking(store: Store) -> tuple[bool | None, str]:
    """Where runs are tracked unless `--tracking-uri` says otherwise, and whether that works."""
    chosen = track.chosen_uri(None)
    uri, origin = (
        (chosen, "MLFLOW_TRACKING_URI") if chosen else (track.default_uri(store.local), "")
    )
    try:
        warning = track.check_chosen_uri(uri)
    except UsageError as error:
        return False, str(error)
    if not origin:
        return not warning, warning or "MLflow's database can be written"
    told = f"runs are tracked at {redact(uri)} ({origin})"
    return (None, f"{told}: {warning}") if warning else (True, told)


def _verified(store: Store) -> Iterator[tuple[bool | None, str]]:
    """A line for every damaged artifact, and one for all that are of another version."""
    others = 0
    for stage, key in store.artifacts():
        try:
            store.open(stage, key)  # a class of this version
            store.verify(stage, key)
        except EarlierArtifactError:
            others += 1
        except DamagedArtifactError as error:
            yield False, f"{error}; the next run sets it aside and makes it again"
    if others:
        yield (
            None,
            (
                f"{others} artifacts are of another version of the bench, which this one does not "
                "read; a run makes anew what it needs, and `gc` frees the space of runs not kept"
            ),
        )
