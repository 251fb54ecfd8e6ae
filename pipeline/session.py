"""One `pipeline run` from start to end: plan, record, Ray, MLflow, report, last words."""

from __future__ import annotations

import contextlib
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import capacity, environment, progress, record, track
from pipeline import plan as planning
from pipeline.address import check_address, check_alive
from pipeline.address import given as given_address
from pipeline.capacity import Amount
from pipeline.errors import DONE, INTERRUPTED, NODE_FAILED, RayLostError, UsageError
from pipeline.plan import CACHED, DAMAGED, Plan
from pipeline.rayfiles import ray_folder
from pipeline.results import DEFAULT_STORE, Run
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store
from pipeline.supervise import RAY_LOST, decided
from pipeline.track.redaction import redact

MAKING = "making the report on the cluster; Ctrl-C ends the command without it"
SHOWN = 4  # nodes that are named of those that did not run
CODE = Path(__file__).resolve().parent.parent
_EXIT_CODES = {record.FINISHED: DONE, record.FAILED: NODE_FAILED, record.STOPPED: INTERRUPTED}
_MLFLOW_STATUS = {record.FINISHED: "FINISHED", record.FAILED: "FAILED", record.STOPPED: "KILLED"}


@dataclass(frozen=True)
class Options:
    """What of a run does not change its results."""

    tracking_uri: str | None = None
    address: str | None = None
    jobs: int | None = None
    up_to: Amount | None = None
    ship: bool = False

    @classmethod
    def of(cls, options: Namespace) -> Options:
        """As the command line says, or else the environment (RAY_ADDRESS, MLFLOW_TRACKING_URI)."""
        return cls(
            track.chosen_uri(options.tracking_uri),
            given_address(options.address),
            options.jobs,
            capacity.read(options.up_to),
            options.ship,
        )

    @property
    def cores(self) -> int:
        """CPU cores that a local Ray may use."""
        return self.jobs or len(os.sched_getaffinity(0))

    @property
    def machine(self) -> Amount:
        """What a local Ray may use."""
        return Amount(self.cores, planning.local_gpus(), capacity.memory_bytes() / 2**30)

    def connect(self) -> Amount:
        """Start Ray, or join it; what there is, or may be. See `pipeline.cluster.connect`."""
        from pipeline import cluster

        gpus = planning.local_gpus()
        return cluster.connect(self.address, self.cores, gpus, CODE, self.up_to, self.ship)


def check(plan: Plan, store: Store, options: Options) -> None:
    """Refuse what can be refused before work starts.

    Raises:
        UsageError: the store cannot be written, a node asks for more than this machine has, or
            the address or the tracking URI is bad.
    """
    check_place(store, options)
    if options.address is None:
        planning.check_resources(plan, options.machine, f"--jobs {options.cores} here")
    for text in plan.warnings:
        say(f"warning: {text}")


def check_place(store: Store, options: Options) -> None:
    """Refuse, before work starts, a machine, a store or services with which none can.

    Raises:
        UsageError: the store cannot be written or its disk is full, Ray finds no room for its
            own files, no cluster answers at the address, or the tracking URI is bad.
    """
    try:
        store.uri.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path of store {store.uri} is no text in UTF-8, which MLflow and Ray need; rename "
            "the folder, or choose another with --store"
        ) from error
    store.check_writable()
    if store.has_no_locks():
        say(
            f"note: the disk of store {store.local} has no locks that all machines see; its locks "
            "are files, and those of a machine that dies are taken over after two minutes"
        )
    environment.check_space(store.local)
    environment.check_limits()
    if options.address is not None:
        check_address(options.address)
        check_alive(options.address)
    elif (folder := ray_folder()).moved:
        say(f"note: {folder.moved}; Ray's own files go to {folder.path}")
    warning = track.check_chosen_uri(tracking_uri(store, options))
    if warning:
        say(f"warning: {warning}")


def run(
    catalog: Catalog, store: Store, plan: Plan, overrides: Sequence[str], options: Options
) -> int:
    """Run what is to do, in this process, and return the exit code."""
    with contextlib.ExitStack() as stack:
        entry = record.Record.open(store, plan, list(overrides), stack)
        say(f"run {entry.id}: {len(plan.todo)} of {len(plan.nodes)} nodes to do, store {store.uri}")
        set_aside(plan, store)
        try:
            return _Session(catalog, store, plan, options, entry).run()
        except UsageError as error:
            entry.end(record.FAILED)
            say(f"error: {error}")
            return error.exit_code


