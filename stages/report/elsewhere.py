"""Networks from elsewhere in the report: what was loaded, under which conventions."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.pages.page import Section


def sections(inputs: Mapping[str, Any]) -> Iterator[Section]:
    """inputs: the report's."""
    from stages.pages.page import Section, table

    given = inputs.get("given", {})
    parts = []
    for name, artifact in given.items():
        facts = artifact.description
        parts += [f"<h3>{html.escape(name.partition('/')[2])}</h3>", table(lines_of(facts))]
        if "guide" in facts:
            parts += ["<h3>guided away from</h3>", table(lines_of(facts["guide"]))]
    if parts:
        text = "<p>What was loaded, and how its numbers were read.</p>"
        yield Section("Networks from elsewhere", text, parts)


def lines_of(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What describes a network, line by line."""
    channels = facts.get("guided_channels")
    low, high = facts.get("guided_interval", (0.0, 1.0))
    ends = ", its ends left out" if facts.get("open_interval") else ""
    lines = {
        "format": facts.get("format", "bench"),
        "network": facts["network"],
        "images (channels, height, width)": " x ".join(map(str, facts["shape"])),
        "classes": facts["num_classes"] or "none",
        "input without a class": "yes" if facts.get("null_class", True) else "none",
        **facts.get("conventions", {}),
        "guidance, where it is asked for": f"on {channels or 'all'} channels, for t from {low:g} "
        f"to {high:g}{ends}, unless settings say otherwise",
        "SHA-256 of the files": facts.get("digest", ""),
    }
    return [("what", "as read"), *((k, str(v)) for k, v in lines.items() if v != "")]
