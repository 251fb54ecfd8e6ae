"""Starting or joining Ray, and the pieces that live in its processes."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline import cache, worker
from pipeline.address import VARIABLE, check_alive, show_token, unanswered
from pipeline.errors import UsageError
from pipeline.rayfiles import ray_folder

NAMESPACE = "diffusion-bench"
MEMORY_TRIES = 3


def connect(address: str | None, jobs: int, gpus: int, code: Path) -> tuple[float, float]:
    """Start Ray on this machine, or join the cluster at `address`.

    A Ray that does not come up is tried once more, unless its settings are at fault.

    Args:
        jobs: CPU cores that a local Ray may use.
        gpus: GPUs that a local Ray may use.
        code: the folder of the project's packages, sent along to a cluster.

    Returns:
        The CPUs and GPUs there are.

    Raises:
        UsageError: nobody answers at `address`, or a local Ray did not come up.
    """
    _quiet()
    os.environ.pop(VARIABLE, None)  # Ray would heed it more than `address="auto"`
    if address is None:
        # Else Ray writes a token to the home folder, and does not start where it cannot.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ.pop("RAY_CLIENT_MODE", None)
        # Ray reads it when it is imported: then its servers listen on the loopback alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    show_token()
    import ray

    _mute()
    with _signals_kept():
        if address is None:
            _start(jobs, gpus)
        else:
            _join(address, code)
    _watched.clear()
    if address is None:
        family = psutil.Process().children(recursive=True)
        _watched.extend(p for p in family if p.name() in ("raylet", "gcs_server"))
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep our handlers of signals: Ray puts its own there, which print where the code was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _join(address: str, code: Path) -> None:
    import ray

    try:
        address = _found(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="CRITICAL",
            namespace=NAMESPACE,
            runtime_env=_shipped(code) | {"env_vars": cache.given()},
        )
    except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
        raise unanswered(address, _first_line(error)) from error


def _start(jobs: int, gpus: int) -> None:
    import ray

    folder = ray_folder()
    for attempt in (1, 2):
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
                _temp_dir=folder.path,
            )
            return
        except Exception as error:  # Ray raises bare exceptions when its processes do not come up
            if attempt == 2 or isinstance(error, ValueError | OSError):
                raise UsageError(
                    f"Ray does not start on this machine: {_first_line(error)} (Ray's own files "
                    f"are in {folder.path}; python -m pipeline doctor looks at the surroundings)"
                ) from error
            disconnect()


def _found(address: str) -> str:
    """What `auto` stands for, or the address itself; UsageError if nobody is there."""
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address_or_die

    found = canonicalize_bootstrap_address_or_die(address)
    check_alive(found)
    return found


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


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
    # Of a task that Ray's memory monitor kills; by itself it would try for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(MEMORY_TRIES - 1))


def _mute() -> None:
    """Ray prints pages on each worker that was killed; what matters of it we say ourselves."""
    from ray._private import worker as ray_worker

    ray_worker.print_to_stdstream = lambda *arguments, **options: None


def out_of_memory(text: str) -> str:
    """What Ray's memory monitor says of a task that it has killed, in one sentence."""
    machine = re.search(r"was ([\d.]+)GB used / ([\d.]+)GB limit", text)
    own = re.search(r"actual memory used=([\d.]+)GB", text)
    held = f", its own process {own[1]} GB" if own else ""
    facts = f" ({machine[1]} of {machine[2]} GB were in use{held})" if machine else ""
    return (
        f"killed {MEMORY_TRIES} times because the machine ran out of memory{facts}; lower --jobs "
        "or what the node holds at once, such as its batch size, or use a machine with more memory"
    )


def _shipped(code: Path) -> dict[str, Any]:
    packages = [str(code / name) for name in ("pipeline", "stages", "sweeps")]
    return {"py_modules": [package for package in packages if Path(package).is_dir()]}


def cpus() -> float:
    """The CPUs of all machines at this moment."""
    import ray

    return ray.cluster_resources().get("CPU", 0.0)


def disconnect() -> None:
    """Leave Ray; one that is dead is left as it is: a goodbye takes long and prints Ray's log."""
    import ray

    if not alive():
        return
    with contextlib.suppress(Exception):
        ray.shutdown()


class Board:
    """An actor that collects what workers say, by channel, until somebody fetches it."""

    def __init__(self) -> None:
        self._events: dict[str, list[tuple]] = {}

    def push(self, channel: str, event: tuple) -> None:
        self._events.setdefault(channel, []).append(event)

    def drain(self, channel: str) -> list[tuple]:
        return self._events.pop(channel, [])


@dataclass(frozen=True)
class Channel:
    """One execution's part of a board."""

    board: Any
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def push(self, event: tuple) -> None:
        with contextlib.suppress(Exception):
            self.board.push.remote(self.name, event)

    def drain(self) -> list[tuple]:
        """What came since the last time. Raises Ray's errors while the board is away."""
        import ray

        return ray.get(self.board.drain.remote(self.name), timeout=5)


def start_board() -> Any:
    import ray

    return ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(function)


def submit(job: worker.Job, channel: Channel, cpus: float, gpus: float, retries: int) -> Any:
    """Start a node as a Ray task that survives lost workers, and return its reference."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # One remote function: Ray queues by function, and takes turns among queues in no order.
    task = _remote(_run_node).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=retries,
        retry_exceptions=False,
        name=job.node,
        # Inside a Ray Tune trial, tasks would otherwise wait for ever in the trial's own group.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )
    return task.remote(job, channel)


def _run_node(job: worker.Job, channel: Channel) -> worker.Outcome:
    _prepare_process()

    def spread(node: str, function: Callable[..., Any], items: Sequence[Any], common: tuple):
        return list(_spread(node, function, items, common, channel, job.identity.threads))

    return worker.execute(job, channel.push, spread)


def _spread(
    node: str,
    function: Callable[..., Any],
    items: Sequence[Any],
    common: tuple,
    channel: Channel,
    threads: int,
) -> Iterator[Any]:
    """Shards as Ray tasks; a single one stays here. CPUs of this waiting task are lent to them.

    Raises what a shard raised, as if it had run here: Ray puts a traceback around it.
    """
    if len(items) == 1:
        yield function(items[0], *common)
        return
    import ray

    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
    if gpus:
        # GPUs of a waiting task are not lent: shards would wait for them for ever.
        yield from (function(item, *common) for item in items)
        return
    task = _remote(_run_shard).options(num_cpus=1, max_retries=3, name=f"{node} shard")
    shared = tuple(ray.put(value) for value in common)
    references = [task.remote(node, function, item, channel, threads, *shared) for item in items]
    for reference in references:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


def _run_shard(
    node: str, function: Callable[..., Any], item: Any, channel: Channel, threads: int, *common: Any
) -> Any:
    _prepare_process()
    worker.set_threads(threads)
    return worker.run_shard(node, function, item, common, channel.push)


_prepared = False


def _prepare_process() -> None:
    global _prepared
    if not _prepared:
        _prepared = True
        worker.watch_parent()
