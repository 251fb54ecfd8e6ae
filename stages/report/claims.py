"""The claims table: what the papers say, what this run measured, and the verdict that follows."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stage import resolve
from stages.pages import findings as rules

if TYPE_CHECKING:
    from stages.pages.findings import Effect, Finding
    from stages.pages.made import Made
    from stages.pages.page import Section

COLUMNS = ("method", "claim", "paper", "ours", "error", "verdict")
# Of several claims, where the verdict is said of one.
PLURAL = {rules.HOLDS: "hold", rules.FAILS: "do not hold", rules.OPEN: "stay inconclusive"}
KINDS = {rules.EXACT: "none: closed form", rules.BOUND: "none: a bound", "none": "not known"}
OUT_OF_SCOPE = (
    "Text-to-image (GenEval) is out of scope. The papers' numbers are of their own data and "
    "scale; here the question is whether the effect goes the same way."
)


def findings(made: Made, papers: Sequence[str]) -> list[Finding]:
    """Every claim of every paper, with what the run has to say of it.

    papers: `"module:function"` of each one's claims.
    """
    return [finding for place in papers for finding in resolve(place)(made)]


def section(found: Sequence[Finding]) -> Section:
    """The table, and every claim's numbers folded below it."""
    from stages.pages.page import Section

    counts = ", ".join(
        f"{number} {PLURAL.get(word, word) if number > 1 else word}"
        for word, number in rules.counted(found).items()
        if number
    )
    text = (
        f"<p>Of {len(found)} claims {counts}. Verdicts are computed: a claim <b>holds</b> or "
        "<b>does not hold</b> where the 95 % interval of its effect lies on one side of no effect, "
        "and is <b>inconclusive</b> where no effect is within it; over seeds the interval is "
        "Student's. A change in % is tested as the logarithm of its ratio, so that it does not "
        "matter which side is divided by which. An error over seeds of training holds the spread "
        "of repeated trainings, one over seeds of noise only that of sampling one training anew. "
        "Errors of single sets are of the samples alone, the reference being fixed: "
        "<b>paired</b> where both sides were made from the same noise and labels, so that what "
        "they share cancels, <b>independent</b> otherwise; such a verdict is of <b>this "
        f"network</b>, and another training may say otherwise. {_together(found)}{OUT_OF_SCOPE} "
        "Claims about time stand with <a href='#run'>the run</a>.</p>"
    )
    found = marked(found)
    measured = [finding for finding in found if finding.verdict != rules.ABSENT]
    absent = [finding for finding in found if finding.verdict == rules.ABSENT]
    tables = [table_of(measured)] if measured else []
    if absent:
        summary = f"<summary>{len(absent)} claims are not measured in this run</summary>"
        tables.append(f"<details>{summary}{table_of(absent)}</details>")
    if numbers := "".join(_details(finding) for finding in found if finding.details):
        tables.append(f"<details><summary>condition by condition</summary>{numbers}</details>")
    return Section("Claims", text, tables)


def marked(found: Sequence[Finding]) -> list[Finding]:
    """The findings, those marked that stay decided when all are looked at together (Holm)."""
    from stages.methods.decisions import holm

    tested = [place for place, one in enumerate(found) if one.probability is not None]
    stay = holm([found[place].probability for place in tested])
    together = {place for place, decided in zip(tested, stay, strict=True) if decided}
    return [
        replace(one, together=place in together and one.verdict in (rules.HOLDS, rules.FAILS))
        for place, one in enumerate(found)
    ]


def _together(found: Sequence[Finding]) -> str:
    """What the mark means, where there is one."""
    count = sum(finding.probability is not None for finding in found)
    if not any(finding.together for finding in marked(found)):
        return ""
    return (
        f"A verdict with a star stays when all {count} tests of this report are looked at together "
        "(Holm): the chance that one or more of the starred ones is false is at most 5 %. "
    )


def table_of(found: Sequence[Finding]) -> str:
    """Findings as an HTML table, which becomes a list on a phone."""
    heading = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(_cells(finding))}</tr>" for finding in found)
    return f"<table class='claims'><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"


def _cells(finding: Finding) -> Iterator[str]:
    looks = {rules.HOLDS: "good", rules.FAILS: "failed"}.get(finding.verdict, "note")
    more = [text for text in (finding.what, finding.note) if text]
    explained = f"<div class='note'>{html.escape('; '.join(more))}</div>" if more else ""
    for name, text in zip(COLUMNS, row(finding), strict=True):
        body = html.escape(text)
        if name == "claim":
            body += explained
        if name == "verdict" and finding.verdict == rules.TIMED:
            body = f"<a href='#run'>{body}</a>"
        if name == "verdict":
            body = f"<b class='{looks}'>{body}</b>"
        yield f"<td data-label='{name}'>{body}</td>"


def row(finding: Finding) -> tuple[str, ...]:
    """A finding as plain texts, one for each of COLUMNS."""
    claim, effect = finding.claim, finding.effect
    said = finding.verdict
    if said == rules.ABSENT:
        recipes = rules.either(claim.recipes)
        said = f"{rules.ABSENT} (recipe {recipes})"
    elif effect is not None:
        interval = "" if finding.instead else _interval(effect)
        said = " ".join(filter(None, (said + "*" * finding.together, interval)))
        said += f": {finding.instead}" if finding.instead else ""
        said += f", {effect.scope}" if effect.scope else ""
    return (claim.method, claim.text, claim.paper, value(effect), kind(effect), said)


def value(effect: Effect | None) -> str:
    """An effect with its error and unit; its sign always said where it is a change."""
    from stages.pages.page import with_error

    if effect is None:
        return ""
    sign = "+" if effect.unit and effect.value > 0 else ""
    if effect.error_kind == rules.BOUND:
        sign = "at most " if effect.value < 0 else f"at least {sign}"
    return f"{sign}{with_error(effect.value, effect.error)}\u00a0{effect.unit}".strip()


def _interval(effect: Effect) -> str:
    """`[-30, -12] %`: the 95 % interval."""
    if effect.interval is None:
        return ""
    low, high = (f"{end:.3g}" for end in effect.interval)
    return f"[{low}, {high}]\u00a0{effect.unit}".strip()


def kind(effect: Effect | None) -> str:
    """What kind of error an effect has, in words."""
    if effect is None:
        return ""
    if effect.error_kind in (rules.SEEDS, rules.TRAININGS, rules.NOISES):
        beside = f" (samples alone {effect.beside:.2g})" if effect.beside is not None else ""
        return f"{effect.num_seeds} {effect.error_kind}{beside}"
    return KINDS.get(effect.error_kind, f"{effect.error_kind}, one seed")


def _details(finding: Finding) -> str:
    from stages.pages.page import table

    title = html.escape(f"{finding.claim.method}: {finding.claim.text}")
    return f"<h3>{title}</h3><p>{html.escape(finding.what)}</p>{table(finding.details)}"


def write(folder: Path, found: Sequence[Finding]) -> None:
    """`claims.json`: every finding with its details."""
    text = json.dumps([finding.plain() for finding in marked(found)], indent=1)
    (folder / "claims.json").write_text(text, encoding="utf-8")


def table(found: Sequence[Finding]) -> dict[str, Any]:
    """The claims as columns and data, the form in which MLflow shows tables."""
    heading = (*COLUMNS, "value", "standard_error", "what", "note")
    data = []
    for one in marked(found):
        number = (one.effect.value, one.effect.error) if one.effect else (None, None)
        data.append([*row(one), *number, one.what, one.note])
    return {"columns": list(heading), "data": data}
