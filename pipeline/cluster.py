"""Starting or joining Ray, and the pieces that live in its processes."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline import shipping, worker
from pipeline.address import VARIABLE, check_alive, show_token, unanswered
from pipeline.capacity import Amount, memory_bytes, of_ray
from pipeline.errors import RayLostError, UsageError
from pipeline.fanout import Share, fan_out, prepare_process, remote
from pipeline.graph import Node
from pipeline.outcomes import MEMORY_TRIES
from pipeline.rayfiles import ray_folder

NAMESPACE = "diffusion-bench"
BOARD_TRIES = 20  # to ask a board that is away
RESERVED_SECONDS = 60.0  # that a word of `Board.reserve` holds
CALL_SECONDS = 1800.0  # for a machine to come as well, where the cluster grows


def connect(
    address: str | None,
    jobs: int,
    gpus: int,
    code: Path,
    up_to: Amount | None = None,
    ship: bool = False,
) -> Amount:
    """Start Ray on this machine, or join the cluster at `address`.

    A Ray that does not come up is tried once more, unless its settings are at fault.

    Args:
        jobs: CPU cores that a local Ray may use.
        gpus: GPUs that a local Ray may use.
        code: the folder of the project's packages.
        up_to: what the cluster may grow to; None asks the cluster.
        ship: send the code along to a cluster; else its machines must have the same.

    Returns:
        What there is, or may be where the cluster grows.

    Raises:
        UsageError: nobody answers at `address`, a local Ray did not come up, or a machine of the
            cluster has other code.
    """
    _quiet()
    os.environ.pop(VARIABLE, None)  # Ray would heed it more than `address="auto"`
    if address is None:
        # Else Ray writes a token to the home folder, and does not start where it cannot.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ.pop("RAY_CLIENT_MODE", None)
        # Ray reads it when it is imported: then its servers listen on the loopback alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    show_token()

    _mute()
    with _signals_kept():
        if address is None:
            _start(jobs, gpus)
        else:
            _join(address, code if ship else None)
    _watched.clear()
    if address is None:
        family = psutil.Process().children(recursive=True)
        _watched.extend(p for p in family if p.name() in ("raylet", "gcs_server"))
    else:
        shipping.check_machines()
    global _growth
    _growth = up_to or (Amount() if address is None else _limits())
    return capacity(_growth)


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


def _join(address: str, code: Path | None) -> None:
    import ray

    try:
        address = _found(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="CRITICAL",
            namespace=NAMESPACE,
            runtime_env=shipping.runtime_environment(code),
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
                _memory=memory_bytes(),
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


_growth = Amount()  # of the cluster that this process has joined


def capacity(growth: Amount) -> Amount:
    """What all machines have at this moment, or what there may be, where that is more."""
    return here().most(growth)


def here() -> Amount:
    """What all machines have at this moment."""
    import ray

    return of_ray(ray.cluster_resources())


def _limits() -> Amount:
    """What the cluster's autoscaler says that it may grow to; nothing where it says nothing."""
    import ray

    return of_ray(ray._private.state.state.get_max_resources_from_cluster_config() or {})


def disconnect() -> None:
    """Leave Ray; one that is dead is left as it is: a goodbye takes long and prints Ray's log."""
    import ray

    if not alive():
        return
    with contextlib.suppress(Exception):
        ray.shutdown()


