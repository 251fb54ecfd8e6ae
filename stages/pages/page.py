"""The report's HTML: one self-contained file, light and dark, readable on a phone and in print."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.pages.figures import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --paper: #ffffff; --soft: #5c6773;
  --line: #d9dee4; --tint: #f4f6f8; --good: #1c7c4a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14181d; --soft: #9aa5b1;
  --line: #323a43; --tint: #1c2229; --good: #5cc98f; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
.rest > summary { font-weight: 600; } .side { display: none; }
.menu { position: sticky; top: 0; background: var(--paper); z-index: 1; }
@media (min-width: 78rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 62rem); justify-content: center; }
  main { margin: 0; } .menu { display: none; }
  .side { display: flex; flex-direction: column; flex-wrap: nowrap; position: sticky; top: 0;
    align-self: start; max-height: 100vh; overflow-y: auto; padding: 2rem 1rem; } }
.cards { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.card h3 { margin: 0 0 .3rem; } .card p { margin: .4rem 0; font-size: .9rem; }
.card svg { width: 100%; height: auto; max-height: 18rem; display: block; }
.chip { border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem; font-size: .8rem;
  margin-right: .4rem; white-space: nowrap; }
.pair { display: grid; gap: 0 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 1.6rem 0 .4rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
a { color: inherit; }
.lead, figcaption, .note { color: var(--soft); }
figure { margin: .8rem 0; } figcaption { font-size: .9rem; max-width: 46rem; }
figcaption details { margin: 0; font-size: 1em; }
figcaption details:not([open]) { display: inline-block; }
.halves .pictures { gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.halves { grid-column: 1 / -1; }
.halves:not(.beside) img { aspect-ratio: 2; object-fit: cover; object-position: top; }
p { margin: .6rem 0; }
.error { font-size: .82em; color: var(--soft); font-weight: 400; } td.best { font-weight: 700; }
td.long { min-width: 16rem; } td.close { font-style: italic; } .scores td { white-space: nowrap; }
.scores tr > :first-child { position: sticky; left: 0; background: var(--paper); }
figure svg { width: 100%; max-width: 40rem; height: auto; display: block; }
figure img { max-width: 100%; height: auto; image-rendering: pixelated; display: block; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.pictures figure, .panels figure { margin: 0; } .pictures img { width: 100%; }
.panels { display: grid; gap: 1.2rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; } td.number { white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
details { margin: .4rem 0; font-size: .9rem; } summary { cursor: pointer; color: var(--soft); }
.claims [data-label="claim"] { min-width: 18rem; } .claims [data-label="paper"] { min-width: 8rem; }
.claims [data-label="verdict"] { min-width: 9.5rem; } .claims .note { font-size: .8rem; }
@media (min-width: 62rem) { .halves.beside { grid-column: span 2; } }
@media (max-width: 40rem) { .claims thead { display: none; }
  .claims tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .claims td { display: block; min-width: 0 !important; border: 0; padding: .1rem 0; }
  .claims td:not([data-label="claim"])::before { content: attr(data-label) ": ";
    color: var(--soft); } .claims td:empty { display: none; } }
.good { color: var(--good); } .failed { color: var(--bad); } svg .failed { color: var(--bad); }
code, pre { font: .88em ui-monospace, SFMono-Regular, Menlo, monospace; }
pre { background: var(--tint); padding: .8rem; overflow-x: auto; }
@media print { main { max-width: none; } details:not(.rest), nav, .rest > summary { display: none; }
  .rest::details-content { content-visibility: visible; block-size: auto; }
  figure, table { break-inside: avoid; } }
"""


