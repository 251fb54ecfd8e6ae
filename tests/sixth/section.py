"""What the report says of the sixth paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.pages.findings import EXACT, HOLDS, Claim, Effect, Finding
from stages.pages.page import Section, table

if TYPE_CHECKING:
    from stages.pages.made import Made

CLAIM = Claim("Sixth", "Held-out images have the same contrast", "equal", ("full", "sixth"))


def report(made: Made) -> Iterator[Section]:
    """A table of the contrasts."""
    for one in made.of("contrast").values():
        yield Section("Sixth", "", [table([("part", "contrast"), *one.description.items()])])


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of its claim."""
    facts = [one.description for one in made.of("contrast").values()]
    if not facts:
        yield Finding(CLAIM)
    for fact in facts:
        yield Finding(CLAIM, "", Effect(fact["test"] - fact["train"], None, EXACT), HOLDS)
