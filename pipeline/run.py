"""Runs the nodes of a plan on Ray: what is ready starts, what fails stops only what needs it."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import cluster, news, outcomes, progress, provenance, reservations, worker
from pipeline.capacity import LOOKAHEAD, Amount, Room
from pipeline.errors import RayLostError
from pipeline.news import Listener, Progress
from pipeline.plan import CACHED, Plan
from pipeline.store import Store

BUSY_RETRY_SECONDS = 0.5
TELL_SECONDS = 5.0
STILL_SECONDS = 10.0  # without anything that runs, before it is said what is waited for
CANCEL_SECONDS = 2.0
MOST_SHARDS = 10_000  # of a node with Ray at once, where the cluster has no bound
MOST_REMAKES = 3  # of one input for one node: what is damaged again and again is a bad disk


@dataclass
class Claims:
    """Keys of nodes that were handed to Ray, what these take, and why others failed."""

    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    room: Room = field(default_factory=lambda: Room(Amount()))


class Execution:
    """One pass over the graph. Needs Ray connected; may run inside a larger Ray program.

    Args:
        plan: what to run.
        packages: distributions whose versions go into manifests.
        claims: shared by executions that advance side by side, so that no two of them run the
            same node.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        listener: Listener,
        packages: Sequence[str],
        claims: Claims | None = None,
        git: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.store, self.listener = plan, store, listener
        self.claims = claims or Claims()
        self.packages = tuple(packages)
        self.git = provenance.git_state(Path(__file__).parent) if git is None else git
        self.nodes = {
            name: Progress(item.node, item.key, manifest=item.manifest)
            for name, item in plan.nodes.items()
        }
        self.named = {item.key: name for name, item in self.nodes.items()}
        nodes = [item.node for item in self.nodes.values()]
        self.has_groups = any(node.stage.workers(node.settings) for node in nodes)
        self.rank = {name: rank for rank, name in enumerate(plan.by_urgency())}
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, item in self.nodes.items():
            for parent in item.node.upstream:
                if parent in self.nodes:
                    self.readers[parent].append(name)
        # Nodes that may start, by what they need, the most urgent first, and those that may later.
        self.ready: dict[Amount, list[tuple[int, str]]] = {}
        self.later: list[str] = []
        self.placed: set[str] = set()  # in one of these, or with Ray
        self.open = set(self.nodes)
        self.lacks = dict.fromkeys(self.nodes, 0)  # how much of what it reads is yet to end
        for readers in self.readers.values():
            for name in readers:
                self.lacks[name] += 1
        self.closed: list[str] = []  # nodes that have ended, which their readers do not know yet
        for name, item in plan.nodes.items():
            if item.state == CACHED:
                self._end(name, progress.REUSED)
        for name in self.nodes:
            self._look_at(name)
        self.running: dict[Any, str] = {}
        self.code: Mapping[str, str] = {}
        self.growth = Amount()
        self.reserved, self.told, self.freed = frozenset[str](), 0.0, 0.0
        self.stirred, self.said = time.monotonic(), ""
        self.channel: cluster.Channel | None = None

    @property
    def failed(self) -> list[str]:
        return [name for name, item in self.nodes.items() if item.state == progress.FAILED]

    def run(self) -> dict[str, Progress]:
        """Run until every node has ended.

        Raises:
            RayLostError: Ray's processes died.
        """
        run_together([self])
        return self.nodes

    @property
    def ended(self) -> bool:
        return not self.open

    def begin(self, board: Any, terms: Any = None) -> None:
        """Get ready to `advance`, with workers that report to `board`, whose terms another process
        asks it for."""
        self.channel = cluster.Channel(board)
        self.growth, self.code = terms or self.channel.terms()

    def advance(self, wait_seconds: float = 0.2) -> bool:
        """Start what can start and note what ended; False once every node has ended.

        Raises:
            RayLostError: Ray's processes died.
        """
        import ray

        if self.ended:
            return False
        try:
            _check_ray()
            self._submit_ready()
            self._say_what_is_awaited()
            self.listener.view.tick()
            self._collect(wait_seconds)
            self._drain(final=self.ended)
            self._stop_late()
            self._free_orphans()
            if self.ended:
                self._tell_shards(frozenset())
        except (ray.exceptions.RaySystemError, ConnectionError) as error:
            raise RayLostError(f"Ray's processes were lost ({error})") from error
        return True

    def _submit_ready(self) -> None:
        """Hand to Ray what can start, the most urgent first, and no more than it will soon start.

        Ray takes no priorities: what were handed over early would delay what is urgent later.
        """
        self.claims.room.all = cluster.capacity(self.growth)
        self._tell_readers()
        waiting, self.later = self.later, []
        self.placed.difference_update(waiting)
        for name in waiting:
            self._look_at(name)
        self.claims.room.renew([key for key in self.claims.room.awaited if self._offers(key)])
        full: set[Amount] = set()
        while heads := [(line[0], need) for need, line in self.ready.items() if need not in full]:
            (_, name), need = min(heads, key=lambda head: head[0])
            if self._submit(name):
                heapq.heappop(self.ready[need])
                if not self.ready[need]:
                    del self.ready[need]
            else:
                full.add(need)
        self._tell_shards(self.claims.room.reserved)

    def _offers(self, key: str) -> bool:
        """Whether the node with a key stands in a line, to be offered in this round."""
        name = self.named.get(key)
        is_with_ray = key in self.claims.running
        return name in self.placed and not is_with_ray and name not in self.later

    def _tell_shards(self, reserved: frozenset[str]) -> None:
        """Say of what they must not take more; now and then again: the board may have restarted."""
        now = time.monotonic()
        if reserved != self.reserved or (reserved and now > self.told + TELL_SECONDS):
            self.reserved, self.told = reserved, now
            self.channel.reserve(reserved)

    def _tell_readers(self) -> None:
        """Look at the nodes that read what has ended; those that cannot run any more end too."""
        while self.closed:
            parent = self.closed.pop()
            lost = self.nodes[parent].state in (progress.FAILED, progress.BLOCKED)
            for name in self.readers[parent]:
                self.lacks[name] -= 1
                if lost and name in self.open and name not in self.placed:
                    self._end(name, progress.BLOCKED, "needs a node that failed")
                else:
                    self._look_at(name)

    def _look_at(self, name: str) -> None:
        """Put a node into the line where its turn is decided, once all that it reads has ended."""
        item = self.nodes[name]
        if name not in self.open or name in self.placed or self.lacks[name]:
            return
        parents = [self.nodes[p] for p in item.node.upstream if p in self.nodes]
        if any(p.state in (progress.FAILED, progress.BLOCKED) for p in parents):
            self._end(name, progress.BLOCKED, "needs a node that failed")
        elif item.key in self.claims.failed:
            self._end(name, progress.FAILED, self.claims.failed[item.key])
        else:
            self.placed.add(name)
            if time.monotonic() < item.not_before or item.key in self.claims.running:
                self.later.append(name)
            else:
                line = self.ready.setdefault(item.node.need, [])
                heapq.heappush(line, (self.rank[name], name))

    def _submit(self, name: str) -> bool:
        """Hand a node to Ray, unless there is no room; whether it leaves its line."""
        item, room = self.nodes[name], self.claims.room
        if self.lacks[name] or item.key in self.claims.running or item.key in self.claims.failed:
            self._want_no_room(item)
            self.later.append(name)
            return True
        workers = item.node.stage.workers(item.node.settings)
        group = None if workers is None else Amount(workers.cpus, workers.gpus)
        if not room.offer(item.key, item.node.need, group):
            return False
        item.deadline = None  # an earlier attempt's; this one's begins when it starts
        self.claims.running.add(item.key)
        width = min(MOST_SHARDS, room.all.cpus + LOOKAHEAD)
        reference = cluster.submit(self._job(item), self.channel, item.node, width, self.code)
        self.running[reference] = name
        self.stirred = time.monotonic()
        return True

    def _want_no_room(self, item: Progress) -> None:
        """A node that waits for something else keeps no room free for itself."""
        if item.key not in self.claims.running:
            self.claims.room.leave(item.key)

    def _started(self, name: str) -> None:
        self.stirred = time.monotonic()
        self.claims.room.began(self.nodes[name].key)

    def _say_what_is_awaited(self) -> None:
        """One line where nothing runs, and nothing came for a while: what there is no room for."""
        if time.monotonic() - self.stirred < STILL_SECONDS:
            return
        self.stirred = time.monotonic()
        states = [self.nodes[name].state for name in self.running.values()]
        if progress.RUNNING in states:
            return
        waiting = list(self.running.values()) or [line[0][1] for line in self.ready.values()]
        if not waiting:
            return
        name = min(waiting, key=self.rank.__getitem__)
        need, have = self.nodes[name].node.need, cluster.here()
        why = "others use it" if need.within(have) else f"it has {have.words()}"
        said = f"waiting for the cluster: {name} needs {need.words()}, and {why}"
        if not need.within(have) and need.within(self.claims.room.all):
            said += f"; it may grow to {self.claims.room.all.words()}"
        if said != self.said:
            self.said = said
            self.listener.view.message(said)

    def _job(self, item: Progress) -> worker.Job:
        graph, memory_gib = self.plan.graph, item.node.resources.memory_gib
        more = {"packages": self.packages, "git": self.git, "memory_gib": memory_gib}
        return worker.job_of(graph, item.node, item.key, self.store.uri, graph.place, **more)

    def _collect(self, wait_seconds: float) -> None:
        import ray

        if not self.running:
            time.sleep(min(0.05, wait_seconds))
            return
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=wait_seconds)
        for reference in done:
            name = self.running.pop(reference)
            self.placed.discard(name)
            self.claims.running.discard(self.nodes[name].key)
            self.claims.room.leave(self.nodes[name].key)
            self._started(name)
            limit = self.nodes[name].node.resources.timeout_seconds
            self._handle(name, outcomes.outcome_of(reference, limit, _check_ray))

    def _handle(self, name: str, outcome: worker.Outcome) -> None:
        item = self.nodes[name]
        if outcome.state == worker.DONE:
            self._drain()
            item.manifest = outcome.manifest
            self._end(name, progress.DONE if outcome.made else progress.REUSED)
        elif outcome.state == worker.BUSY:
            item.not_before = time.monotonic() + BUSY_RETRY_SECONDS
            self._change(name, progress.WAITING)
        elif outcome.state == worker.DAMAGED:
            self._drain()  # what it said is of an attempt that is over
            self._remake(name, outcome)
        else:
            self._drain()
            self.claims.failed[item.key] = outcome.error
            self._end(name, progress.FAILED, outcome.error)

    def _remake(self, name: str, outcome: worker.Outcome) -> None:
        """An input is damaged: set it aside and make it again, then come back to this node.

        Several readers may find the same damage, here and in other commands: whoever is the first
        moves it away, the others wait for the new one.
        """
        stage, key = outcome.damaged
        item = self.nodes[name]
        owner = next((n for n, p in self.nodes.items() if p.key == key), None)
        first = owner and self.nodes[owner].state in (progress.DONE, progress.REUSED)
        if first:
            item.damaged.append(key)
        if owner is None or item.damaged.count(key) > MOST_REMAKES:
            self._end(name, progress.FAILED, outcome.error)
            return
        if first:
            place = self.store.set_aside_damaged(stage, key)
            if place:
                self.listener.view.message(f"{outcome.error}; set aside as {place}, made again")
            self._change(owner, progress.QUEUED)
        item.not_before = time.monotonic() + BUSY_RETRY_SECONDS
        self._change(name, progress.QUEUED)

    def _change(self, name: str, state: str) -> None:
        self.nodes[name].state = state
        if name not in self.open:
            self.open.add(name)
            for reader in self.readers[name]:
                self.lacks[reader] += 1
        if state in (progress.QUEUED, progress.WAITING):
            self._look_at(name)
        self.listener.view.update(name, state=state)

    def _end(self, name: str, state: str, error: str = "") -> None:
        item = self.nodes[name]
        item.state, item.error = state, error
        self._want_no_room(item)
        if name in self.open:
            self.open.discard(name)
            self.closed.append(name)
        note = error or news.headline(item.manifest)
        self.listener.view.update(name, state=state, note=note)
        if self.listener.on_change is not None:
            self.listener.on_change(name, item)

    def _drain(self, final: bool = False) -> None:
        import ray

        try:
            events = self.channel.drain()
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return  # it restarts by itself
        for kind, node, *rest in events:
            self._event(kind, node, rest)
        if final:
            time.sleep(0.05)
            self._drain()

    def _event(self, kind: str, node: str, rest: Sequence[Any]) -> None:
        item = self.nodes[node]
        if kind == "started" and item.state not in progress.ENDED:
            self._started(node)
            limit = item.node.resources.timeout_seconds
            item.deadline = time.monotonic() + limit if limit else None
            self._change(node, progress.RUNNING)
        news.tell(self.listener, item, kind, rest)

    def _stop_late(self) -> None:
        import ray

        for reference, name in self.running.items():
            deadline = self.nodes[name].deadline
            if deadline is not None and time.monotonic() > deadline:
                self.nodes[name].deadline = None
                ray.cancel(reference, force=True, recursive=True)

    def _free_orphans(self) -> None:
        """Now and then, where trainings with workers of their own may have left something."""
        now = time.monotonic()
        if now < self.freed + STILL_SECONDS:
            return
        self.freed = now
        if self.has_groups and self.running:
            with contextlib.suppress(Exception):  # Ray's own server may be away for a moment
                reservations.free_orphans()

    def cancel(self) -> None:
        """Stop what runs, as well as the connection allows, and wait a little until it is gone."""
        import ray

        references = list(self.running)
        for name in self.running.values():
            self.claims.room.leave(self.nodes[name].key)
        if self.channel is not None:
            self._tell_shards(frozenset())
        try:
            for reference in references:
                ray.cancel(reference, force=True, recursive=True)
            if references:
                ray.wait(references, num_returns=len(references), timeout=CANCEL_SECONDS)
        except Exception as error:
            self.listener.view.message(f"could not stop a task: {error}")


def advance_together(executions: Sequence[Execution], wait_seconds: float = 0.2) -> bool:
    """Advance each of several executions; False once every one has ended."""
    going = [execution.advance(wait_seconds / len(executions)) for execution in executions]
    return any(going)


def run_together(executions: Sequence[Execution]) -> None:
    """Run several executions side by side to their ends, nodes that they share only once.

    They must have been made with the same `claims`.

    Raises:
        RayLostError: Ray's processes died.
    """
    board = cluster.start_board()
    for execution in executions:
        execution.begin(board, cluster.own_terms())
    while advance_together(executions):
        pass


def _check_ray() -> None:
    """Raise `RayLostError` if the Ray that we started is gone."""
    if not cluster.alive():
        raise RayLostError("Ray's processes were lost")
