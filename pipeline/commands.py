"""What each command of `python -m pipeline` does."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import estimates, progress, record, results
from pipeline import plan as planning
from pipeline.errors import DONE, NODE_FAILED, UsageError, printable, raised_as
from pipeline.garbage import garbage
from pipeline.graph import Node
from pipeline.plan import Plan, Request
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline import session

Root = Callable[[], Catalog]


def _store(options: Namespace) -> Store:
    return results.opened(options.store)


def _request(options: Namespace) -> Request:
    return Request(
        recipe=options.recipe,
        preset=options.preset,
        overrides=tuple(options.overrides),
        only=tuple(options.only),
        start=tuple(options.start),
        end=tuple(options.end),
        force=tuple(options.force),
    )


def run(root: Root, options: Namespace) -> int:
    """Run a recipe."""
    from pipeline import session
    from pipeline.supervise import supervise

    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: give at least 1")
    how = session.Options.of(options)
    if options.dry_run:
        planned = planning.make(root(), _store(options), _request(options), lenient=True)
        print(plan_text(planned, how.cores))
        return DONE
    return supervise(lambda attempt: _run(root(), options, how, attempt), session.say)


def _run(catalog: Catalog, options: Namespace, how: session.Options, attempt: int) -> int:
    """One attempt, in a process of its own."""
    from pipeline import session, track

    store, request = _store(options), _request(options)
    if attempt > 1:
        request = replace(request, force=())
    plan = planning.make(catalog, store, request)
    finished = None if plan.todo else record.finished_run(store, plan)
    if finished is not None:
        print(f"nothing to do: run {finished['id']} holds these results")
        print(session.results_text(catalog, store, finished, how.tracking_uri))
        track.flush_pending(store.local)
        return DONE
    if attempt == 1:
        session.check(plan, store, how)
    return session.run(catalog, store, plan, request.overrides, how)


def plan(root: Root, options: Namespace) -> int:
    """Print the state of every node."""
    catalog, request = root(), _request(options)
    try:
        planned = planning.make(catalog, _store(options), request, lenient=True)
    except UsageError:
        _say_what_it_takes(catalog, request)
        raise
    states = {name: node.state for name, node in planned.nodes.items()}
    if options.mermaid:
        print(planned.graph.mermaid(states))
    elif options.json:
        print(json.dumps(plan_data(planned), indent=1))
    else:
        print(plan_text(planned, len(os.sched_getaffinity(0))))
    return DONE


def _say_what_it_takes(catalog: Catalog, request: Request) -> None:
    """Where a plan fails because something is yet to be placed: all that is, and what all of it
    takes, if much."""
    try:
        _, graph = planning.build(catalog, request, lenient=True)
        taken = estimates.text(estimates.by_stage(graph, graph.nodes))
    except UsageError:
        return
    if taken:
        print(taken)
    said = dict.fromkeys(why for node in graph if (why := _is_absent(node)))
    if len(said) > 1:
        print("\n  ".join(["to be placed before it runs:", *said]))


def _is_absent(node: Node) -> str:
    try:
        node.stage.files(node.settings)
    except UsageError as error:
        return str(error)
    return ""


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    nodes = {
        name: {
            "state": node.state,
            "reason": node.reason,
            "key": node.key,
            "seconds": node.seconds,
            "inputs": list(node.node.upstream),
        }
        for name, node in plan.nodes.items()
    }
    data = {"recipe": plan.recipe, "preset": plan.resolved.preset, "nodes": nodes}
    if taken := estimates.by_stage(plan.graph, plan.todo):
        data["estimates"] = estimates.data(taken)
    return data


def plan_text(plan: Plan, cores: int) -> str:
    """A plan as aligned lines, with what it will cost as far as earlier runs tell.

    Where the cost of every node is known: how long that is on so many cores.
    """
    width = max(map(len, plan.nodes), default=0)
    lines = []
    for name, node in plan.nodes.items():
        cost = progress.duration(node.seconds) if node.seconds is not None else "?"
        lines.append(f"{name:<{width}}  {node.state:<8} {cost:>12}  {node.reason}")
    todo = [plan.nodes[name] for name in plan.todo]
    known = sum(node.seconds or 0 for node in todo)
    unknown = sum(node.seconds is None for node in todo)
    cost = f"{progress.duration(known)} of work" if known else ""
    if unknown:
        cost += f"{', ' if cost else ''}{unknown} nodes of unknown cost"
    elif known:
        took = progress.duration(plan.about_seconds(cores))
        cost += f", about {took} on {cores} core{'s' if cores > 1 else ''}"
    cost = f" ({cost})" if cost else ""
    lines.append(f"\n{len(plan.nodes) - len(todo)} cached, {len(todo)} to do{cost}")
    if taken := estimates.text(estimates.by_stage(plan.graph, plan.todo)):
        lines.append(f"\n{taken}")
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def config(root: Root, options: Namespace) -> int:
    """Print the resolved settings with their origins."""
    catalog = root()
    if options.schema:
        print(json.dumps(catalog.settings.model_json_schema(), indent=1))
        return DONE
    resolved, _ = planning.build(catalog, _request(options))
    flat = resolved.flat()
    width = max(map(len, flat))
    for key, value in flat.items():
        shown = json.dumps(value)
        print(f"{key:<{width}} = {shown:<24} # {resolved.origins[key]}")
    return DONE


def runs(root: Root, options: Namespace) -> int:
    """List all runs."""
    damaged: list[str] = []
    all_runs = results.runs(_store(options), damaged.append)
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
    run = results.find(options.run, _store(options))
    data = run.data
    if options.node is not None:
        run[options.node]  # one that there is not is said here
    names = [options.node] if options.node is not None else by_stage(data["nodes"])
    if options.json:
        print(json.dumps(_shown(run, names), indent=1))
        return DONE
    revision = data["git"].get("revision", "unknown")[:12]
    dirty = " with uncommitted changes" if data["git"].get("dirty") else ""
    begun, preset = data["created"][:19], printable(data["preset"])
    print(f"{run.id}: {data['recipe']}/{preset}, {run.state}, begun {begun} UTC")
    print(f"command: {printable(data['command'])}\ncode: {printable(revision)}{dirty}\n")
    width = max(map(len, names), default=0)
    for name in names:
        node = run[name]
        seconds = node.data["seconds"]
        took = progress.duration(seconds) if seconds is not None else ""
        said = node.damage or "  ".join(results.measured(node.metrics)) or node.data["error"]
        print(f"{name:<{width}}  {node.state:<8} {took:>12}  {printable(said)}")
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
            "error": run[name].damage or run[name].data["error"],
        }
        for name in names
    }
    keys = ("id", "recipe", "preset", "created", "command", "git")
    return {key: run.data[key] for key in keys} | {"state": run.state, "nodes": nodes}


def claims(root: Root, options: Namespace) -> int:
    """Print what a run says of the papers' claims."""
    run = results.find(options.run, _store(options))
    place = root().claims
    if not place:
        raise UsageError("there is nothing here that claims anything")
    print(resolve_name(place)(run, "markdown" if options.markdown else "text"))
    return DONE


