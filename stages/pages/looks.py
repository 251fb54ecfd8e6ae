"""How methods look: a method has the same colour, name and place in every figure.

A method's place in its table (`stages/methods/table.py`) is its colour, so that a new one has one
too. Curves of one method in one figure (a solver corrected, or on another grid) share its colour
in other shades, with dashes of their own: which shade follows from what else is drawn there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.methods import table

COLORS = (
    *("#3b82d6", "#e07b39", "#2fa36b", "#c65b9e", "#a8820f", "#7a6fd9", "#2496a5", "#9c6b4f"),
    *("#d0473e", "#7b8794", "#6b9a1f", "#4a5fc4", "#e45fee", "#247536"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
SHADES = (0.0, 0.35, -0.3, 0.2, -0.15)  # towards white, or towards black

_TABLES: Sequence[Iterable[str]] = (
    table.LOSSES,
    table.SOLVERS,
    table.GRIDS | table.DENSITY_GRIDS,
    table.FAMILIES,
)
PLACES = {name: place for names in reversed(_TABLES) for place, name in enumerate(names)}

# What readers call methods and scores that settings name shorter.
NAMES = {
    **{"sit": "SiT", "repa": "REPA", "reg": "REG", "maskalign": "MaskAlign"},
    **{"euler": "Euler", "heun": "Heun", "unipc": "UniPC", "deis": "DEIS", "ipndm": "iPNDM"},
    **{"dpmpp2m": "DPM-Solver++ 2M", "dpmpp3m": "DPM-Solver++ 3M", "dpm2": "DPM-Solver-2"},
    **{"csflow": "CSFlow", "uniform_t": "uniform in t", "whole": "whole trajectory"},
}
SCORES = {
    **{"fid": "FID", "sfid": "sFID", "kid": "KID", "fid_infinity": "FID ∞"},
    **{"fid_held_out": "FID held-out", "fid_gap": "FID gap", "inception_score": "IS"},
    **{"trajectory_rms": "rms to own fine sample"},
}


@dataclass(frozen=True)
class Look:
    """Colour (`#rrggbb`), marker and line, as matplotlib names them."""

    color: str
    marker: str
    line: str


def method(name: str) -> str | None:
    """The method that a curve's name begins with: `heun` of `heun, calibrated (edm)`."""
    lower = name.lower()
    begins = [
        one for one in PLACES if re.match(rf"{re.escape(one)}(?![a-z0-9_])", lower) is not None
    ]
    return max(begins, key=len, default=None)


def shown(name: str) -> str:
    """A curve's name for a reader: its method and its grid called as papers call them."""
    for short, long in NAMES.items():
        name = re.sub(rf"(^|\(){re.escape(short)}(?![A-Za-z0-9_-])", rf"\1{long}", name)
    return name


def score_name(name: str) -> str:
    """A score's name for a reader."""
    return SCORES.get(name, name)


def ordered(names: Sequence[str]) -> list[int]:
    """Places of names: methods first, as their tables have them, then the others as they are."""
    known = [index for index, name in enumerate(names) if method(name) is not None]
    known.sort(key=lambda index: (PLACES[method(names[index])], len(names[index])))
    return known + [index for index in range(len(names)) if index not in known]


def looks(names: Sequence[str]) -> list[Look]:
    """The look of every curve of a figure.

    A method has its colour; what is no method has the first colours that the figure's methods
    leave. Of the curves of one method the one with the shortest name has the colour itself.
    """
    free = [place for place in range(len(COLORS)) if place not in _taken(names)]
    places: dict[str, int] = {}
    for name in names:
        key = method(name)
        if key is not None:
            places[name] = PLACES[key] % len(COLORS)
        elif name not in places:
            others = sum(method(one) is None for one in places)
            places[name] = free[others % len(free)] if free else others % len(COLORS)
    found: Mapping[str, Look] = _told_apart(places)
    return [found[name] for name in names]


def _taken(names: Iterable[str]) -> set[int]:
    return {PLACES[key] % len(COLORS) for key in map(method, names) if key is not None}


def _told_apart(places: Mapping[str, int]) -> dict[str, Look]:
    """Looks by name, from the place of each one's colour: no two are alike."""
    found, used = {}, Counter()
    for name in sorted(places, key=lambda one: (len(one), one)):
        place, again = places[name], used[places[name]]
        used[place] += 1
        color = shade(COLORS[place], SHADES[again % len(SHADES)])
        mark = MARKERS[(place + again) % len(MARKERS)]
        found[name] = Look(color, mark, LINES[again % len(LINES)])
    return found


def shade(color: str, by: float) -> str:
    """A colour lighter (by > 0, 1 is white) or darker (by < 0, -1 is black)."""
    end = 255 if by > 0 else 0
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(by) * (end - part)):02x}" for part in parts)
