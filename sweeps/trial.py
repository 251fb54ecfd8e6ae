"""A trial as Ray Tune sees it: an actor that waits on the nodes it started and reports.

Nodes run as Ray tasks outside the trial's placement group, so a training inside one of them may
use Ray Train's local mode or workers of its own; the actor itself takes no CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.tune

from pipeline.errors import PipelineError, RayLostError
from pipeline.stage import Catalog
from pipeline.store import Store
from sweeps.space import canonical, decoded
from sweeps.target import Sweep
from sweeps.work import FAILED, OBJECTIVE, OLD, RUNG, STEP, Work

TRIAL = "trial"  # the place of a trial in the list, where there is one


@dataclass(frozen=True)
class Past:
    """What an earlier session knew of a trial.

    Args:
        reports: points of the watched curve, `(step, value)`.
        ended: whether it ended; its objective, if it has one.
    """

    reports: Sequence[tuple[int, float]] = ()
    ended: bool = False
    objective: float | None = None


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep are given.

    Args:
        trials: the values of every trial; empty where a search makes them up.
        past: what is known of trials, by their values.
    """

    root: Callable[[], Catalog]
    store: str
    sweep: Sweep
    board: Any
    git: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]] = ()
    past: Mapping[str, Past] = field(default_factory=dict)

    def values(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of a trial, from what Ray Tune hands it."""
        return self.trials[config[TRIAL]] if TRIAL in config else decoded(config)


class Trial(ray.tune.Trainable):
    """Runs a trial's work; `setup` and `reset_config` begin one, `cleanup` stops it."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        self._shared = shared
        self._work: Work | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._work = None
        self._values = self._shared.values(config)
        self._past = self._shared.past.get(canonical(self._values), Past())
        self._replay = list(self._past.reports)

    def step(self) -> dict[str, Any]:
        if self._replay:
            step, value = self._replay.pop(0)
            return {STEP: step, RUNG: value, OLD: True}
        if self._past.ended:
            known = self._past.objective
            return {"done": True, OLD: True} | ({} if known is None else {OBJECTIVE: known})
        try:
            if self._work is None:
                shared = self._shared
                store = Store(shared.store)
                self._work = Work(
                    shared.root(), store, shared.sweep, self._values, shared.board, shared.git
                )
            return self._work.next()
        except RayLostError:
            raise
        except PipelineError as error:
            return {"done": True, "events": [], "state": FAILED, "error": str(error), "nodes": []}

    def cleanup(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """All state is in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """All state is in the store."""
