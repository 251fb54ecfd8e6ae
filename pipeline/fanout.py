"""A node's shards as Ray tasks of their own, spread over the machines."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline import worker


class Width(Protocol):
    """Where shards tell news, and hear how many of them may be with Ray at once."""

    def push(self, event: tuple) -> None: ...

    def width(self, most: float, kinds: frozenset[str]) -> float: ...


@dataclass(frozen=True)
class Share:
    """What each shard of a node reserves beside a CPU, and how many are with Ray at once.

    fresh: give each shard a process of its own.
    """

    gpus: float
    memory_gib: float
    retries: int
    width: float
    fresh: bool

    @property
    def kinds(self) -> frozenset[str]:
        """What its shards take, by the names of `pipeline.capacity.Amount`."""
        return frozenset({"cpus", "gpus"} if self.gpus else {"cpus"})


@functools.cache
def remote(function: Callable[..., Any], fresh: bool = False) -> Any:
    """A function as Ray knows it; `fresh` gives each call a process of its own."""
    import ray

    return ray.remote(max_calls=1)(function) if fresh else ray.remote(function)


def fan_out(
    node: str,
    function: Callable[..., Any],
    items: Sequence[Any],
    common: tuple,
    channel: Width,
    threads: int,
    share: Share,
) -> list[Any]:
    """Shards as Ray tasks, spread over the machines; a single one stays here unless it needs what
    this task does not hold. CPUs of this waiting task are lent to them.

    Raises what a shard raised, as if it had run here: Ray puts a traceback around it.
    """
    import ray

    held = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
    if held or (len(items) == 1 and not (share.gpus or share.memory_gib)):
        # GPUs of a waiting task are not lent: shards would wait for them for ever.
        return worker.run_inline(node, function, items, common)
    task = remote(_run_shard, fresh=share.fresh and share.gpus > 0).options(
        num_cpus=1,
        num_gpus=share.gpus,
        memory=int(share.memory_gib * 2**30),
        max_retries=share.retries,
        name=f"{node} shard",
        scheduling_strategy="SPREAD",
    )
    shared = tuple(ray.put(value) for value in common)
    done: list[Any] = [None] * len(items)
    going: dict[Any, int] = {}
    for place, item in enumerate(items):
        while len(going) >= channel.width(share.width, share.kinds):
            _take(going, done)
        reference = task.remote(node, function, item, channel, threads, *shared)
        going[reference] = place
    while going:
        _take(going, done)
    return done


def _take(going: dict[Any, int], done: list[Any]) -> None:
    """Wait for a shard to end, and put what it gave to its place."""
    import ray

    (reference,), _ = ray.wait(list(going), num_returns=1)
    place = going.pop(reference)
    try:
        done[place] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        for other in going:
            ray.cancel(other, force=True)
        raise error.cause from error


def _run_shard(
    node: str, function: Callable[..., Any], item: Any, channel: Width, threads: int, *common: Any
) -> Any:
    prepare_process()
    worker.set_threads(threads)
    return worker.run_shard(node, function, item, common, channel.push)


# With it products on a GPU can repeat bit for bit. cuBLAS and torch read it once, at the first
# product of a process, which may be of another node than the one that asks for it.
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_prepared = False


def prepare_process() -> None:
    """What a worker does once, before its first task."""
    global _prepared
    if not _prepared:
        _prepared = True
        os.environ.setdefault(*CUBLAS)
        worker.watch_parent()
