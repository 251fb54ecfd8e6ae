"""Starting or joining Ray, and the pieces that live in its processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline import worker
from pipeline.errors import RayLostError, UsageError

NAMESPACE = "diffusion-bench"


def connect(address: str | None, jobs: int, gpus: int, code: Path) -> tuple[float, float]:
    """Start Ray on this machine, or join the cluster at `address`.

    Args:
        jobs: CPU cores that a local Ray may use.
        gpus: GPUs that a local Ray may use.
        code: the folder of the project's packages, sent along to a cluster.

    Returns:
        The CPUs and GPUs there are.

    Raises:
        UsageError: nobody answers at `address`.
        RayLostError: a local Ray did not come up.
    """
    _quiet()
    import ray

    if address is None:
        try:
            ray.init(
                address="local",
                num_cpus=jobs,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="CRITICAL",
                namespace=NAMESPACE,
                object_store_memory=512 * 2**20,
            )
        except Exception as error:  # Ray raises bare exceptions when its processes do not come up
            raise RayLostError(f"Ray did not start: {error}") from error
    else:
        if "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="CRITICAL",
                namespace=NAMESPACE,
                runtime_env=_shipped(code),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"no Ray cluster answers at '{address}' ({str(error).splitlines()[0]}); "
                "check --address and RAY_ADDRESS"
            ) from error
    _watched.clear()
    if address is None:
        family = psutil.Process().children(recursive=True)
        _watched.extend(p for p in family if p.name() in ("raylet", "gcs_server"))
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


# Processes of a Ray that we started: without them nothing goes on.
_watched: list[psutil.Process] = []


def alive() -> bool:
    """Whether the Ray that we started still has its own processes."""
    try:
        return all(p.status() != psutil.STATUS_ZOMBIE for p in _watched)
    except psutil.NoSuchProcess:
        return False


def _quiet() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


def _shipped(code: Path) -> dict[str, Any]:
    packages = [str(code / name) for name in ("pipeline", "stages", "sweeps")]
    return {"py_modules": [package for package in packages if Path(package).is_dir()]}


def disconnect() -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()


class Board:
    """An actor that collects what workers say until the driver fetches it."""

    def __init__(self) -> None:
        self._events: list[tuple] = []

    def push(self, event: tuple) -> None:
        self._events.append(event)

    def drain(self) -> list[tuple]:
        events, self._events = self._events, []
        return events


def start_board() -> Any:
    import ray

    return ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()


def submit(job: worker.Job, board: Any, cpus: float, gpus: float, retries: int) -> Any:
    """Start a node as a Ray task that survives lost workers, and return its reference."""
    import ray

    task = ray.remote(_run_node).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=retries, retry_exceptions=False, name=job.node
    )
    return task.remote(job, board)


def _run_node(job: worker.Job, board: Any) -> worker.Outcome:
    _prepare_process()
    send = _sender(board)

    def spread(node: str, function: Callable[..., Any], items: Sequence[Any], common: tuple):
        return list(_spread(node, function, items, common, board, job.identity.threads))

    return worker.execute(job, send, spread)


def _spread(
    node: str,
    function: Callable[..., Any],
    items: Sequence[Any],
    common: tuple,
    board: Any,
    threads: int,
) -> Iterator[Any]:
    """Shards as Ray tasks; a single one stays here. CPUs of this waiting task are lent to them."""
    if len(items) == 1:
        yield function(items[0], *common)
        return
    import ray

    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
    if gpus:
        # GPUs of a waiting task are not lent: shards would wait for them for ever.
        yield from (function(item, *common) for item in items)
        return
    task = ray.remote(_run_shard).options(num_cpus=1, max_retries=3, name=f"{node} shard")
    shared = tuple(ray.put(value) for value in common)
    references = [task.remote(node, function, item, board, threads, *shared) for item in items]
    for reference in references:
        yield ray.get(reference)


def _run_shard(
    node: str, function: Callable[..., Any], item: Any, board: Any, threads: int, *common: Any
) -> Any:
    _prepare_process()
    worker.set_threads(threads)
    return worker.run_shard(node, function, item, common, _sender(board))


_prepared = False


def _prepare_process() -> None:
    global _prepared
    if not _prepared:
        _prepared = True
        worker.watch_parent()


def _sender(board: Any) -> worker.Send:
    def send(event: tuple) -> None:
        with contextlib.suppress(Exception):
            board.push.remote(event)

    return send
