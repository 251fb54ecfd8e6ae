"""What a reader sees first: a card a paper with its key figure, and samples of what was trained."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from stages.pages import findings as rules
from stages.pages.looks import shown
from stages.report import claims

if TYPE_CHECKING:
    from stages.artifacts.samples import Samples
    from stages.pages.figures import Figure
    from stages.pages.findings import Finding
    from stages.pages.page import Picture, Section

MODELS = 6  # whose samples stand on top
# How many claims have a verdict, where it is one and where there are several.
CHIPS = {
    rules.HOLDS: ("good", "holds", "hold"),
    rules.FAILS: ("failed", "does not", "do not"),
    rules.OPEN: ("", "open", "open"),
}


def section(
    found: Sequence[Finding],
    key_figures: Mapping[str, str],
    sections: Sequence[Section],
    samples: Mapping[str, Samples],
) -> Section:
    """The overview.

    key_figures: by method the pattern of the name of its key figure, looked for in the sections.
    """
    from stages.pages.page import Section, pictures

    methods: dict[str, list[Finding]] = {}
    for finding in claims.marked(found):
        methods.setdefault(finding.claim.method, []).append(finding)
    measured = {
        method: ones
        for method, ones in methods.items()
        if any(one.verdict in CHIPS for one in ones)
    }
    cards = [
        card(method, ones, *_key_figure(key_figures.get(method, ""), sections))
        for method, ones in measured.items()
    ]
    if last := latest(samples):
        # Three cards stand in a row: behind one or two there is room for samples.
        place = "halves beside" if len(cards) % 3 == 1 else "halves"
        place = "third" if len(cards) % 3 == 2 and len(last) == 1 else place
        cards.append(f"<div class='{place}'>{pictures(last)}</div>")
    text = f"<div class='cards'>{''.join(cards)}</div>" if cards else ""
    if absent := {method: ones for method, ones in methods.items() if method not in measured}:
        text += _elsewhere(absent)
    return Section("Overview", text, whole=True)


def card(
    method: str, found: Sequence[Finding], figure: Figure | None = None, place: int = 0
) -> str:
    """A paper with a measured claim: verdicts as chips, a sentence on the first, its key figure."""
    tested = [finding for finding in found if finding.verdict in CHIPS]
    chips = "".join(
        f"<span class='chip {looks}'>{number} {one if number == 1 else several}</span>"
        for verdict, (looks, one, several) in CHIPS.items()
        if (number := sum(one.verdict == verdict for one in tested))
    )
    *_, effect, _, said = claims.row(tested[0])
    # The interval follows the verdict; what it is of stands in the claims table.
    said = said.split("*")[0].split(" [")[0]
    text = f"{html.escape(tested[0].claim.text)}: <b>{html.escape(said)}</b>"
    told = effect and not tested[0].instead  # what a verdict does not follow from would mislead
    sentence = f"{text}, {html.escape(effect)}." if told else f"{text}."
    picture = f"<a href='#s{place}' class='key'>{_again(figure)}</a>" if figure else ""
    title = f"<h3>{html.escape(method)}</h3>"
    return f"<article class='card'>{title}{chips}<p>{sentence}</p>{picture}</article>"


def _elsewhere(absent: Mapping[str, Sequence[Finding]]) -> str:
    """Which papers' claims a run did not measure, and the recipes that do."""
    parts = []
    for method, found in absent.items():
        recipes = sorted({name for finding in found for name in finding.claim.recipes})
        parts.append(f"{html.escape(method)} (recipe {rules.either(recipes)})")
    return f"<p class='note'>Not measured in this run: {', '.join(parts)}.</p>"


def _key_figure(pattern: str, sections: Sequence[Section]) -> tuple[Figure | None, int]:
    """The first figure whose name fits, and the place of its section on the page, behind the
    overview and the claims."""
    for place, one in enumerate(sections, start=2):
        for figure in (*one.figures, *one.panels):
            if pattern and fnmatch(figure.name, pattern):
                return figure, place
    return None, 0


def _again(figure: Figure) -> str:
    """A figure a second time on a page: drawn for a card, or the same with ids of its own."""
    drawn = figure.small() if figure.small else figure.svg
    text = re.sub(r'\b(id="|href="#)', r"\1card-", drawn)
    label = html.escape(figure.caption, quote=True)
    return text.replace("url(#", "url(#card-").replace(
        'role="img"', f'role="img" aria-label="{label}"', 1
    )


def latest(samples: Mapping[str, Samples]) -> list[Picture]:
    """The last samples along each training, or of trainings without such ones those with the most
    evaluations: the same noise and classes at the same places."""
    from stages.pages.page import Picture

    last: dict[str, tuple[int, Samples]] = {}
    for name, artifact in samples.items():
        model, along, _ = name.partition("/")[2].partition("-step")
        step = artifact.description["training_step"]
        if along and step >= last.get(model, (-1,))[0]:
            last[model] = step, artifact
    if not last:
        return [
            Picture(f"{name}, {most} evaluations", (artifact.path / "grid.png").read_bytes())
            for name, (most, artifact) in list(_finest(samples).items())[:MODELS]
        ]
    return [
        Picture(f"{shown(model)} after {step:,} steps", (artifact.path / "grid.png").read_bytes())
        for model, (step, artifact) in list(last.items())[:MODELS]
    ]


def _finest(samples: Mapping[str, Samples]) -> dict[str, tuple[int, Samples]]:
    """By training the samples of this project with the most evaluations, and how many these are."""
    finest: dict[str, tuple[int, Samples]] = {}
    for artifact in samples.values():
        facts = artifact.description
        if not (nfe := facts.get("nfe", 0)):
            continue
        density = facts["time_density"]
        trained = f", trained with t {density}" if density not in ("", "uniform") else ""
        step = facts["training_step"]  # 0 of a network from elsewhere
        name = f"{shown(facts['method'])}{trained}" + (f", step {step:,}" if step else "")
        if nfe > finest.get(name, (0,))[0]:
            finest[name] = nfe, artifact
    return finest


def by_method(papers: Iterable[Sequence[Finding]], patterns: Sequence[str]) -> dict[str, str]:
    """The pattern of each paper's key figure, by the method that its claims name."""
    return {
        finding.claim.method: pattern
        for found, pattern in zip(papers, patterns, strict=True)
        for finding in found
    }
