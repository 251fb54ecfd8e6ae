"""What the nodes of a graph will take: storage, memory, parameters, GPU-hours. Said where it is
much, before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.graph import Graph

# Operations a second that a GPU is taken to make: 40 % of 400 TFLOP/s.
RATE = 0.4 * 400e12

LARGE_HOURS, LARGE_BYTES = 1.0, 10e9

HEADING = "what this takes, about (a GPU-hour is an hour at 40 % of 400 TFLOP/s):"


@dataclass(frozen=True)
class Taken:
    """What nodes of one stage take: bytes and GPU-hours of all, the rest of the largest."""

    nodes: int = 0
    bytes: float = 0.0
    gpu_hours: float = 0.0
    parameters: float = 0.0
    gpu_bytes: float = 0.0
    memory_bytes: float = 0.0
    said: str = ""

    def with_node(self, found: Mapping[str, Any]) -> Taken:
        """These and one node more."""

        def largest(name: str) -> float:
            return max(getattr(self, name), found.get(name, 0))

        return Taken(
            self.nodes + 1,
            self.bytes + found.get("bytes", 0),
            self.gpu_hours + found.get("flops", 0) / RATE / 3600,
            largest("parameters"),
            largest("gpu_bytes"),
            largest("memory_bytes"),
            self.said or found.get("said", ""),
        )

    def words(self) -> str:
        """In words, what is not nothing."""
        parts = [
            self.said,
            f"{_bytes(self.bytes)} on disk" if self.bytes >= 1e6 else "",
            f"{_short(self.gpu_hours)} GPU-hours" if self.gpu_hours >= 0.01 else "",
            f"{self.parameters / 1e6:,.0f} M parameters" if self.parameters >= 1e6 else "",
            f"{_bytes(self.gpu_bytes)} of a GPU's memory" if self.gpu_bytes >= 1e8 else "",
            f"{_bytes(self.memory_bytes)} of memory" if self.memory_bytes >= 1e8 else "",
        ]
        return "; ".join(part for part in parts if part)


def by_stage(graph: Graph, todo: Collection[str]) -> dict[str, Taken]:
    """What the nodes `todo` take, by stage; empty where it is little, or not known."""
    taken: dict[str, Taken] = {}
    for node in graph:
        if node.name in todo and (known := graph.estimates[node.name]):
            stage = node.stage.name
            taken[stage] = taken.get(stage, Taken()).with_node(known)
    hours, size = _totals(taken)
    return taken if hours > LARGE_HOURS or size > LARGE_BYTES else {}


def text(taken: Mapping[str, Taken]) -> str:
    """Lines for a person; empty where there is nothing to say."""
    rows = [(f"{name} ({of.nodes})", of.words()) for name, of in taken.items()]
    rows = [(name, words) for name, words in rows if words]
    if not rows:
        return ""
    hours, size = _totals(taken)
    rows.append(("in all", f"{_bytes(size)} on disk; {_short(hours)} GPU-hours"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([HEADING, *(f"  {name:<{width}}  {words}" for name, words in rows)])


def data(taken: Mapping[str, Taken]) -> dict[str, Any]:
    """The same as plain data."""
    hours, size = _totals(taken)
    stages = {name: vars(of) for name, of in taken.items()}
    return {"stages": stages, "bytes": size, "gpu_hours": hours, "flops_a_second": RATE}


def _totals(taken: Mapping[str, Taken]) -> tuple[float, float]:
    """GPU-hours and bytes of all."""
    return sum(of.gpu_hours for of in taken.values()), sum(of.bytes for of in taken.values())


def _bytes(size: float) -> str:
    if size >= 1e12:
        return f"{size / 1e12:,.3g} TB"
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
