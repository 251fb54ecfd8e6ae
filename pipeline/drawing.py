"""The graph of a run as SVG, with states and times: left to right, or downwards where that would be
wider than a page. How far a box is filled is its share of the longest one's time; what is read by
way of another box as well has no line of its own.

A graph of many nodes is drawn by stage, one box for all nodes of a stage: a hundred boxes tell
nobody anything. Every node then stands in a table below.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import progress

BOX_WIDTH, BOX_HEIGHT, FAR, NEAR = 180, 40, 40, 12  # gaps: between boxes that read, and beside
WIDEST = 950  # pixels of a page
# Boxes hide the edges behind them: their ground is the page's, white in a file of its own.
LOOK = (
    "svg.graph { color: var(--ink, #444444); max-width: none; } svg.graph .failed { color: "
    "var(--bad, #b3261e); } svg.graph text, svg.graph g path { fill: currentColor; } "
    "svg.graph .box { fill: var(--paper, #ffffff); stroke: currentColor; stroke-opacity: .6; }"
)
MOST = 24  # nodes that are drawn one by one


@dataclass(frozen=True)
class Box:
    """What is drawn: its name, a line below it, the boxes it reads, and the seconds it took."""

    name: str
    line: str
    upstream: Sequence[str]
    failed: bool
    seconds: float = 0.0


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
    return f"{start}><style>svg {{ font-family: sans-serif }} {LOOK}</style>{rest}"


def _node_box(name: str, node: Mapping[str, Any]) -> Box:
    upstream = node["upstream"]
    line = f"{node['state']} {_took(node)}".strip()
    return Box(name, line, upstream, _failed(node), node["seconds"] or 0.0)


def _stage_box(stage: str, of: Mapping[str, Any], nodes: Mapping[str, Any]) -> Box:
    count = f"{len(of)} nodes" if len(of) > 1 else next(iter(of.values()))["state"]
    cached = sum(node["state"] == progress.REUSED for node in of.values())
    unfinished = sum(node["state"] not in (progress.DONE, progress.REUSED) for node in of.values())
    parts = [count]
    if len(of) > 1:
        parts += [f"{cached} cached"] if cached else []
        parts += [f"{unfinished} missing"] if unfinished else []
    seconds = sum(node["seconds"] or 0.0 for node in of.values())
    parts.append(progress.duration(seconds))
    read = (nodes[name]["stage"] for node in of.values() for name in node["upstream"])
    upstream = [other for other in dict.fromkeys(read) if other != stage]
    return Box(stage, ", ".join(parts), upstream, any(map(_failed, of.values())), seconds)


def _in_order(boxes: Sequence[Box]) -> list[Box]:
    """Boxes after those that they read. Stages may read each other in turn; then the order of the
    graph's nodes decides, and such an edge is left out."""
    done: dict[str, Box] = {}
    left = {box.name: box for box in boxes}
    while left:
        ready = [box for box in left.values() if not set(box.upstream) & left.keys()]
        box = ready[0] if ready else next(iter(left.values()))
        upstream = [name for name in box.upstream if name in done]
        done[box.name] = replace(box, upstream=upstream)
        del left[box.name]
    return list(done.values())


def svg(boxes: Sequence[Box]) -> str:
    """Boxes in ranks, each behind those it reads, which come before it."""
    ranks: dict[str, int] = {}
    beside: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for box in boxes:
        rank = max((ranks[name] for name in box.upstream if name in ranks), default=-1) + 1
        place[box.name] = rank, beside.get(rank, 0)
        ranks[box.name] = rank
        beside[rank] = beside.get(rank, 0) + 1
    counts = (max(ranks.values(), default=0) + 1, max(beside.values(), default=1))
    down = counts[0] * (BOX_WIDTH + FAR) - FAR > WIDEST and counts[1] < counts[0]
    if down:
        place = {name: (at, rank) for name, (rank, at) in place.items()}
        counts = counts[::-1]
    step = (BOX_WIDTH + (NEAR if down else FAR), BOX_HEIGHT + (FAR if down else NEAR))
    place = {name: (x * step[0] + 1, y * step[1] + 1) for name, (x, y) in place.items()}
    width = counts[0] * step[0] - (step[0] - BOX_WIDTH) + 2
    height = counts[1] * step[1] - (step[1] - BOX_HEIGHT) + 2
    edges = "".join(
        _edge(place[name], place[box.name], down)
        for box, read in zip(boxes, _direct(boxes), strict=True)
        for name in read
    )
    longest = max((box.seconds for box in boxes), default=0.0)
    drawn = "".join(_draw(box, *place[box.name], longest) for box in boxes)
    return (
        f"<div class='wide'><svg class='graph' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='graph of the run with times'>{edges}{drawn}</svg></div>"
    )


def _direct(boxes: Sequence[Box]) -> list[list[str]]:
    """Of every box what it reads, without what it reads by way of another as well."""
    behind: dict[str, set[str]] = {}
    direct = []
    for box in boxes:
        known = [name for name in box.upstream if name in behind]
        further = set().union(*(behind[name] for name in known))
        behind[box.name] = further.union(known)
        direct.append([name for name in known if name not in further])
    return direct


def _edge(start: tuple[int, int], end: tuple[int, int], down: bool) -> str:
    """From a box to one that reads it: from its right side, downwards from its lower one."""
    (x1, y1), (x2, y2) = start, end
    if down:
        x1, y1, x2 = x1 + BOX_WIDTH / 2, y1 + BOX_HEIGHT, x2 + BOX_WIDTH / 2
        middle = (y1 + y2) / 2
        bends = f"{x1} {middle} {x2} {middle}"
    else:
        x1, y1, y2 = x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2
        middle = (x1 + x2) / 2
        bends = f"{middle} {y1} {middle} {y2}"
    return (
        f"<path d='M{x1} {y1} C{bends} {x2} {y2}' fill='none' "
        "stroke='currentColor' stroke-opacity='.25'/>"
    )


def _draw(box: Box, x: int, y: int, longest: float) -> str:
    size = f"height='{BOX_HEIGHT}' rx='5'"
    filled = round(BOX_WIDTH * box.seconds / longest) if longest else 0
    bar = f"<path d='M{x} {y}h{filled}v{BOX_HEIGHT}h-{filled}z' fill-opacity='.14'/>"
    return (
        f"<g class='{'failed' if box.failed else 'node'}'>"
        f"<rect x='{x}' y='{y}' width='{BOX_WIDTH}' {size} class='box'/>{bar if filled else ''}"
        f"<text x='{x + 8}' y='{y + 16}' font-size='13'>{html.escape(box.name)}</text>"
        f"<text x='{x + 8}' y='{y + 32}' font-size='11.5'>{html.escape(box.line)}</text></g>"
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
