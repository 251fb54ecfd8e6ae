"""What the folder of a paper declares to the bench: all that is known of it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.stage import Settings, Stage


@dataclass(frozen=True)
class Paper:
    """A paper on the bench, found as `PAPER` in `stages/papers/NAME/paper.py`.

    Places are `"module:function"`, read when something asks for them.

    Args:
        name: of its folder, and of that section of a preset which says by `in_full` whether it has
            a part in the recipe full.
        sections: its sections of a preset, each with its class and what it is of, in words.
        stages: the kinds of nodes that it adds.
        devices: the section that says by `device` where the nodes of a stage run, by stage.
        recipes: its own recipes, `recipe(bench) -> nodes`, by name.
        full: its part of the recipe full, `nodes(bench, nodes so far) -> further nodes`.
        shown: those of its stages that its section or its claims read.
        section: its part of the report, `report(made) -> sections` of `pages.made.Made`.
        claims: what a run says of its claims, `of_run(made) -> findings`.
        key_figure: pattern of the name of the figure that stands for it where a report begins.
        timed: what measured times say of them, `timed(seconds, manifests) -> findings`.
        apart: how the names of evaluations begin that only its own section shows.
    """

    name: str
    sections: Mapping[str, tuple[type[Settings], str]]
    stages: tuple[Stage, ...] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)
    full: str = ""
    shown: tuple[str, ...] = ()
    section: str = ""
    claims: str = ""
    key_figure: str = ""
    timed: str = ""
    apart: str = ""
