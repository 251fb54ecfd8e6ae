"""What happens in a worker process when a node runs. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import provenance, shapes
from pipeline.artifact import CURVES, Manifest, write_curves
from pipeline.errors import DamagedArtifactError, PipelineError
from pipeline.graph import Graph, Identity, Node
from pipeline.stage import Result, Settings, Work, resolve
from pipeline.store import Store
from pipeline.workarea import WorkArea, visiting

Send = Callable[[tuple], None]
Mapper = Callable[[str, Callable[..., Any], Sequence[Any], tuple], list[Any]]

DONE, FAILED, DAMAGED, BUSY = "done", "failed", "damaged", "busy"


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run one node."""

    node: str
    key: str
    identity: Identity
    run: str
    output: str
    settings: Settings
    inputs: Mapping[str, Any]
    store: str
    packages: Sequence[str] = ()
    git: Mapping[str, Any] = field(default_factory=dict)
    memory_gib: float = 0.0


def job_of(
    graph: Graph,
    node: Node,
    key: str,
    store: str,
    place: Callable[[str], tuple[str, str] | None],
    **more: Any,
) -> Job:
    """The job of a node.

    Args:
        place: stage and key of a node that it reads; None for one that is left out.
        more: the rest of the job's fields.
    """
    inputs: dict[str, Any] = {}
    for slot, declared in node.stage.inputs.items():
        places = {name: found for name in node.slot(slot) if (found := place(name))}
        inputs[slot] = places if declared.many else next(iter(places.values()), None)
    stage = node.stage
    identity, output = graph.identities[node.name], stage.output.type_name()
    return Job(node.name, key, identity, stage.run, output, node.settings, inputs, store, **more)


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a node ended.

    `made` is false when another run had made the artifact meanwhile; the state is `BUSY` when
    another run is making it now, and `DAMAGED` when an input turned out to be damaged.
    """

    state: str
    manifest: Manifest | None = None
    made: bool = True
    error: str = ""
    damaged: tuple[str, str] | None = None


class WorkerContext:
    """The `pipeline.stage.Context` of a running node."""

    def __init__(
        self,
        job: Job,
        inputs: Mapping[str, Any],
        path: Path,
        work: Work,
        send: Send,
        mapper: Mapper,
    ) -> None:
        self.node, self.settings, self.inputs = job.node, job.settings, inputs
        self.path, self.work, self.threads = path, work, job.identity.threads
        self.memory_gib = job.memory_gib
        self._send, self._mapper, self._last = send, mapper, 0.0
        self._store, self._identity = job.store, job.identity

    def log(self, message: str) -> None:
        print(message, flush=True)

    def progress(self, done: float, total: float, unit: str = "", note: str = "") -> None:
        now = time.monotonic()
        if now - self._last > 0.2 or done >= total:
            self._last = now
            self._send(("progress", self.node, float(done), float(total), unit, note))

    def notice(self, message: str, **tags: str) -> None:
        self.log(message)
        self._send(("notice", self.node, message, tags))

    def points(self, abscissa: str, rows: Sequence[tuple[str, int, float]]) -> None:
        self._send(("points", self.node, abscissa, list(rows)))

    def map(self, function: Callable[..., Any], items: Sequence[Any], *common: Any) -> list[Any]:
        sent = tuple(v.visit() if isinstance(v, WorkArea) else v for v in common)
        return self._mapper(self.node, function, items, sent)

    def recall(self, what: Mapping[str, Any]) -> Any:
        data = Store(self._store).location.read(self._memory(what))
        try:
            value, digest = shapes.parse(data or b"[null, null]")
        except (ValueError, TypeError):
            return None  # damaged: made again
        return value if digest == _digest(value) else None

    def remember(self, what: Mapping[str, Any], value: Any) -> None:
        data = json.dumps([value, _digest(value)]).encode()
        Store(self._store).location.write(self._memory(what), data)

    def _memory(self, what: Mapping[str, Any]) -> str:
        made = self._identity
        digest = _digest([made.version, made.sources, made.threads, what])
        return f"memory/{made.stage}/{digest[:32]}.json"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def run_inline(
    node: str, function: Callable[..., Any], items: Sequence[Any], common: tuple
) -> list:
    """A mapper that stays in this process."""
    return [visiting(function, item, common) for item in items]


def execute(job: Job, send: Send, mapper: Mapper = run_inline) -> Outcome:
    """Run a node unless its artifact is there or another process is making it."""
    store = Store(job.store)
    stage = job.identity.stage
    set_threads(job.identity.threads)
    with _captured(job.node, send):
        try:
            with store.lock(f"{stage}-{job.key}") as held:
                if not held:
                    return Outcome(BUSY)
                manifest = store.manifest(stage, job.key)
                if manifest is not None:
                    return Outcome(DONE, manifest, made=False)
                return Outcome(DONE, _make(job, store, send, mapper))
        except DamagedArtifactError as error:
            if error.where is None:
                return Outcome(FAILED, error=_explain(error))
            return Outcome(DAMAGED, error=str(error), damaged=error.where)
        except Exception as error:
            return Outcome(FAILED, error=_explain(error))


def _explain(error: Exception) -> str:
    if not isinstance(error, PipelineError):
        traceback.print_exc()
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    print(error, flush=True)
    return str(error)


def _make(job: Job, store: Store, send: Send, mapper: Mapper) -> Manifest:
    stage, key = job.identity.stage, job.key
    function = resolve(job.run)  # its module knows the classes of what it reads
    inputs = {slot: _open(store, value) for slot, value in job.inputs.items()}
    send(("started", job.node))
    begun, clock = provenance.now(), time.perf_counter()
    folder, work = store.scratch(key), store.work(stage, key)
    try:
        context = WorkerContext(job, inputs, folder, work, send, mapper)
        result: Result = function(context)
        curves = list(result.curves)
        if curves:
            write_curves(folder / CURVES, curves)
        manifest = store.commit(
            folder, lambda files: _manifest(job, result, curves, files, begun, clock)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    store.drop_work(stage, key)
    return manifest


def _open(store: Store, value: Any) -> Any:
    """`(stage, key)` becomes an artifact; a mapping by node name a mapping; None stays."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _open(store, item) for name, item in value.items()}
    return store.open(*value)


