"""The graph of a run as SVG, left to right, with states and times.

A graph of many nodes is drawn by stage, one box for all nodes of a stage: a hundred boxes tell
nobody anything. Every node then stands in a table below.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import progress

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 190, 40, 40, 12
MOST = 24  # nodes that are drawn one by one


@dataclass(frozen=True)
class Box:
    """What is drawn: its name, a line below it, and the boxes it reads."""

    name: str
    line: str
    upstream: Sequence[str]
    failed: bool


def graph(data: Mapping[str, Any]) -> str:
    """The graph of a run's record, and its nodes as a table where they are many."""
    nodes = data["nodes"]
    if len(nodes) <= MOST:
        return svg([_node_box(name, node) for name, node in nodes.items()])
    stages: dict[str, dict[str, Any]] = {}
    for name, node in nodes.items():
        stages.setdefault(node["stage"], {})[name] = node
    boxes = [_stage_box(stage, of, nodes) for stage, of in stages.items()]
    return svg(_in_order(boxes)) + _table(nodes)


def picture(data: Mapping[str, Any]) -> str:
    """The graph of a run's record as an SVG file of its own, with the colours that a page has."""
    drawn = graph(data)
    drawn = drawn[drawn.index("<svg") : drawn.index("</svg>") + len("</svg>")]
    start, rest = drawn.split(">", 1)
    start = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    look = "svg { color: #444444; font-family: sans-serif } .failed { color: #b3261e }"
    return f"{start}><style>{look} text {{ fill: currentColor }}</style>{rest}"


def _node_box(name: str, node: Mapping[str, Any]) -> Box:
    upstream = node["upstream"]
    return Box(name, f"{node['state']} {_took(node)}".strip(), upstream, _failed(node))


def _stage_box(stage: str, of: Mapping[str, Any], nodes: Mapping[str, Any]) -> Box:
    count = f"{len(of)} nodes" if len(of) > 1 else next(iter(of.values()))["state"]
    cached = sum(node["state"] == progress.REUSED for node in of.values())
    unfinished = sum(node["state"] not in (progress.DONE, progress.REUSED) for node in of.values())
    parts = [count]
    if len(of) > 1:
        parts += [f"{cached} cached"] if cached else []
        parts += [f"{unfinished} missing"] if unfinished else []
    parts.append(progress.duration(sum(node["seconds"] or 0 for node in of.values())))
    read = (nodes[name]["stage"] for node in of.values() for name in node["upstream"])
    upstream = [other for other in dict.fromkeys(read) if other != stage]
    return Box(stage, ", ".join(parts), upstream, any(map(_failed, of.values())))


def _in_order(boxes: Sequence[Box]) -> list[Box]:
    """Boxes after those that they read. Stages may read each other in turn; then the order of the
    graph's nodes decides, and such an edge is left out."""
    done: dict[str, Box] = {}
    left = {box.name: box for box in boxes}
    while left:
        ready = [box for box in left.values() if not set(box.upstream) & left.keys()]
        box = ready[0] if ready else next(iter(left.values()))
        upstream = [name for name in box.upstream if name in done]
        done[box.name] = Box(box.name, box.line, upstream, box.failed)
        del left[box.name]
    return list(done.values())


def svg(boxes: Sequence[Box]) -> str:
    """Boxes in columns, each to the right of those it reads, which come before it."""
    depth: dict[str, int] = {}
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for box in boxes:
        column = max((depth[name] for name in box.upstream if name in depth), default=-1) + 1
        depth[box.name] = column
        row = rows.get(column, 0)
        rows[column] = row + 1
        place[box.name] = (column * (BOX_WIDTH + GAP_X) + 1, row * (BOX_HEIGHT + GAP_Y) + 1)
    width = (max(depth.values(), default=0) + 1) * (BOX_WIDTH + GAP_X) - GAP_X + 2
    height = max(rows.values(), default=1) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2
    edges = "".join(
        _edge(place[name], place[box.name])
        for box in boxes
        for name in box.upstream
        if name in place
    )
    drawn = "".join(_draw(box, *place[box.name]) for box in boxes)
    return (
        f"<div class='wide'><svg class='graph' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='graph of the run with times'>{edges}{drawn}</svg></div>"
    )


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x2, y2 = end[0], end[1] + BOX_HEIGHT / 2
    middle = (x1 + x2) / 2
    return (
        f"<path d='M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}' fill='none' "
        "stroke='currentColor' stroke-opacity='.25'/>"
    )


def _draw(box: Box, x: int, y: int) -> str:
    return (
        f"<g class='{'failed' if box.failed else 'node'}'>"
        f"<rect x='{x}' y='{y}' width='{BOX_WIDTH}' height='{BOX_HEIGHT}' "
        "rx='5' fill='none' stroke='currentColor' stroke-opacity='.6'/>"
        f"<text x='{x + 8}' y='{y + 16}' font-size='12'>{html.escape(box.name)}</text>"
        f"<text x='{x + 8}' y='{y + 32}' font-size='11' fill-opacity='.7'>"
        f"{html.escape(box.line)}</text></g>"
    )


def _table(nodes: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td{_look(node)}>{html.escape(node['state'])}</td>"
        f"<td class=number>{_took(node)}</td></tr>"
        for name, node in nodes.items()
    )
    return (
        f"<details><summary>all {len(nodes)} nodes with their times</summary><div class='wide'>"
        "<table><thead><tr><th>node</th><th>state</th><th class=number>time</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _took(node: Mapping[str, Any]) -> str:
    return "" if node["seconds"] is None else progress.duration(node["seconds"])


def _failed(node: Mapping[str, Any]) -> bool:
    return node["state"] in (progress.FAILED, progress.BLOCKED)


def _look(node: Mapping[str, Any]) -> str:
    return " class='failed'" if _failed(node) else ""
