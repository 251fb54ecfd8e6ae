"""The driver's side of Ray Tune: the searches, early stopping, and what is heard of trials."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray.tune
from ray.tune.schedulers import ASHAScheduler

from sweeps.space import JSON, LISTS, Parameter, Space, encoded
from sweeps.trial import TRIAL, Shared, Trial
from sweeps.work import OBJECTIVE, RUNG, STEP

LOST_TRIALS = 3  # how often a trial whose machine was lost begins again
# One part in a thousand of the one that a head machine has: trials stay beside the driver, and
# take no CPU from the nodes that they wait for.
BESIDE_DRIVER = {"node:__internal_head__": 0.001}
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # nothing is printed but by us
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in settings stay what they were
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most reports bring news, not metrics
}


class Audience(Protocol):
    """Who is told of trials; `key` is Ray Tune's own name of one."""

    def begun(self, key: str, config: Mapping[str, Any]) -> None: ...

    def reported(self, key: str, result: Mapping[str, Any]) -> None: ...

    def ended(self, key: str, error: str) -> None: ...


class Hearing(ray.tune.Callback):
    """Passes on what Ray Tune says of trials."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune keeps a copy that nobody reads: resuming is ours."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._audience.begun(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        self._audience.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._audience.ended(trial.trial_id, "")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        self._audience.ended(trial.trial_id, lines[-1])


def fit(
    shared: Shared,
    indices: Sequence[int],
    concurrent: int,
    grace: int | None,
    folder: Path,
    audience: Audience,
) -> None:
    """Run the trials of a sweep under Ray Tune. Needs Ray connected.

    Args:
        indices: which trials of `shared.trials`; where that is empty, a search makes them up.
        concurrent: trials at a time.
        grace: the first step of the watched curve at which a trial may stop.
        folder: for Ray Tune's own files.
    """
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    space, listed = shared.sweep.space, bool(shared.trials)
    known = [json.loads(values) for values in shared.past]
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(Trial, shared=shared),
            ray.tune.PlacementGroupFactory([BESIDE_DRIVER]),
        ),
        param_space={TRIAL: ray.tune.grid_search(list(indices))} if listed else None,
        tune_config=ray.tune.TuneConfig(
            search_alg=None if listed else optuna_search(space, known),
            num_samples=1 if listed else space.trials,
            scheduler=_scheduler(space, grace),
            max_concurrent_trials=concurrent,
            # A trial that is stopped early ends with its actor, and its nodes with that.
            reuse_actors=space.halving is None,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[Hearing(audience)],
            failure_config=ray.tune.FailureConfig(max_failures=LOST_TRIALS),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()


def _scheduler(space: Space, grace: int | None) -> ASHAScheduler | None:
    if space.halving is None:
        return None
    return ASHAScheduler(
        time_attr=STEP,
        metric=RUNG,
        mode=space.halving.direction,
        grace_period=grace,
        reduction_factor=space.halving.reduction,
        max_t=10**9,
        stop_last_trials=False,
    )


def optuna_search(space: Space, known: Sequence[Mapping[str, Any]] = ()) -> Any:
    """Optuna's search (tree-structured Parzen estimator) over a space.

    Args:
        known: values of trials that an earlier session began: tried first, in this order.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        """Reports without the objective, which bring news alone, are nothing to it."""

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if OBJECTIVE in result:
                super().on_trial_result(trial_id, result)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return Search(
        dict(_distribution(parameter) for parameter in space.ranges()),
        metric=OBJECTIVE,
        mode=space.metrics[space.decides].direction,
        points_to_evaluate=[encoded(space, values) for values in known] or None,
        sampler=optuna.samplers.TPESampler(seed=space.search_seed),
    )


def _distribution(parameter: Parameter) -> tuple[str, Any]:
    from optuna import distributions as kinds

    path, values = parameter.path, parameter.values
    if parameter.kind in LISTS and parameter.plain:
        return path, kinds.CategoricalDistribution(values)
    if parameter.kind in LISTS:
        return f"{JSON}{path}", kinds.CategoricalDistribution([json.dumps(v) for v in values])
    low, high = values
    if parameter.kind == "randint":
        return path, kinds.IntDistribution(low, high)
    return path, kinds.FloatDistribution(low, high, log=parameter.kind == "loguniform")
