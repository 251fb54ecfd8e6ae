"""A run's claims in words: the screen that ends a run, and tables for a page in Markdown.

Both read what the report left in the run's folder, `claims.json` and the table of scores, so that
nothing is computed and little is imported.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.results import measured
from pipeline.shown import Summary

if TYPE_CHECKING:
    from pipeline.results import Run

FILE, SCORES = "claims.json", "tables/scores.json"
ALL = "all"  # what the tag `data` says of a training that no limit shortened
# As in stages.pages.findings, which importing would cost more than all of this.
HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "inconclusive", "not measured in this run"
VERDICTS = (HOLDS, FAILS, OPEN)
FIRST = 12  # nodes shown of a run without claims

Finding = Mapping[str, Any]


def claims(run: Run) -> list[Finding]:
    """What a run said of every claim, as `claims.json` has it; empty where it has no report.

    Raises:
        UsageError: the file cannot be read.
    """
    return _kept(run, FILE) or []


def _kept(run: Run, file: str) -> Any:
    """What a file of the run's folder holds; None where it is absent.

    Raises:
        UsageError: it cannot be read.
    """
    path = run.store.run_path(run.id) / file
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"{path} is damaged; write it again with: python -m pipeline report {run.id}"
        ) from error


def by_method(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The findings of each paper, in the report's order."""
    methods: dict[str, list[Finding]] = {}
    for finding in found:
        methods.setdefault(finding["claim"]["method"], []).append(finding)
    return methods


def ending(run: Run) -> str:
    """One screen: a line or two a paper, the best score with its floor, and what to try next."""
    found = claims(run)
    if not found:
        return _first(run)
    lines, absent = [], []
    for method, ones in by_method(found).items():
        if tested := [finding for finding in ones if finding["verdict"] in VERDICTS]:
            lines += _paper(method, tested)
        else:
            absent.append(method)
    if lines and absent:
        lines.append(f"{'not measured':<14} {', '.join(absent)}")
    if any(finding["together"] for finding in found):
        lines.append("* stays when all claims are looked at together (Holm)")
    lines += [*([""] if lines else []), *_best(run), *_next(run, found)]
    return "\n".join(lines).rstrip()


def _paper(method: str, tested: Sequence[Finding]) -> Iterator[str]:
    """Its first claim that was measured, with what came of it, and how the others went."""
    first = tested[0]
    text = first["claim"]["text"]
    yield f"{method:<14} {text[0].upper()}{text[1:]}"
    yield f"{'':<14} {verdict(first)}{_others(tested)}"


def _others(tested: Sequence[Finding]) -> str:
    if len(tested) == 1:
        return ""
    counts = Counter(finding["verdict"] for finding in tested)
    words = {HOLDS: "hold", FAILS: "do not", OPEN: "open"}
    said = ", ".join(f"{counts[word]} {words[word]}" for word in VERDICTS if counts[word])
    return f"   (of {len(tested)}: {said})"


def verdict(finding: Finding) -> str:
    """`holds*: -32 % [-40, -24], these networks`; what it follows from where not the effect."""
    effect = finding["effect"]
    said = finding["verdict"] + "*" * bool(finding["together"])
    if finding["verdict"] not in VERDICTS or effect is None:
        return said
    if instead := finding.get("instead"):
        return f"{said}: {instead}"
    unit = f" {effect['unit']}" if effect["unit"] else ""
    if effect["interval"] is None:
        side = "at most " if effect["value"] < 0 else "at least "
        bound = side if effect["error_kind"] == "bound" else ""
        return f"{said}: {bound}{effect['value']:.3g}{unit} ({finding['what']})"
    low, high = effect["interval"]
    scope = f", {effect['scope']}" if effect["scope"] else ""
    return f"{said}: {effect['value']:+.3g}{unit} [{low:.3g}, {high:.3g}]{scope}"


def summary(run: Run) -> Summary:
    """The run for MLflow: a number a claim that was measured, its verdict, and the best score."""
    metrics, tags, said = {}, {}, []
    for finding in claims(run):
        if finding["verdict"] not in VERDICTS:
            continue
        name = metric_of(finding)
        tags[name], claim = verdict(finding), finding["claim"]
        said.append(f"- {claim['method']}: {claim['text']}: {tags[name]}")
        if finding["effect"] is not None:
            metrics[name] = finding["effect"]["value"]
    if ranked := _ranked(run):
        metrics["best fid"] = ranked[0]["value"]
        tags["best fid"] = f"{_said(ranked[0])}, {ranked[0]['set']}, {ranked[0]['protocol']}"
        said += ["", f"Best: {tags['best fid']}"]
    return Summary(metrics, tags, "\n".join(said).strip())


def metric_of(finding: Finding) -> str:
    """`grid alone: CSFlow in pct`, in letters that MLflow takes; a narrow column shows 16."""
    claim, effect = finding["claim"], finding["effect"]
    unit = f" in {effect['unit']}".replace("%", "pct") if effect and effect["unit"] else ""
    # Without its two plus signs DPM-Solver++ would be another solver.
    text = (claim.get("short") or claim["text"]).replace("++", "pp")
    return re.sub(r"[^A-Za-z0-9 .:_-]", "", f"{text}: {claim['method']}{unit}")[:250]


