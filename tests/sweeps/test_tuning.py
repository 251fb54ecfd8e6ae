"""What Ray Tune is given: searches, early stopping, and a place for trials."""

import pytest

from sweeps.space import decoded
from sweeps.target import Sweep
from tests.sweeps.spaces import sweep

tuning = pytest.importorskip("sweeps.tuning")


def test_optuna_tries_what_it_knows_first_and_then_stays_inside(tmp_path):
    pytest.importorskip("optuna")
    parameters = {
        "total.offset": {"loguniform": [0.01, 10.0]},
        "a.value": {"randint": [1, 3]},
        "apply.function": {"choice": [["double"], ["square"]]},
        "b.value": {"choice": [5, 7]},
    }
    space = sweep(tmp_path, parameters=parameters, search="optuna", trials=30).space
    known = {"total.offset": 0.5, "a.value": 2, "apply.function": ["square"], "b.value": 7}
    search = tuning.optuna_search(space, [known])
    found = []
    for i in range(30):
        found.append(decoded(search.suggest(f"{i}")))
        search.on_trial_result(f"{i}", {"training_iteration": 1, "events": []})
        search.on_trial_complete(f"{i}", {"objective": abs(found[-1]["total.offset"] - 2)})
    assert found[0] == known
    assert all(0.01 <= v["total.offset"] <= 10 and v["b.value"] in (5, 7) for v in found)
    assert {v["a.value"] for v in found} == {1, 2, 3}
    assert {tuple(v["apply.function"]) for v in found} == {("double",), ("square",)}
    late = sorted(abs(v["total.offset"] - 2) for v in found[15:])
    early = sorted(abs(v["total.offset"] - 2) for v in found[1:11])
    assert late[len(late) // 2] < early[len(early) // 2], "it learns"


def test_early_stopping_never_ends_a_trial_that_only_grew_old(tmp_path):
    halving = {"node": "number/a", "metric": "loss", "grace": 5, "reduction": 2}
    asked: Sweep = sweep(tmp_path, halving=halving)
    scheduler = tuning._scheduler(asked.space, 5)
    assert scheduler._max_t == 10**9
    assert not scheduler._stop_last_trials
    assert tuning._scheduler(sweep(tmp_path).space, None) is None


def test_trials_take_no_cpu():
    (resource,) = tuning.BESIDE_DRIVER
    assert resource not in ("CPU", "GPU")
    assert tuning.BESIDE_DRIVER[resource] <= 0.001, "a thousand fit"
