"""What each command of `python -m pipeline` does."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline import estimates, looking, progress, record, results
from pipeline import plan as planning
from pipeline.capacity import Amount, counted
from pipeline.errors import DONE, NODE_FAILED, UsageError, raised_as
from pipeline.garbage import garbage
from pipeline.graph import Node
from pipeline.looking import Root, store_of
from pipeline.plan import Plan, Request
from pipeline.stage import Catalog
from pipeline.stage import resolve as resolve_name

if TYPE_CHECKING:
    from pipeline import session


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
        planned = planning.make(root(), store_of(options), _request(options), lenient=True)
        print(plan_text(planned, how.cores))
        return DONE
    return supervise(lambda attempt: _run(root(), options, how, attempt), session.say)


def _run(catalog: Catalog, options: Namespace, how: session.Options, attempt: int) -> int:
    """One attempt, in a process of its own."""
    from pipeline import session, track

    store, request = store_of(options), _request(options)
    if attempt > 1:
        request = replace(request, force=())
    plan = planning.make(catalog, store, request)
    finished = None if plan.todo else record.finished_run(store, plan)
    if finished is not None:
        print(f"nothing to do: run {finished['id']} holds these results")
        print(session.results_text(catalog, store, finished, how.tracking_uri))
        track.flush_pending(store.local, uri=how.tracking_uri)
        return DONE
    if attempt == 1:
        session.check(plan, store, how)
    return session.run(catalog, store, plan, request.overrides, how)


def plan(root: Root, options: Namespace) -> int:
    """Print the state of every node."""
    catalog, request = root(), _request(options)
    try:
        planned = planning.make(catalog, store_of(options), request, lenient=True)
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

    How long that is on so many cores, and on the GPUs here or one; at least, where the cost of some
    nodes is unknown.
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
        cost += f"{' and ' if cost else ''}{counted(unknown, 'node')} of unknown cost"
    if known:
        gpus = max(1, planning.local_gpus()) if any(node.node.gpus for node in todo) else 0
        took = progress.duration(plan.about_seconds(Amount(cores, gpus)))
        machine = " and ".join(filter(None, (counted(cores, "core"), counted(gpus, "GPU"))))
        cost += f", {'at least' if unknown else 'about'} {took} on {machine}"
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
        uri = track.default_uri(store_of(options).local)
    elif warning := track.check_chosen_uri(uri):
        print(f"warning: {warning}")
    return server.serve(uri, options.port)


def send(root: Root, options: Namespace) -> int:
    """Send to MLflow what runs could not."""
    from pipeline import track

    sent, left = track.send_pending(store_of(options).local)
    print(f"{sent} runs sent" if sent or left else "nothing to send: MLflow has every run")
    if not left:
        return DONE
    print(f"MLflow still lacks some of {', '.join(left)}; see runs/mlflow-pending.log in the store")
    print("a server is shown your credentials only where MLFLOW_TRACKING_URI names it")
    return NODE_FAILED


def gc(root: Root, options: Namespace) -> int:
    """Remove what no kept run uses."""
    store = store_of(options)
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

    from pipeline import config

    catalog = root()
    names = {"recipe": sorted(catalog.recipes), "preset": config.preset_names(catalog)}
    for parser in options.parsers.values():
        for action in parser._actions:  # which argparse names nowhere else
            action.choices = names.get(action.dest, action.choices)
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
    "runs": looking.runs,
    "show": looking.show,
    "claims": looking.claims,
    "logs": looking.logs,
    "report": looking.report,
    "compare": looking.compare,
    "export": looking.export,
    "reference": reference,
    "ui": ui,
    "send": send,
    "gc": gc,
    "fetch": fetch,
    "convert": convert,
    "completion": completion,
    "doctor": doctor,
}
