"""How much of a machine or cluster nodes may take at once, and who comes next where it is full."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UsageError

# The limits of memory that a container may be under; the second is of the older kind.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
DUST = 1e-6  # of sums of fractions
LOOKAHEAD = 4  # nodes that wait in Ray: enough that no core waits for the next round


@dataclass(frozen=True)
class Amount:
    """CPU cores, GPUs, and GiB of memory."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.cpus + other.cpus, self.gpus + other.gpus, self.memory_gib + other.memory_gib
        )

    def within(self, other: Amount) -> bool:
        """Whether it is no more than another, the dust of sums of fractions aside."""
        mine, theirs = vars(self).values(), vars(other).values()
        return all(need <= have + DUST for need, have in zip(mine, theirs, strict=True))

    def most(self, other: Amount) -> Amount:
        """The larger of each."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Amount(*(max(pair) for pair in pairs))

    def words(self) -> str:
        """Such as `2 CPUs and 1 GPU`."""
        parts = [counted(self.cpus, "CPU"), counted(self.gpus, "GPU")]
        parts += [f"{self.memory_gib:g} GiB of memory"] if self.memory_gib else []
        return " and ".join(filter(None, parts)) or "nothing"


def counted(value: float, what: str) -> str:
    """Such as `2 CPUs`; empty for none."""
    return f"{value:g} {what}{'' if value == 1 else 's'}" if value else ""


def spread(tasks: Sequence[tuple[float, Amount]], there: Amount) -> float:
    """Seconds that tasks take at the least, of so many seconds each and a core or more: the longest
    of them, and all of them over the cores and the GPUs that are there, or that one of them needs
    where these are more."""
    found = [0.0, *(seconds for seconds, _ in tasks)]
    for kind, least in (("cpus", 1.0), ("gpus", 0.0)):
        needs = [max(getattr(need, kind), least) for _, need in tasks]
        room = max(1.0, getattr(there, kind), *needs)
        found.append(sum(task[0] * need for task, need in zip(tasks, needs, strict=True)) / room)
    return max(found)


def of_ray(resources: Mapping[str, float]) -> Amount:
    """What Ray calls by its own names, memory in bytes."""
    return Amount(
        resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0) / 2**30
    )


def memory_bytes() -> int:
    """The memory that this machine, or the container this is in, has in all."""
    import psutil

    found = [psutil.virtual_memory().total]
    for path in map(Path, CGROUP_LIMITS):
        try:
            found.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or it is `max`
            continue
    return min(found)


def read(text: str | None) -> Amount | None:
    """What `--up-to` says, such as `cpus=64,gpus=8,memory_gib=512`; None where it says nothing.

    What is not named is not bounded.

    Raises:
        UsageError: it cannot be read.
    """
    if text is None:
        return None
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(cpus|gpus|memory_gib)=(\d+(?:\.\d+)?)\s*", part)
        if match is None or match[1] in found:
            raise UsageError(
                f"--up-to {text}: say what the cluster may grow to, such as "
                "--up-to cpus=64,gpus=8,memory_gib=512; what is left out is not bounded"
            )
        found[match[1]] = float(match[2])
    return Amount(*(found.get(name, math.inf) for name in ("cpus", "gpus", "memory_gib")))


@dataclass
class Room:
    """Decides what may be handed to Ray now. Ray takes no priorities, and gives the workers of a
    training no turn while others take every core that falls free.

    GPUs and memory are given to as many as they are enough for. Of nodes that need CPUs only a few
    more than fit are handed over, so that no core waits; but while a node with processes of its own
    runs or waits, no more than fits beside it: the cluster runs empty for one that waits.

    Args:
        all: what there is, or may be.
        taken: what those take that were handed over, by key.
        unbegun: those that Ray has not started, by what they need.
        groups: what the processes take that nodes start by themselves, by the nodes' keys.
        awaited: the most urgent node that there is no room for, at the most.
    """

    all: Amount
    taken: dict[str, Amount] = field(default_factory=dict)
    unbegun: dict[Amount, set[str]] = field(default_factory=dict)
    groups: dict[str, Amount] = field(default_factory=dict)
    awaited: dict[str, Amount] = field(default_factory=dict)

    @property
    def reserved(self) -> frozenset[str]:
        """The kinds, such as `cpus`, of which groups need that nobody takes what is not counted."""
        return frozenset(k for of in self.groups.values() for k, value in vars(of).items() if value)

    def offer(self, key: str, need: Amount, group: Amount | None = None) -> bool:
        """Whether a node may be handed to Ray now; it counts until `leave`. To be asked again and
        again, the most urgent nodes first.

        Args:
            need: what it and its processes take together.
            group: what the processes take that it starts by itself, if it does; all at once.
        """
        counted = {kind for kind, value in vars(need).items() if value}
        if group is None and not self.groups:
            counted.discard("cpus")
            if len(self.unbegun.get(need, ())) >= max(LOOKAHEAD, self.all.cpus) and not counted:
                return False
        if not self._fits(key, need, counted):
            if not self.awaited:
                self.awaited[key] = need
                if group is not None:
                    self.groups[key] = group
            return False
        self.taken[key] = need
        self.unbegun.setdefault(need, set()).add(key)
        self.awaited.pop(key, None)
        if group is not None:
            self.groups[key] = group
        return True

    def _fits(self, key: str, need: Amount, kinds: Collection[str]) -> bool:
        others = [amount for of, amount in self.awaited.items() if of != key]
        held = sum([*self.taken.values(), *others], need)
        if all(getattr(held, kind) <= getattr(self.all, kind) + DUST for kind in kinds):
            return True
        # Alone it may be more than there is: that was checked before, and the cluster may shrink.
        return not (self.taken or others)

    def renew(self, keys: Collection[str]) -> None:
        """Keep no room for any of these any more, before they are offered anew: a more urgent one
        may have come since, and would wait for the other's room, which it stands in the way of."""
        for key in self.awaited.keys() & keys:
            del self.awaited[key]
            if key not in self.taken:
                self.groups.pop(key, None)

    def began(self, key: str) -> None:
        """Ray has started it."""
        self.unbegun.get(self.taken.get(key, Amount()), set()).discard(key)

    def leave(self, key: str) -> None:
        """It has ended, or nobody wants it any more."""
        self.began(key)
        for where in (self.taken, self.groups, self.awaited):
            where.pop(key, None)
