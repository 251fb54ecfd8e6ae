"""`python -m pipeline sweep NAME`: from the command line to an exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import results, track
from pipeline.errors import DONE, UsageError
from pipeline.record import FINISHED
from pipeline.session import Options, check_place, say
from pipeline.stage import Catalog
from pipeline.store import Store
from sweeps import record, space
from sweeps.check import Checked, check_resources, checked
from sweeps.outcome import Outcome, assigned
from sweeps.space import canonical
from sweeps.target import Sweep


def sweep(root: Callable[[], Catalog], options: Namespace) -> int:
    """Run a sweep."""
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: give at least 1")
    asked = _asked(options)
    if options.dry_run:
        store, checked_sweep = results.opened(options.store), checked(root(), asked)
        if options.resume:
            record.resumable(store, asked)
        print(_trials_text(checked_sweep, store))
        return DONE
    how = Options.of(options)
    from pipeline.supervise import supervise

    return supervise(lambda attempt: _attempt(root, options, asked, how, attempt), say)


def _attempt(
    root: Callable[[], Catalog], options: Namespace, asked: Sweep, how: Options, attempt: int
) -> int:
    """One attempt at a sweep, in a process of its own; later ones go on with the first's record."""
    from sweeps import session

    store, found = results.opened(options.store), checked(root(), asked)
    if attempt == 1:
        _check(found, store, how)
    begun = attempt > 1 and bool(record.same(store, asked))
    data = _data(asked, found, store, options.resume or begun)
    trials = [record.TrialRecord(**trial) for trial in data["sweep"]["trials"]]
    if data["state"] == FINISHED and not _outdated(data, trials, found):
        outcome = Outcome.of(asked.space, trials)
        print(f"nothing to do: sweep {data['id']} holds these results\n\n{outcome.text()}\n")
        print(outcome.verdict())
        track.flush_pending(store.local, uri=how.tracking_uri)
        return DONE
    return session.run(root, store, found, how, data)


def _asked(options: Namespace) -> Sweep:
    """The sweep that the command line describes."""
    if options.seeds is not None and options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: give at least 1")
    if options.trials is not None and options.trials < 1:
        raise UsageError(f"--trials {options.trials}: give at least 1")
    changes: dict[str, Any] = {
        "trials": options.trials,
        "seeds": options.seeds,
        "search": options.search,
        "objective": options.objective,
    }
    asked_space = space.read(options.name, options.space, **changes)
    if options.scheduler == "none":
        asked_space = asked_space.revised(halving=None)
    elif options.scheduler == "asha" and asked_space.halving is None:
        raise UsageError(
            f"--scheduler asha: the space of sweep '{options.name}' has no 'halving', which says "
            "what curve of what node is watched; give a space that has with --space FILE"
        )
    return Sweep(
        options.name, asked_space, options.preset or asked_space.preset, tuple(options.overrides)
    )


def _check(found: Checked, store: Store, how: Options) -> None:
    check_place(store, how)
    if how.address is None:
        check_resources(found, store, how.machine, f"--jobs {how.cores} here")


def _data(asked: Sweep, found: Checked, store: Store, resume: bool) -> dict[str, Any]:
    """The record to go on with: one that is finished, where nothing changed, or a new one."""
    if resume:
        return record.resumable(store, asked)
    for other in record.same(store, asked)[:1]:
        trials = [record.TrialRecord(**trial) for trial in other["sweep"]["trials"]]
        if other["state"] != FINISHED:
            say(f"sweep {other['id']} is the same and unfinished; --resume goes on with it")
        elif found.values and not _outdated(other, trials, found):
            return other
    resolved = found.first.resolved
    settings = resolved.settings.model_dump(mode="json")
    return record.new(asked, resolved.preset, settings, found.values)


def _outdated(
    data: Mapping[str, Any], trials: Sequence[record.TrialRecord], found: Checked
) -> bool:
    """Whether code or data changed since; not known of trials that a search made up."""
    known = {canonical(trial.values): trial for trial in trials}
    return any(
        record.outdated(data, known[canonical(values)], targets)
        for values, targets in zip(found.values, found.looked_at, strict=False)
        if canonical(values) in known
    )


def _trials_text(found: Checked, store: Store) -> str:
    lines, counts = [], []
    for trial in found.looked_at:
        plans = [target.plan(store) for target in trial]
        counts.append(len({p.nodes[n].key for p in plans for n in p.todo} - found.shared))
    for index, values in enumerate(found.values):
        name = record.trial_name(index)
        lines.append(f"{name}  {counts[index]:>3} nodes to do  {assigned(values)}")
    if not found.values:
        lines.append(
            f"{found.sweep.space.trials} trials, made up by the search; each at most "
            f"{max(counts)} nodes to do"
        )
    todo = {
        p.nodes[n].key: n
        for trial in found.looked_at
        for p in [target.plan(store) for target in trial]
        for n in p.todo
        if p.nodes[n].key in found.shared
    }
    before = f"once, before the trials: {', '.join(dict.fromkeys(todo.values())) or 'nothing'}"
    return "\n".join([*lines, before])
