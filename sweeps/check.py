"""What can be refused, or settled, before any trial starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipeline import config
from pipeline import plan as planning
from pipeline.capacity import Amount
from pipeline.errors import UsageError, nearest
from pipeline.stage import Catalog
from pipeline.store import Store
from sweeps.outcome import assigned
from sweeps.record import trial_name
from sweeps.space import LISTS, canonical, within
from sweeps.target import Sweep, Target, shared_keys, targets

PROBES = 8  # trials of a search that are looked at beforehand


@dataclass(frozen=True)
class Checked:
    """A sweep whose trials were looked at.

    Args:
        values: of every trial; of a search that makes them up, empty.
        looked_at: the targets of every trial, or of some that a search might make.
        shared: keys of the nodes that are run once, before the trials.
    """

    sweep: Sweep
    values: tuple[Mapping[str, Any], ...]
    looked_at: tuple[tuple[Target, ...], ...]
    shared: frozenset[str]

    @property
    def first(self) -> Target:
        return self.looked_at[0][0]

    @property
    def grace(self) -> int | None:
        """The first step at which early stopping ends a trial: that of the shortest curve."""
        graces = [target.grace for trial in self.looked_at for target in trial]
        return None if graces[0] is None else min(graces)

    def concurrent(self, cpus: float, gpus: float) -> int:
        """Trials at a time: as many as their largest nodes leave room for."""
        nodes = [
            node
            for trial in self.looked_at
            for target in trial
            for node in target.graph
            if target.graph.keys[node.name] not in self.shared
        ]
        room = [cpus / max(1.0, *(node.cpus for node in nodes))]
        wanted = max(node.gpus for node in nodes)
        if wanted:
            room.append(gpus / wanted)
        return max(1, int(min(room)))


def checked(catalog: Catalog, sweep: Sweep) -> Checked:
    """Build every trial.

    Raises:
        UsageError: one sentence on what is wrong with the space, a trial, or a metric.
    """
    space = sweep.space
    if space.search == "optuna" and find_spec("optuna") is None:
        raise UsageError(
            'search: optuna needs Optuna: pip install "diffusion-bench[optuna]", or set '
            "search: random"
        )
    _check_paths(catalog, sweep)
    made_up = space.search == "optuna"
    values = _probes(sweep) if made_up else space.values()
    trials = tuple(tuple(_targets(catalog, sweep, chosen)) for chosen in values)
    if len(trials) > 1 and len({target.results for targets in trials for target in targets}) == len(
        trials[0]
    ):
        raise UsageError(
            f"none of {', '.join(space.paths)} changes what {space.decides} needs: all trials "
            f"would give the same; sweep settings that {trials[0][0].measured[space.decides].name} "
            "depends on"
        )
    if not made_up:
        _check_different(sweep, values, trials)
    first = trials[0]
    if len(first) > 1 and len({target.results for target in first}) == 1:
        where = f"nodes of stage {', '.join(space.seeded)}" if space.seeded else "the setting seed"
        raise UsageError(
            f"seeds={space.seeds} changes nothing: {space.decides} does not depend on {where}"
        )
    shared = shared_keys(trials, least=max(2, len(trials)) if made_up else 2)
    return Checked(sweep, () if made_up else tuple(values), trials, frozenset(shared))


def _check_different(
    sweep: Sweep, values: Sequence[Mapping[str, Any]], found: Sequence[Sequence[Target]]
) -> None:
    """Raise UsageError, with both names, where two trials would run the same nodes."""
    seen: dict[tuple[Any, ...], int] = {}
    for index, trial in enumerate(found):
        other = seen.setdefault(tuple(target.results for target in trial), index)
        if other == index:
            continue
        pairs = [(path, values[other][path], values[index][path]) for path in sweep.space.paths]
        differing = [path for path, one, two in pairs if canonical(one) != canonical(two)]
        raise UsageError(
            f"{trial_name(other)} ({assigned(values[other])}) and {trial_name(index)} "
            f"({assigned(values[index])}) would run the same: {', '.join(differing)} changes "
            f"nothing that {', '.join(sweep.space.metrics)} needs there; leave it out, or give the "
            "trials that differ as points"
        )


def _targets(catalog: Catalog, sweep: Sweep, values: Mapping[str, Any]) -> list[Target]:
    try:
        return targets(catalog, sweep, values)
    except UsageError as error:
        if _builds(catalog, sweep, values) or not _builds(catalog, sweep, {}):
            raise  # every trial is wrong in this way
        raise UsageError(f"trial {assigned(values)}: {error}") from error


def _builds(catalog: Catalog, sweep: Sweep, values: Mapping[str, Any]) -> bool:
    try:
        planning.build(catalog, sweep.request(values))
    except UsageError:
        return False
    return True


def _check_paths(catalog: Catalog, sweep: Sweep) -> None:
    known = list(config.known_keys(catalog.settings))
    for path in sweep.space.paths:
        if not _is_setting(path, known):
            raise UsageError(f"unknown parameter '{path}'{nearest(path, known)}")
    for text in sweep.overrides:
        path = text.partition("=")[0].strip()
        if path in sweep.space.paths:
            raise UsageError(
                f"{path} is swept by the space and set on the command line; leave it out, or take "
                "it from the parameters of a space of your own (--space FILE)"
            )
        for swept in sweep.space.paths:
            if within(path, swept) or within(swept, path):
                raise UsageError(
                    f"{swept} is swept by the space and {path} is set on the command line, and one "
                    "is part of the other; leave one out"
                )


def _is_setting(path: str, known: Sequence[str]) -> bool:
    """Whether it is a known key, or one below a setting whose own keys are free."""
    if path in known:
        return True
    parents = [key for key in known if path.startswith(f"{key}.")]
    return bool(parents) and not any(key.startswith(f"{max(parents, key=len)}.") for key in known)


def _probes(sweep: Sweep) -> list[dict[str, Any]]:
    """Trials that a search might make: the ends of every range, or the values of every list."""
    lists = [
        parameter.values if parameter.kind in LISTS else (parameter.values[0], parameter.values[-1])
        for parameter in sweep.space.ranges()
    ]
    count = min(PROBES, max(map(len, lists)))
    return [
        {
            path: values[i % len(values)]
            for path, values in zip(sweep.space.paths, lists, strict=True)
        }
        for i in range(count)
    ]


def check_resources(found: Checked, store: Store, have: Amount, where: str) -> None:
    """Refuse trials that can never start.

    Raises:
        UsageError: a node asks for more than there is.
    """
    for trial in found.looked_at:
        for target in trial:
            planning.check_resources(target.plan(store), have, where)