def _manifest(
    job: Job,
    result: Result,
    curves: Sequence[tuple[str, int, float]],
    files: dict[str, Any],
    begun: str,
    clock: float,
) -> Manifest:
    names = [metric for metric, _, _ in curves]
    return Manifest(
        key=job.key,
        stage=job.identity.stage,
        type=job.output,
        version=job.identity.version,
        settings=dict(job.identity.settings),
        inputs=dict(job.identity.inputs),
        sources=dict(job.identity.sources),
        threads=job.identity.threads,
        files=files,
        external=dict(job.identity.files),
        metrics={name: float(value) for name, value in result.metrics.items()},
        timings=dict(result.timings),
        tags=dict(result.tags),
        abscissa=result.abscissa,
        curves={name: names.count(name) for name in dict.fromkeys(names)},
        packages={package: provenance.installed(package) for package in job.packages},
        git=dict(job.git),
        host=provenance.host(),
        started=begun,
        finished=provenance.now(),
        seconds=round(time.perf_counter() - clock, 3),
    )


def set_threads(threads: int) -> None:
    """Threads of BLAS and torch, whether torch is loaded already or comes later."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@contextlib.contextmanager
def _captured(node: str, send: Send) -> Iterator[None]:
    """Send what this process prints (at the level of file descriptors) to the node's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_pump, args=(reader, node, send), daemon=True)
    thread.start()
    try:
        # Python's own streams may be bound elsewhere (notebooks, test runners).
        with (
            os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace") as text,
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
        ):
            yield
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)
        # A process the node left behind may still hold the pipe: do not wait for it.
        thread.join(timeout=2)


def _pump(reader: int, node: str, send: Send) -> None:
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while chunk := stream.read(65536):
            send(("log", node, chunk.decode(errors="replace")))


def run_shard(node: str, function: Callable[..., Any], item: Any, common: tuple, send: Send) -> Any:
    """Run one shard of a node's fan-out, its output going to the node's log."""
    with _captured(node, send):
        return visiting(function, item, common)


def watch_parent(interval_seconds: float = 0.5) -> None:
    """End this process when its parent dies, so that a killed command leaves nobody behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()