def logs(root: Root, options: Namespace) -> int:
    """Print a node's log."""
    store = _store(options)
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

    store = _store(options)
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

    store, catalog = _store(options), root()
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
    run = results.find(options.run, _store(options))
    resolve_name(root().export)(run, options)
    return DONE


def reference(root: Root, options: Namespace) -> int:
    """Make a reference of images."""
    resolve_name(root().reference)(options)
    return DONE


def ui(root: Root, options: Namespace) -> int:
    """Serve MLflow's UI."""
    from pipeline import track
    from pipeline.track import ui as server

    uri = track.chosen_uri(options.tracking_uri)
    if uri is None:
        uri = track.default_uri(_store(options).local)
    elif warning := track.check_chosen_uri(uri):
        print(f"warning: {warning}")
    return server.serve(uri, options.port)


def send(root: Root, options: Namespace) -> int:
    """Send to MLflow what runs could not."""
    from pipeline import track

    sent, left = track.send_pending(_store(options).local)
    print(f"{sent} runs sent" if sent or left else "nothing to send: MLflow has every run")
    if not left:
        return DONE
    print(f"MLflow still lacks some of {', '.join(left)}; see runs/mlflow-pending.log in the store")
    return NODE_FAILED


def gc(root: Root, options: Namespace) -> int:
    """Remove what no kept run uses."""
    store = _store(options)
    doomed, kept_runs = garbage(store, options.keep, print)
    if doomed and not options.dry_run:
        store.check_writable()
    total = 0
    for name in doomed:
        size = store.size(name)
        total += size
        print(f"{'would remove' if options.dry_run else 'removed'} {name} ({size / 2**20:.1f} MiB)")
        if not options.dry_run:
            store.remove(name)
    if not options.dry_run:
        store.drop_locks()
    verb = "would be freed" if options.dry_run else "freed"
    print(f"{total / 2**20:.1f} MiB {verb}; {kept_runs} runs kept")
    return DONE


def fetch(root: Root, options: Namespace) -> int:
    """Get data, or check those that are there."""
    from pipeline import fetching

    fetching.fetch(root(), options.name, options.to)
    return DONE


def convert(root: Root, options: Namespace) -> int:
    """Write a network's file anew in formats that hold no code."""
    place = root().convert
    if not place:
        raise UsageError("there is nothing here that converts networks")
    with raised_as(UsageError):
        print(f"written to {resolve_name(place)(options.file, options.to)}")
    return DONE


def completion(root: Root, options: Namespace) -> int:
    """Print a script that completes `diffusion-bench` in a shell."""
    import shtab

    options.parser.prog = "diffusion-bench"
    print(shtab.complete(options.parser, options.shell))
    return DONE


def doctor(root: Root, options: Namespace) -> int:
    """Say what works here and what is missing."""
    from pipeline import doctor as checks

    uri = results.default_store() if options.store is None else options.store
    return checks.examine(root(), uri, options.verify)


COMMANDS: Mapping[str, Callable[[Root, Namespace], int]] = {
    "run": run,
    "plan": plan,
    "config": config,
    "runs": runs,
    "show": show,
    "claims": claims,
    "logs": logs,
    "report": report,
    "compare": compare,
    "export": export,
    "reference": reference,
    "ui": ui,
    "send": send,
    "gc": gc,
    "fetch": fetch,
    "convert": convert,
    "completion": completion,
    "doctor": doctor,
}