def _ranked(run: Run) -> list[Mapping[str, Any]]:
    """The FID of sets that were measured alike, the least first, as rows of the report's table.

    Of several protocols and numbers of samples it is the one with the most sets, of equally many
    the one with more samples. Networks trained on a limited part of the images, which may copy
    them, are left out.
    """
    table = _kept(run, SCORES) or {"columns": [], "data": []}
    rows = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    groups: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] == "fid" and not _is_limited(run, row["set"]):
            groups.setdefault((row["N"], row["protocol"], row["details"]), []).append(row)
    most = max(groups, key=lambda alike: (len(groups[alike]), alike[0]), default=None)
    return sorted(groups.get(most, ()), key=lambda row: row["value"])


def _is_limited(run: Run, samples: str) -> bool:
    """Whether the network of a node of samples saw only some of the training images."""
    tags = run.data["nodes"].get(samples, {}).get("tags", {})
    return tags.get("data", ALL) != ALL


def _said(row: Mapping[str, Any]) -> str:
    """`fid 2.25 ± 0.1 (floor 0.6)`."""
    numbers = {"fid": "value", "fid_standard_error": "error", "fid_floor": "floor"}
    return measured({name: row[of] for name, of in numbers.items() if row[of] is not None})[0]


def _best(run: Run) -> Iterator[str]:
    """The set of samples with the least FD, what real images get in its place, and among which."""
    if ranked := _ranked(run):
        row, many = ranked[0], len(ranked)
        among = f", of {many} sets of samples" if many > 1 else ""
        yield f"best:    {_said(row)}, {row['set']}{among} under {row['protocol']}"


def _next(run: Run, found: Sequence[Finding]) -> Iterator[str]:
    """The recipe that measures most of what this run did not."""
    absent = Counter(
        recipe
        for finding in found
        if finding["verdict"] == ABSENT
        for recipe in finding["claim"]["recipes"]
        if recipe != run.data["recipe"]
    )
    yield f"numbers: python -m pipeline show {run.id}"
    if absent:
        recipe, number = absent.most_common(1)[0]
        preset = run.data["preset"]
        words = f" --preset {preset}" if preset != "digits" else ""
        own = [one for one in run.data["overrides"] if one.startswith(("data.", "extractor."))]
        words += "".join(f" {shlex.quote(one)}" for one in own)
        what = f"{number} claims that this run did not" if number > 1 else "one more claim"
        yield f"next:    python -m pipeline run {recipe}{words}    measures {what}"


def _first(run: Run) -> str:
    """Of a run without claims: what its first nodes measured, and how to see the others."""
    lines = run.text().splitlines()
    more = f"... and {len(lines) - FIRST} more: python -m pipeline show {run.id}"
    return "\n".join([*lines[:FIRST], *([more] if len(lines) > FIRST else [])])


def markdown(run: Run) -> str:
    """One table a paper, as Markdown; claims that were not measured stand below it in a line.

    Raises:
        UsageError: the run has no claims.
    """
    from stages.pages.findings import either

    methods = _methods(run)
    command = f"python -m pipeline run {run.data['recipe']} --preset {run.data['preset']}"
    parts = [f"From `{command}` (run {run.id}). 95 % intervals; * stays under Holm's adjustment."]
    for method, found in methods.items():
        parts.append(f"**{method}**")
        tested = [finding for finding in found if finding["verdict"] in VERDICTS]
        if tested:
            rows = [_row(finding) for finding in tested]
            parts.append(
                "\n".join(["| claim | paper | here | verdict |", "|---|---|---|---|", *rows])
            )
        absent = [finding for finding in found if finding["verdict"] == ABSENT]
        if absent:
            texts = "; ".join(finding["claim"]["text"] for finding in absent)
            recipes = sorted({name for one in absent for name in one["claim"]["recipes"]})
            parts.append(f"Not measured here (recipe {either(recipes)}): {texts}.")
    return "\n\n".join(parts)


def _row(finding: Finding) -> str:
    said, _, number = verdict(finding).partition(": ")
    cells = (finding["claim"]["text"], finding["claim"]["paper"], number, said)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def text(run: Run) -> str:
    """The claims as lines, each with its verdict.

    Raises:
        UsageError: the run has no claims.
    """
    lines = []
    for method, found in _methods(run).items():
        lines.append(method)
        for one in found:
            lines += [f"  {one['claim']['text']}", f"    {verdict(one)}"]
    return "\n".join(lines)


def claims_as(run: Run, form: str) -> str:
    """A run's claims as `text` or `markdown`."""
    return {"text": text, "markdown": markdown}[form](run)


def _methods(run: Run) -> dict[str, list[Finding]]:
    if methods := by_method(claims(run)):
        return methods
    raise UsageError(f"run {run.id} has no claims; write them: python -m pipeline report {run.id}")