class Board:
    """An actor that collects what workers say, by channel, until somebody fetches it, and tells
    them how many shards may run at once."""

    def __init__(self, growth: Amount, code: Mapping[str, str]) -> None:
        self._terms = growth, code
        self._events: dict[str, list[tuple]] = {}
        self._reserved: dict[str, tuple[frozenset[str], float]] = {}

    def terms(self) -> tuple[Amount, Mapping[str, str]]:
        """What the cluster may grow to, and what code its machines must have."""
        return self._terms

    def reserve(self, channel: str, kinds: frozenset[str]) -> None:
        """Say of what, such as `cpus`, shards must not take more than was counted; to be said again
        within `RESERVED_SECONDS`, since who said it may be killed."""
        self._reserved[channel] = kinds, time.monotonic()

    def reserved(self) -> frozenset[str]:
        """See `reserve`; of all channels."""
        since = time.monotonic() - RESERVED_SECONDS
        return frozenset().union(*(k for k, said in self._reserved.values() if said > since))

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

    def width(self, most: float, kinds: frozenset[str]) -> float:
        """How many shards that take these kinds may be with Ray now: one, which was counted, while
        another node needs all the rest."""
        import ray

        with contextlib.suppress(Exception):  # the board restarts by itself
            return 1 if ray.get(self.board.reserved.remote(), timeout=5) & kinds else most
        return most

    def reserve(self, kinds: frozenset[str]) -> None:
        """See `Board.reserve`."""
        with contextlib.suppress(Exception):
            self.board.reserve.remote(self.name, kinds)

    def terms(self) -> tuple[Amount, Mapping[str, str]]:
        """See `Board.terms`; waits for a board that restarts.

        Raises:
            RayLostError: Ray's processes died.
        """
        import ray

        for _ in range(BOARD_TRIES):
            try:
                return ray.get(self.board.terms.remote(), timeout=5)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                time.sleep(0.5)
            except (ray.exceptions.RaySystemError, ConnectionError) as error:
                raise RayLostError(f"Ray's processes were lost ({error})") from error
        raise RayLostError("Ray's processes were lost")

    def drain(self) -> list[tuple]:
        """What came since the last time. Raises Ray's errors while the board is away."""
        import ray

        return ray.get(self.board.drain.remote(self.name), timeout=5)


def start_board() -> Any:
    import ray

    board = ray.remote(Board).options(num_cpus=0, max_restarts=-1)
    return board.remote(*own_terms())


def own_terms() -> tuple[Amount, Mapping[str, str]]:
    """The terms of a board that this process starts; see `Board.terms`."""
    return _growth, {} if _watched else shipping.facts()


@functools.cache
def _gpus_differ() -> bool:
    """Whether a machine has several GPUs: a process that has used one of them stays with it."""
    import ray

    return any(node["Resources"].get("GPU", 0) > 1 for node in ray.nodes())


def submit(
    job: worker.Job, channel: Channel, node: Node, width: float, code: Mapping[str, str]
) -> Any:
    """Start a node as a Ray task that survives lost workers, and return its reference.

    Args:
        width: how many of its shards may be with Ray at once, at most.
        code: what the machine that runs it must have.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    asked = node.resources
    # What waits for its shards or workers needs neither their GPUs nor their memory itself.
    alone = not node.stage.fans_out and node.stage.workers(node.settings) is None
    gpus = 0 if node.stage.fans_out else asked.gpus
    share = Share(
        asked.gpus - gpus,
        asked.memory_gib if node.stage.fans_out else 0,
        asked.retries,
        width,
        # Those that may come later are not known now.
        bool(asked.gpus) and (_growth.gpus > 1 or _gpus_differ()),
    )
    # One remote function: Ray queues by function, and takes turns among queues in no order.
    task = remote(_run_node, fresh=share.fresh and gpus > 0).options(
        num_cpus=asked.cpus,
        num_gpus=gpus,
        memory=int(asked.memory_gib * 2**30) if alone else 0,
        max_retries=asked.retries,
        retry_exceptions=False,
        name=job.node,
        # Inside a Ray Tune trial, tasks would otherwise wait for ever in the trial's own group.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )
    return task.remote(job, channel, share, code)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a worker.

    Raises what it raises, Ray's errors, or:
        UsageError: no machine had done it in half an hour.
    """
    import ray

    task = remote(_call).options(num_cpus=1, name=function.__name__)
    try:
        return ray.get(task.remote(function, own_terms()[1], *arguments), timeout=CALL_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.GetTimeoutError as error:
        minutes = CALL_SECONDS / 60
        raise UsageError(f"no machine of the cluster made it in {minutes:.0f} min") from error


def _call(function: Callable[..., Any], code: Mapping[str, str], *arguments: Any) -> Any:
    prepare_process()
    if other := shipping.difference(code):
        raise UsageError(other)
    return function(*arguments)


def _run_node(
    job: worker.Job, channel: Channel, share: Share, code: Mapping[str, str]
) -> worker.Outcome:
    prepare_process()
    # A machine may have joined after the others were asked.
    if other := shipping.difference(code):
        return worker.Outcome(worker.FAILED, error=other)

    def spread(node: str, function: Callable[..., Any], items: Sequence[Any], common: tuple):
        return fan_out(node, function, items, common, channel, job.identity.threads, share)

    return worker.execute(job, channel.push, spread)