LONG = 60  # letters of a table's cell that get more room than their column's other cells ask for
FIGURES = 2  # of a section that are shown before anybody asks for more


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the report, in this order: text (HTML), tables, figures, panels, pictures.

    panels: small figures that stand side by side. more: pictures that stay folded until somebody
    asks for them. first: HTML that is shown behind the first sentences. whole: it is shown whole;
    others show two sentences and two figures, and the rest when somebody asks.
    """

    title: str
    text: str = ""
    tables: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    more: Sequence[Picture] = ()
    panels: Sequence[Figure] = ()
    first: str = ""
    whole: bool = False


def page(title: str, lead: str, sections: Sequence[Section], marker: str = "") -> str:
    """The whole file. `marker` stands where the engine fills in what belongs to one run."""
    run = f"<h2 id='run'>Run and graph</h2>{marker}" if marker else ""
    link = "<a href='#run'>Run and graph</a>" if marker else ""
    parts = [_section(index, section) for index, section in enumerate(sections)]
    links = "".join(f"<a href='#s{i}'>{html.escape(s.title)}</a>" for i, s in enumerate(sections))
    menu = f"<details class='menu'><summary>Contents</summary><nav>{links}{link}</nav></details>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<nav class='side' aria-label='Contents'>{links}{link}</nav><main>"
        f"<h1>{html.escape(title)}</h1><p class='lead'>{lead}</p>{menu}"
        f"{''.join(parts)}{run}</main></body></html>"
    )


def _section(index: int, section: Section) -> str:
    title = f"<h2 id='s{index}'>{html.escape(section.title)}</h2>"
    if section.whole:
        return "".join([title, section.text, section.first, *_rest(section)])
    short, long = first_sentences(section.text)
    shown, figures = section.figures[:FIGURES], section.figures[FIGURES:]
    pair = f"<div class='pair'>{''.join(map(figure, shown))}</div>" if shown else ""
    left = replace(section, figures=figures)
    rest = "".join([long, *_rest(left)])
    return "".join(
        [title, short, section.first, pair, _opened(_inside(left, long), rest) if rest else ""]
    )


def _rest(section: Section) -> Iterator[str]:
    """Everything of a section but its text."""
    yield from section.tables
    if section.figures:
        yield f"<div class='pair'>{''.join(map(figure, section.figures))}</div>"
    if section.panels:
        yield f"<div class='panels'>{''.join(map(figure, section.panels))}</div>"
    if section.pictures:
        yield pictures(section.pictures)
    if section.more:
        yield folded(f"{len(section.more)} more", pictures(section.more))


def _inside(section: Section, text: str) -> str:
    """What is folded, in words: `more: text, 2 tables, 3 figures`."""
    counts = {
        "table": sum(table.count("<table") for table in section.tables),
        "figure": len(section.figures) + len(section.panels),
        "picture": len(section.pictures) + len(section.more),
    }
    parts = ["text"] if text else []
    parts += [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n]
    return ": ".join(filter(None, ("more", ", ".join(parts))))


def _opened(words: str, body: str) -> str:
    """The rest of a section, behind words that say what it is; print shows it."""
    return f"<details class='rest'><summary>{words}</summary>{body}</details>"


def first_sentences(text: str, most: int = 2) -> tuple[str, str]:
    """HTML that begins with a paragraph -> its first sentences as a paragraph, and what is left.

    A sentence ends at a full stop before a capital letter where every tag that was opened is
    closed; text that begins with anything else is left whole.
    """
    begins = re.match(r"<p>(.*?)</p>", text, re.DOTALL)
    if begins is None:
        return "", text
    words, left = begins[1], text[begins.end() :]
    ends = [match.end() for match in re.finditer(r"[.;](?= +[A-Z<])", words)]
    whole = [end for end in ends if words[:end].count("<") == 2 * words[:end].count("</")]
    if len(whole) < most or not words[whole[most - 1] :].strip():
        return text[: begins.end()], left
    end = whole[most - 1]
    return f"<p>{words[:end]}</p>", f"<p>{words[end:].strip()}</p>{left}"


def pictures(shown: Sequence[Picture]) -> str:
    """Pictures side by side, as many as the width holds."""
    return f"<div class='pictures'>{''.join(map(_picture, shown))}</div>"


def figure(shown: Figure) -> str:
    """A figure with its caption and its numbers, folded."""
    numbers = ""
    if shown.rows:
        numbers = folded("numbers", table(shown.rows))
    caption = f"<figcaption>{html.escape(shown.caption)} {numbers}</figcaption>"
    label = f'role="img" aria-label="{html.escape(shown.caption, quote=True)}"'
    svg = shown.svg.replace('role="img"', label, 1)
    return f"<figure>{svg}{caption}</figure>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def folded(summary: str, body: str) -> str:
    """A part that stays folded until somebody opens it."""
    return f"<details><summary>{summary}</summary>{body}</details>"


@dataclass(frozen=True)
class Cell:
    """A table's cell that is HTML already; `look` is its class."""

    html: str
    look: str = ""


def score_cell(value: float, error: float | None, look: str = "") -> Cell:
    """A score with its error small behind it."""
    number, sign, rest = with_error(value, error).partition("\u00a0±")
    return Cell(f"{number}<span class=error>{sign}{rest}</span>" if sign else number, look)


def table(rows: Sequence[Sequence[Any]], look: str = "") -> str:
    """An HTML table of a class; the first row is its heading, numbers stand right."""
    heading, *body = rows
    numeric = [any(_is_number(row[i]) for row in body) for i in range(len(heading))]

    def cells(tag: str, row: Sequence[Any]) -> str:
        looks = (
            f" class={value.look}"
            if isinstance(value, Cell) and value.look
            else " class=number"
            if numeric[i]
            else " class=long"
            if isinstance(value, str) and len(value) > LONG
            else ""
            for i, value in enumerate(row)
        )
        pairs = zip(looks, row, strict=True)
        return "".join(f"<{tag}{look}>{_cell(value)}</{tag}>" for look, value in pairs)

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in body)
    return (
        f"<div class='wide'><table{f' class={look}' if look else ''}><thead><tr>"
        f"{cells('th', heading)}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Cell):
        return value.html
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value))


def with_error(value: float, error: float | None) -> str:
    """`8.41 ± 0.35`, both to the digits that the error supports."""
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    # No line breaks inside.
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:.{digits}f}\u00a0±\u00a0{error:.{digits}f}"


def facts(pairs: Mapping[str, Any]) -> str:
    """Name-value pairs as a table without heading."""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{_cell(value)}</td></tr>"
        for name, value in pairs.items()
    )
    return f"<table class='facts'>{rows}</table>"
