"""What a person sees while a run goes on: what runs, how far it is, how long it will take."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from pipeline.capacity import Amount, spread

QUEUED, WAITING, RUNNING, DONE, REUSED, FAILED, BLOCKED = (
    "queued",
    "waits for another run",
    "running",
    "done",
    "cached",
    "failed",
    "not run",
)
ENDED = (DONE, REUSED, FAILED, BLOCKED)
SAID = (DONE, REUSED, FAILED)  # what a failed node kept from running is counted at the end
SHOWN = 4  # running nodes in a plain line
ONE = Amount(1.0)
SOON = 15.0  # seconds after which a node's own pace says more than what was expected of it


@dataclass(frozen=True)
class NodeView:
    """One line of the view. `expected` is how long it may take, if known, and `need` what it takes
    of the machines meanwhile. `first` is what was done when it was first heard of, and `resumed`
    whether an earlier run of it had done that. Where it counts in another unit than before:
    `recounted` is when that began, `first` what was done then."""

    name: str
    state: str = QUEUED
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    note: str = ""
    expected: float | None = None
    begun: float = 0.0
    seconds: float = 0.0
    need: Amount = ONE
    first: float = 0.0
    resumed: bool = False
    recounted: float = 0.0

    def remaining(self, now: float, usual: float | None = None) -> float | None:
        """Seconds until it ends, as far as anybody can tell. usual: what is expected where nothing
        was said of it."""
        if self.state in ENDED:
            return 0.0
        elapsed = now - self.begun if self.state == RUNNING else 0.0
        before = self.first if self.resumed or self.recounted else 0.0
        counting = now - (self.recounted or self.begun)
        share = 0.0
        if self.state == RUNNING and self.total > before:
            share = (self.done - before) / (self.total - before)
        if share > 0.05 or (share and counting > SOON):
            return counting * (1 / share - 1)
        expected = usual if self.expected is None else self.expected
        return None if expected is None else max(expected - elapsed, 1.0)


class View(Protocol):
    there: Amount

    def update(self, name: str, **changes: Any) -> None: ...

    def tick(self) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def time_left(nodes: Mapping[str, NodeView], there: Amount, now: float) -> tuple[float, bool]:
    """Seconds until all nodes end on the machines that are there, and whether some count as nothing
    since nobody knows of them."""
    left = remaining(list(nodes.values()), now)
    tasks = [(of or 0.0, node.need) for of, node in zip(left, nodes.values(), strict=True)]
    return spread(tasks, there), None in left


def remaining(nodes: Sequence[NodeView], now: float) -> list[float | None]:
    """Seconds until each ends. Nodes to come take as many times what is expected of them as those
    of their stage that ran, or as long as these where nothing is expected."""
    slower, usual = _paces(nodes, now)
    left = []
    for node in nodes:
        stage = _stage(node)
        seconds = node.remaining(now, usual.get(stage))
        if seconds and node.expected is not None and node.state not in (*ENDED, RUNNING):
            seconds *= slower.get(stage, 1.0)
        left.append(seconds)
    return left


def _stage(node: NodeView) -> str:
    """What nodes of its kind are called: `train` of `train/sit`, `trial-` of `trial-07`."""
    return node.name.partition("/")[0].rstrip("0123456789")


def _paces(nodes: Iterable[NodeView], now: float) -> tuple[dict[str, float], dict[str, float]]:
    """By stage, of nodes that ran or whose pace tells how long they will: the time that they took
    over what was expected, and the mean of it."""
    spent: dict[str, list[tuple[float, float | None]]] = {}
    for node in nodes:
        if node.resumed:
            continue
        took = node.seconds if node.state == DONE else 0.0
        if node.state == RUNNING and node.done and now - node.begun > SOON:
            took = now - node.begun + (node.remaining(now) or 0.0)
        if took:
            spent.setdefault(_stage(node), []).append((took, node.expected))
    slower, usual = {}, {}
    for stage, pairs in spent.items():
        usual[stage] = statistics.fmean(took for took, _ in pairs)
        if foreseen := [(took, expected) for took, expected in pairs if expected]:
            slower[stage] = sum(took for took, _ in foreseen) / sum(of for _, of in foreseen)
    return slower, usual


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 05 s`, `2 h 04 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class _Lines:
    """Shared state of both views, made of what `view` is told."""

    def __init__(
        self,
        expected: Mapping[str, float | None],
        there: Amount,
        what: str = "nodes",
        needs: Mapping[str, Amount] = MappingProxyType({}),
    ) -> None:
        self.nodes = {
            name: NodeView(name, expected=seconds, need=needs.get(name, ONE))
            for name, seconds in expected.items()
        }
        self.there, self.what, self.begun = there, what, time.monotonic()

    def update(self, name: str, **changes: Any) -> None:
        before = self.nodes[name]
        now = time.monotonic()
        if changes.get("state") == RUNNING and before.state != RUNNING:
            # Another attempt, it may be.
            before = replace(before, done=0.0, total=0.0, first=0.0, resumed=False, recounted=0.0)
            changes["begun"] = now
        if "done" in changes and not before.total:
            resumed = changes["done"] > 0.05 * changes.get("total", 0.0)
            changes |= {"first": changes["done"], "resumed": resumed}
        elif before.total and changes.get("unit", before.unit) != before.unit:
            changes |= {"first": changes.get("done", 0.0), "recounted": now}
        if changes.get("state") in ENDED and before.begun:
            changes.setdefault("seconds", now - before.begun)
        self.nodes[name] = replace(before, **changes)
        self.changed(before, self.nodes[name])

    def changed(self, before: NodeView, after: NodeView) -> None:
        raise AssertionError("a view says what to do with a change")

    def tick(self) -> None:
        """Called all the time, also where nothing changes."""

    def summary(self) -> str:
        ended = sum(node.state in ENDED for node in self.nodes.values())
        left, unknown = time_left(self.nodes, self.there, time.monotonic())
        text = f"{ended}/{len(self.nodes)} {self.what}, {duration(time.monotonic() - self.begun)}"
        if ended < len(self.nodes) and left:
            text += f", {'at least' if unknown else 'about'} {duration(left)} left"
        return text


class PlainView(_Lines):
    """A line for every node that ended, and every few seconds one of what runs; for pipes and log
    files."""

    def __init__(self, *given: Any, every: float = 10, **more: Any) -> None:
        super().__init__(*given, **more)
        self._every, self._said = every, self.begun

    def changed(self, before: NodeView, after: NodeView) -> None:
        now = time.monotonic()
        stamp = f"[{now - self.begun:6.1f} s]"
        if after.state != before.state and after.state in SAID:
            took = f" in {duration(after.seconds)}" if after.state == DONE else ""
            note = f"  {after.note}" if after.note else ""
            print(f"{stamp} {after.name} {after.state}{took}{note}", flush=True)
        self.tick()

    def tick(self) -> None:
        """Say what runs, if nothing was said of it for a while."""
        now = time.monotonic()
        if now - self._said < self._every:
            return  # before all nodes are looked at: this is called all the time
        if not all(node.state in ENDED for node in self.nodes.values()):
            self._said = now
            print(f"[{now - self.begun:6.1f} s] {self.summary()}; {self._going(now)}", flush=True)

    def _going(self, now: float) -> str:
        """What runs and how far it is, or what is waited for."""
        running = [node for node in self.nodes.values() if node.state == RUNNING]
        if not running:
            waiting = [node.name for node in self.nodes.values() if node.state == WAITING]
            return f"{waiting[0]} {WAITING}" if waiting else "nothing runs just now"
        parts = [f"{node.name} {_how_far(node, now)}".rstrip() for node in running[:SHOWN]]
        more = len(running) - SHOWN
        return "runs: " + "; ".join(parts) + (f"; and {more} more" if more > 0 else "")

    def message(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """Nothing stays open."""


def _how_far(node: NodeView, now: float) -> str:
    parts = []
    if node.total:
        parts.append(f"{node.done:g}/{node.total:g} {node.unit}".rstrip())
    left = node.remaining(now)
    if left is not None:
        parts.append(f"about {duration(left)} left")
    if node.note:
        parts.append(node.note)
    return ", ".join(parts)


class LiveView(_Lines):
    """A table that redraws itself: a bar a phase, what runs, what is waited for, the time left;
    nodes that ended scroll away above it."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(
            get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True
        )
        self._live.start()

    def changed(self, before: NodeView, after: NodeView) -> None:
        if after.state in SAID and before.state not in ENDED:
            style = {DONE: "green", REUSED: "dim", FAILED: "bold red"}
            took = duration(after.seconds) if after.state == DONE else after.state
            self._console.print(
                f"[{style[after.state]}]{'✗' if after.state == FAILED else '✓'}[/] "
                f"{after.name:<40} {took:>12}  [dim]{_plain(after.note)}[/]",
                highlight=False,
            )

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = time.monotonic()
        table = Table.grid(padding=(0, 1))
        for phase, nodes in phases(self.nodes).items():
            ended = sum(node.state in ENDED for node in nodes)
            if ended < len(nodes) and any(node.state != QUEUED for node in nodes):
                bar = ProgressBar(total=len(nodes), completed=ended, width=24)
                table.add_row("", phase, bar, f"{ended}/{len(nodes)}")
        active = [n for n in self.nodes.values() if n.state in (RUNNING, WAITING)]
        for node in active[:12]:
            bar = ProgressBar(total=node.total or 1, completed=node.done, width=24)
            table.add_row("▸", node.name, bar, _plain(_how_far(node, now) or node.state))
        table.add_row("", self.summary(), "", "")
        return table


def phases(nodes: Mapping[str, NodeView]) -> dict[str, list[NodeView]]:
    """The nodes by what their names begin with (`train` of `train/sit`), in order."""
    by_phase: dict[str, list[NodeView]] = {}
    for name, node in nodes.items():
        by_phase.setdefault(name.partition("/")[0], []).append(node)
    return by_phase


def _plain(text: str) -> str:
    """Text that rich must not read as markup."""
    return text.replace("[", "\\[")


def view(
    expected: Mapping[str, float | None],
    there: Amount,
    what: str = "nodes",
    needs: Mapping[str, Amount] = MappingProxyType({}),
) -> PlainView | LiveView:
    """The live table on a terminal, plain lines elsewhere; `what` its lines are counted as, `there`
    the machines, and `needs` what a line takes of them while it runs."""
    kind = LiveView if sys.stdout.isatty() else PlainView
    return kind(expected, there, what, needs)
