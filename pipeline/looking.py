"""The commands that look at runs: list, show, claims, logs, report, compare, export."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import progress, provenance, record, results
from pipeline.errors import DONE, UsageError, printable
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store

Root = Callable[[], Catalog]


def store_of(options: Namespace) -> Store:
    """The store that a command names, or this folder's own."""
    return results.opened(options.store)


def runs(root: Root, options: Namespace) -> int:
    """List all runs."""
    damaged: list[str] = []
    all_runs = results.runs(store_of(options), damaged.append)
    for text in damaged:
        print(f"warning: {text}")
    if not all_runs:
        print("no runs yet; begin with: python -m pipeline run full")
    for run in all_runs:
        states = [node["state"] for node in run.data["nodes"].values()]
        done = sum(state in (progress.DONE, progress.REUSED) for state in states)
        changes = printable(" ".join(run.data["overrides"]))
        preset = printable(run.data["preset"])
        print(
            f"{run.id:<36} {run.data['recipe']}/{preset:<12} {run.state:<12} "
            f"{done}/{len(states)} nodes  {run.data['created'][:19]}  {changes}".rstrip()
        )
    return DONE


def show(root: Root, options: Namespace) -> int:
    """Show one run."""
    run = results.find(options.run, store_of(options))
    data = run.data
    if options.node is not None:
        run[options.node]  # one that there is not is said here
    names = [options.node] if options.node is not None else by_stage(data["nodes"])
    if options.json:
        print(json.dumps(_shown(run, names), indent=1))
        return DONE
    begun, preset = data["created"][:19], printable(data["preset"])
    print(f"{run.id}: {data['recipe']}/{preset}, {run.state}, begun {begun} UTC")
    code = printable(provenance.code(data["git"], 12))
    print(f"command: {printable(data['command'])}\ncode: {code}\n")
    width = max(map(len, names), default=0)
    for name in names:
        node = run[name]
        seconds = node.data["seconds"]
        took = progress.duration(seconds) if seconds is not None else ""
        said = node.damage or "  ".join(results.measured(node.metrics)) or node.data["error"]
        print(f"{name:<{width}}  {node.state:<8} {took:>12}  {printable(said)}")
        for what, rows in node.speeds.items() if options.node is not None else ():
            print(f"  {printable(what)} {record.in_words(rows)}")
    report = run.store.run_path(run.id) / "report.html"
    if report.is_file():
        print(f"\nreport: {report}")
    return DONE


def by_stage(nodes: Mapping[str, Any]) -> list[str]:
    """Names of nodes, those of one stage together, stages in the order of their first node."""
    stages = list(dict.fromkeys(node["stage"] for node in nodes.values()))
    return sorted(nodes, key=lambda name: stages.index(nodes[name]["stage"]))


def _shown(run: results.Run, names: Sequence[str]) -> dict[str, Any]:
    """A run, or some of its nodes, as plain data."""
    nodes = {
        name: {
            "stage": run[name].data["stage"],
            "state": run[name].state,
            "seconds": run[name].data["seconds"],
            "key": run[name].data["key"],
            "metrics": run[name].metrics,
            "speeds": run[name].speeds,
            "error": run[name].damage or run[name].data["error"],
        }
        for name in names
    }
    keys = ("id", "recipe", "preset", "created", "command", "git")
    return {key: run.data[key] for key in keys} | {"state": run.state, "nodes": nodes}


def claims(root: Root, options: Namespace) -> int:
    """Print what a run says of the papers' claims."""
    run = results.find(options.run, store_of(options))
    place = root().claims
    if not place:
        raise UsageError("there is nothing here that claims anything")
    print(resolve_name(place)(run, "markdown" if options.markdown else "text"))
    return DONE


def logs(root: Root, options: Namespace) -> int:
    """Print a node's log."""
    store = store_of(options)
    run = results.find(options.run, store)
    node = run[options.node]
    path = record.log_path(store.run_path(run.id), options.node)
    if not path.is_file():
        print(f"{options.node} printed nothing in run {run.id} ({node.state})")
        return DONE
    print(printable(path.read_text(encoding="utf-8", errors="replace")), end="")
    return DONE


def report(root: Root, options: Namespace) -> int:
    """Write a run's report and say where it is."""
    from pipeline import publish

    store = store_of(options)
    run = results.find(options.run, store)
    try:
        path = publish.report(root(), store, run.data)
    except PermissionError as error:
        raise UsageError(
            f"the report of run {run.id} cannot be written: {error.filename}: {error.strerror}; "
            "copy the store to a place of your own and name that with --store"
        ) from error
    if path is None:
        raise UsageError(f"run {run.id} has nothing to report yet")
    print(path)
    if options.open:
        import webbrowser

        webbrowser.open(path.as_uri())
    return DONE


def compare(root: Root, options: Namespace) -> int:
    """Show runs side by side, in the terminal and as a page."""
    from rich.console import Console

    from pipeline import compare as comparing

    store, catalog = store_of(options), root()
    comparison = comparing.compare(catalog, comparing.find(options.runs, store))
    # A pipe has no width; a table that breaks its lines is of no use there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    comparing.show(comparison, console)
    if options.no_html or not catalog.compare_page:
        return DONE
    beside = store.run_path(comparison.runs[0].id) / comparing.file_name(comparison.runs)
    path = Path(options.html).expanduser() if options.html else beside
    try:
        if not options.html and path.is_symlink():
            path.unlink()  # laid there by others: what it leads to stays
        path.write_text(resolve_name(catalog.compare_page)(comparison), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path} cannot be written: {error.strerror}") from error
    print(f"html: {path}")
    return DONE


def export(root: Root, options: Namespace) -> int:
    """Write a node's samples as files."""
    run = results.find(options.run, store_of(options))
    resolve_name(root().export)(run, options)
    return DONE