def set_aside(plan: Plan, store: Store) -> None:
    """Move damaged artifacts, and those that `--force` makes again, out of the way."""
    for name, node in plan.nodes.items():
        stage, key = node.node.stage.name, node.key
        if node.state == DAMAGED:
            place = store.set_aside_damaged(stage, key)
        elif node.state != CACHED and node.manifest is not None:
            place = store.set_aside(stage, key)
        else:
            continue
        if place:
            say(f"{name}: {node.reason}; set aside as {place}")


def say(text: str) -> None:
    print(text, flush=True)


def tracking_uri(store: Store, options: Options) -> str:
    """Where the run is tracked: as asked, or in the store's own database."""
    given = options.tracking_uri
    return track.default_uri(store.local) if given is None else given


class _Session:
    """The moving parts of one run."""

    def __init__(
        self, catalog: Catalog, store: Store, plan: Plan, options: Options, entry: record.Record
    ) -> None:
        from pipeline.track.relay import Relay

        self.catalog, self.store, self.plan, self.options = catalog, store, plan, options
        self.entry = entry
        expected = {name: node.seconds for name, node in plan.nodes.items()}
        needs = {name: node.node.need for name, node in plan.nodes.items()}
        self.view = progress.view(expected, options.machine, needs=needs)
        uri = tracking_uri(store, options)
        self.tracker = _start_tracker(catalog, plan, store, entry, uri, self.view)
        nodes = [planned.node for planned in plan.nodes.values()]
        self.relay = Relay(self.tracker, store, catalog.shown, nodes)
        self.connected = False

    def run(self) -> int:
        try:
            state = self._execute()
        except UsageError:
            self.view.close()
            self.tracker.close("FAILED", timeout=1)
            raise
        except KeyboardInterrupt:
            state = record.STOPPED
        except RayLostError as error:
            self.view.message(str(error))
            # Saying goodbye to a dead Ray takes long and prints its log: leave at once.
            self.view.close()
            self.tracker.close("KILLED", timeout=0)
            return RAY_LOST
        self.view.close()
        self._close(state)
        code = self._last_words(state)
        if self.connected:
            from pipeline import cluster

            # Behind the last words: a Ray that was told to end as well may take its time.
            cluster.disconnect()
        return code

    def _execute(self) -> str:
        from pipeline import news, run

        listener = news.Listener(self.view, self.entry.folder, self.tracker, self._ended)
        if self.plan.todo:
            self._connect()
        execution = run.Execution(self.plan, self.store, listener, self.catalog.packages)
        try:
            if self.plan.todo:
                execution.run()
        except KeyboardInterrupt:
            if self.options.address is not None:
                execution.cancel()
            raise
        return record.FAILED if execution.failed else record.FINISHED

    def _connect(self) -> None:
        self.connected = True  # or half: what came up is let go of at the end
        from pipeline import cluster

        planning.check_resources(self.plan, self.options.connect(), "the cluster")
        self.view.there = cluster.here()

    def _ended(self, name: str, item: Any) -> None:
        seconds = item.manifest.seconds if item.manifest else None
        timings = item.manifest.timings if item.manifest else {}
        self.entry.node(name, item.state, seconds, item.error, timings)
        self.relay.ended(name, item)

    def _close(self, state: str) -> None:
        self.entry.end(state)
        decided(_EXIT_CODES[state])
        if state == record.FAILED:  # before what may take long
            say(failure_text(self.entry.data, self.entry.folder))
        stopped = state == record.STOPPED
        if stopped:
            self.relay.stop()
        else:
            self.relay.close(say)
            self._publish()
        for problem in self.relay.problems:
            say(f"warning: {problem}")
        self.tracker.close(_MLFLOW_STATUS[state], timeout=1 if stopped else 10)

    def _publish(self) -> None:
        from pipeline import publish

        try:
            published = publish.publish(self.catalog, self.store, self.entry.data, self._call)
        except Exception as error:
            # The results are safe; a report of them can be made again at any time.
            with contextlib.suppress(OSError):
                (self.entry.folder / publish.PAGE).unlink()  # half of one, or an earlier one
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            say(f"warning: no report was written ({last[0]}); see python -m pipeline report")
            return
        if published is not None:
            for path in (published.page, *published.files):
                self.tracker.artifact(path, publish.STAGE)
            for path in published.tables:
                self.tracker.artifact(path, publish.STAGE, table=True)
        if self.entry.data["state"] == record.FINISHED and self.catalog.shown.summary:
            summary = resolve_name(self.catalog.shown.summary)(Run(self.store, self.entry.data))
            self.tracker.summary(summary.metrics, summary.tags, summary.note)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives where the machines are that hold what it reads: those of a cluster,
        or this one."""
        from pipeline import cluster

        if self.options.address is None:
            return function(*arguments)
        if not self.connected:
            self._connect()
        return cluster.call(function, *arguments, slow=lambda: say(MAKING))

    def _last_words(self, state: str) -> int:
        if state == record.STOPPED:
            say(f"interrupted; nothing finished is lost. Go on with:\n  {record.resume_command()}")
        elif state == record.FINISHED:
            uri = self.options.tracking_uri
            say(results_text(self.catalog, self.store, self.entry.data, uri))
        return _EXIT_CODES[state]


def _start_tracker(
    catalog: Catalog,
    plan: Plan,
    store: Store,
    entry: record.Record,
    uri: str,
    view: progress.View,
) -> track.Tracker:
    git: Mapping[str, Any] = entry.data["git"]
    nodes = [(name, node.node.stage.name) for name, node in plan.nodes.items()]
    short = entry.id.rpartition("-")[2]
    tracker = track.Tracker(
        uri,
        entry.folder,
        experiment=f"{plan.recipe}/{plan.resolved.preset}",
        run_name=f"{plan.recipe} · {short}",
        run_id=entry.id,
        params=plan.resolved.flat(),
        tags={
            "recipe": plan.recipe,
            "preset": plan.resolved.preset,
            "git.revision": git.get("revision", ""),
            "git.dirty": str(git.get("dirty", "")).lower(),
        },
        warn=view.message,
        names={name: catalog.shown.name(stage, name) for name, stage in nodes},
        short=short,
        charts=catalog.shown.plain_charts(),
    )
    tracker.start()
    track.flush_pending(store.local, exclude=entry.folder, uri=uri)
    return tracker


def failure_text(data: Mapping[str, Any], folder: Path) -> str:
    """Which nodes failed and why, where their logs are, and how to go on."""
    lines, alike = [], {}
    for name, node in data["nodes"].items():
        if node["state"] == progress.FAILED:
            alike.setdefault(node["error"], []).append(name)
    for error, (name, *others) in alike.items():
        lines.append(f"{name} failed: {error}\n  log: {record.log_path(folder, name)}")
        if others:
            lines.append(f"  so did {_some(others)}")
    blocked = [n for n, node in data["nodes"].items() if node["state"] == progress.BLOCKED]
    if blocked:
        number = f"{len(blocked)} of {len(data['nodes'])}"
        lines.append(f"not run because of that, {number}: {_some(blocked)}")
    lines.append(f"what finished is kept; after mending, go on with:\n  {record.resume_command()}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def results_text(
    catalog: Catalog, store: Store, data: Mapping[str, Any], tracking_uri: str | None = None
) -> str:
    """What a run found, tracked at `tracking_uri`, and where to look further."""
    run = Run(store, dict(data))
    lines = ["", resolve_name(catalog.ending)(run) if catalog.ending else run.text()]
    report = store.run_path(data["id"]) / "report.html"
    if report.is_file():
        lines.append(f"report:  {report}")
    lines.append(f"compare: {ui_command(store, tracking_uri)}")
    return "\n".join(lines)


def ui_command(store: Store, tracking_uri: str | None) -> str:
    """The command that shows what was tracked at a URI, by default in the store."""
    words = ["python", "-m", "pipeline", "ui"]
    if tracking_uri is not None:
        words += ["--tracking-uri", redact(tracking_uri)]
    elif store.uri != str(Path(DEFAULT_STORE).resolve()):
        words += ["--store", store.uri]
    return shlex.join(words)
