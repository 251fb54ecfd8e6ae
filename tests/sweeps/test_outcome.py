"""Means, errors, the best trial, whether that is sure, and the preset that repeats it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipeline import plan as planning
from pipeline import publish
from pipeline.plan import Request
from pipeline.store import Store
from stages.artifacts.scores import Row, Scores
from stages.artifacts.scores import write as write_scores
from stages.methods.protocol import Influence, Protocol, Score
from sweeps import page, record
from sweeps.check import checked
from sweeps.ending import preset_text
from sweeps.outcome import Outcome, Value, assigned, short, within_noise
from sweeps.record import FINISHED, LAGGED, SweepRecord, TrialRecord
from sweeps.scored import scores_in
from sweeps.work import FAILED
from tests.inline import run_all
from tests.sweeps.spaces import sweep, write
from tests.toy.__main__ import main, root
from tests.toy.table import CATALOG

PROTOCOL = Protocol(
    name="p",
    extractor="e",
    extractor_hash="h",
    resize="none",
    reference="r",
    num_reference=100,
    num_samples=100,
)


def trial(index, values, *measured, **more):
    state = FINISHED if measured else more.pop("state")
    found = {"value": list(measured)} if measured else {}
    reported = {"value": [None] * len(measured)} if measured else {}
    return TrialRecord(record.trial_name(index), values, state, found, reported, **more)


def outcome(folder, *trials, **changes):
    return Outcome.of(sweep(folder, **changes).space, trials)


def test_several_seeds_give_a_mean_and_its_standard_error():
    value = Value.of([1.0, 2.0, 3.0, 6.0], [None] * 4)
    assert value.mean == 3
    # Deviations -2, -1, 0, 3: variance 14/3, over 4 values.
    assert value.error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert str(value) == "3.0 ± 1.1"


def test_one_seed_has_the_error_that_its_node_reports():
    assert Value.of([2.0], [0.25]) == Value(2.0, 0.25)
    assert Value.of([2.0], [None]).error is None
    assert str(Value.of([2.0], [])) == "2"


def test_what_is_no_number_can_be_shown_and_is_never_the_best(tmp_path):
    assert str(Value(1.5, math.nan)) == "1.5 ± nan"
    assert str(Value(1.5, math.inf)) == "1.5 ± inf"
    assert str(Value(math.nan, 0.1)) == "nan ± 0.10"
    values = (math.nan, 5.0, math.nan, 3.0)
    trials = [trial(i, {"a.value": i}, value) for i, value in enumerate(values)]
    for direction, best in (("min", "trial-04"), ("max", "trial-02")):
        metrics = {"value": {"node": "total", "direction": direction}}
        found = outcome(tmp_path, *trials, metrics=metrics)
        assert found.best.trial.name == best
        assert [math.isnan(row.metrics["value"].mean) for row in found.rows] == [False] * 2 + [
            True
        ] * 2


def test_noise_is_the_interval_of_the_difference():
    assert within_noise(Value(0, 3), Value(9.7, 4))  # the error of the difference is 5
    assert not within_noise(Value(0, 3), Value(9.9, 4))
    # Seeds are paired with themselves: they differ much more than the trials do.
    pair = [Value.of([level + more for level in (1, 5, 9)], []) for more in (0, 0.5)]
    assert not within_noise(*pair)
    wobbling = Value.of([1.0, 5.9, 9.5], [])
    assert within_noise(pair[0], wobbling)
    assert not within_noise(Value(0, 3), Value(0, None)), "nothing is known"


@pytest.mark.parametrize(("direction", "order"), [("min", [2, 0, 1]), ("max", [1, 0, 2])])
def test_trials_are_ranked_in_the_direction_of_the_objective(tmp_path, direction, order):
    trials = [trial(0, {"a.value": 3}, 5.0), trial(1, {"a.value": 1}, 9.0)]
    trials += [trial(2, {"a.value": 2}, 1.0), trial(3, {"a.value": 7}, state=FAILED, error="x: y")]
    metrics = {"value": {"node": "total", "direction": direction}}
    found = outcome(tmp_path, *trials, metrics=metrics)
    assert [row.trial for row in found.rows] == [*(trials[i] for i in order), trials[3]]
    assert found.table()[1][-1] == "best"
    assert found.table()[-1][-1] == "failed: x: y"


def test_the_verdict_says_when_the_best_is_within_noise(tmp_path):
    first, close = trial(0, {"a.value": 3}, 1.0, 1.2), trial(1, {"a.value": 1}, 1.2, 1.3)
    far = trial(2, {"a.value": 2}, 5.0, 5.1)
    found = outcome(tmp_path, far, close, first)
    assert "Within noise: not separated at 95 % from trial-02." in found.verdict()
    assert [line[-1] for line in found.table()[1:]] == ["best", "within noise of the best", ""]
    assert "Separated from the next, trial-03" in outcome(tmp_path, far, first).verdict()
    alone = outcome(tmp_path, trial(0, {"a.value": 3}, 1.0), trial(1, {"a.value": 1}, 2.0))
    assert "error is not known" in alone.verdict()
    assert outcome(tmp_path, trial(0, {"a.value": 1}, state=FAILED)).verdict() == (
        "No trial finished."
    )


def test_a_stopped_trial_says_where(tmp_path):
    halving = {"node": "number/a", "metric": "loss", "grace": 2}
    stopped = trial(0, {"a.value": 3}, state=LAGGED, reports=[(2, 0.5), (9, 0.25)])
    found = outcome(tmp_path, stopped, halving=halving)
    assert found.table()[1][-1] == "stopped at step 9 (loss 0.25)"


def test_names_are_as_short_as_they_can_be():
    paths = ("train.lr", "train.network.width", "other.network.width")
    assert list(short(paths).values()) == ["lr", "train.network.width", "other.network.width"]
    assert assigned({"a.x": 0.00012345, "b.y": ["p", "q"]}) == "x=0.0001234, y=p, q"


def test_best_yaml_repeats_the_best_trial_from_the_cache(tmp_path):
    asked = sweep(tmp_path, "b.value=7", "seed=4", settings={"total.offset": 1.5}, seeds=2)
    found, store = checked(CATALOG, asked), Store(tmp_path / "store")
    run_all(CATALOG, store, asked.request({"a.value": 2}))
    ended = Outcome.of(asked.space, [trial(0, {"a.value": 2}, 1.0, 2.0)])
    path = tmp_path / "best.yaml"
    path.write_text(preset_text(asked, found, ended, "x"))
    assert yaml.safe_load(path.read_text()) == {
        "extends": "plain",
        "total": {"offset": 1.5},
        "b": {"value": 7},
        "seed": 4,
        "a": {"value": 2},
    }
    assert planning.make(CATALOG, store, Request("chain", str(path))).todo == []


def entry(folder, asked, *trials):
    found = checked(CATALOG, asked)
    settings = found.first.resolved.settings.model_dump(mode="json")
    data = record.new(asked, "plain", settings, found.values)
    written = SweepRecord(Store(folder / "store"), data)
    written.trials = list(trials)
    return written


def test_the_page_stands_alone_and_holds_every_trial(tmp_path):
    parameters = {"a.value": {"grid": [3, 1]}, "apply.function": {"grid": ["double", "square"]}}
    asked = sweep(tmp_path, parameters=parameters)
    values = [{"a.value": v, "apply.function": f} for v in (1, 3) for f in ("double", "square")]
    trials = [trial(i, v, float(i), i + 0.5) for i, v in enumerate(values[:3])]
    trials.append(trial(3, values[3], state=FAILED, error="number/a: <broken>"))
    written = entry(tmp_path, asked, *trials)
    text = page.write(written, Outcome.of(asked.space, trials)).read_text()
    assert text.count("<svg") == 4, "two parameters, parallel coordinates, the graph"
    assert all(name in text for name in ("trial-01", "trial-02", "trial-03", "trial-04"))
    assert "&lt;broken&gt;" in text
    assert "http://www.w3.org" in text.replace("https", "http")
    assert "src=" not in text.replace("src='data:", "")
    assert "<link rel='icon' href='data:,'>" in text


def test_the_command_report_gives_a_sweeps_own_page(tmp_path):
    asked = sweep(tmp_path)
    written = entry(tmp_path, asked, trial(0, {"a.value": 3}, 1.0))
    store = Store(tmp_path / "store")
    assert publish.report(CATALOG, store, written.data) is None
    path = page.write(written, Outcome.of(asked.space, written.trials))
    assert publish.report(CATALOG, store, written.data) == path


def test_a_sweep_is_resumed_by_what_it_asks(tmp_path):
    asked = sweep(tmp_path)
    written = entry(tmp_path, asked, TrialRecord("trial-01", {"a.value": 3}))
    store = Store(tmp_path / "store")
    written.save()
    assert record.resumable(store, asked)["id"] == written.id
    other = sweep(tmp_path, "b.value=9")
    with pytest.raises(Exception, match=f"repeat those of {written.id}"):
        record.resumable(store, other)


def test_a_finished_sweep_is_shown_again_until_something_changes(tmp_path, capfd):
    parameters = {"a.value": {"grid": [1, 2]}}
    asked = sweep(tmp_path, parameters=parameters)
    trials = [trial(0, {"a.value": 1}, 6.0), trial(1, {"a.value": 2}, 8.0)]
    written, found = entry(tmp_path, asked, *trials), checked(CATALOG, asked)
    for one, targets in zip(trials, found.looked_at, strict=True):
        written.expect(one, targets, found.shared)
        assert not record.outdated(written.data, one, targets)
    written.end("finished")
    name, space = asked.name, write(tmp_path, parameters=parameters)
    store = ["--store", str(tmp_path / "store")]
    assert main(["sweep", name, "--space", space, *store], root=root) == 0
    said = capfd.readouterr().out
    assert f"nothing to do: sweep {written.id} holds these results" in said
    assert "trial-01  1        6      best" in said
    (target,) = found.looked_at[0]
    written.data["nodes"]["trial-01/total"]["key"] = "another"
    assert record.outdated(written.data, trials[0], [target])


def test_values_read_back_are_the_same_trial(tmp_path):
    asked = sweep(tmp_path, parameters={"a.value": {"grid": [1, 2]}})
    written = entry(tmp_path, asked, *[TrialRecord("trial-01", {"a.value": 1})])
    again = written.trial({"a.value": 1})
    assert again is written.trials[0]
    assert written.trial({"a.value": 2}).name == "trial-02"
    assert len(written.trials) == 2


def scored(values, samples):
    """FD-like scores of 100 samples each, of which their mean is the value."""
    psi = (values - values.mean()).astype("float32")
    error = float(psi.std(ddof=1) / len(psi) ** 0.5)
    of = Influence(psi, np.zeros(len(psi), np.int64), samples)
    kinds = {"error": error, "error_kind": "influence", "influence": of}
    return Score(metric="value", value=float(values.mean()), protocol=PROTOCOL, **kinds)


def test_trials_from_the_same_noise_are_paired_as_in_reports(tmp_path):
    """What samples have in common is no noise between trials; by their own errors all would be."""
    shared, random = np.random.default_rng(0).normal(5, 1, 100), np.random.default_rng(1)
    values = [shared + more + random.normal(0, 0.05, 100) for more in (0.0, 0.005, 0.1)]
    trials = [trial(i, {"a.value": i}, float(of.mean())) for i, of in enumerate(values)]
    space = sweep(tmp_path).space
    scores = {"same": [scored(of, "noise 0") for of in values]}
    scores["other"] = [scored(of, f"noise {i}") for i, of in enumerate(values)]
    rivals = {}
    for name, found in scores.items():
        by_trial = {one.name: (score,) for one, score in zip(trials, found, strict=True)}
        said = Outcome.of(space, trials, lambda _, one, by_trial=by_trial: by_trial[one.name])
        rivals[name] = [row.trial.name for row in said.rivals]
        assert said.best.metrics["value"].error == pytest.approx(0.1, rel=0.3)
    assert len(rivals["same"]) == 1
    assert len(rivals["other"]) == 2


def test_scores_are_read_back_from_what_trials_made(tmp_path):
    """Of the last set, as the node reports it; nothing where a node stores no scores."""
    kept = [scored(np.arange(50.0) + more, "noise 0") for more in (0, 1)]
    facts = ("method", "euler", "none", "uniform_t", 5, 1, "uniform", 0)
    write_scores(
        tmp_path, rows := [Row(f"set{i}", *facts, one) for i, one in enumerate(kept)], rows
    )
    opened = {"evaluate": Scores(tmp_path, None), "train": object()}
    store = SimpleNamespace(open=lambda stage, key: opened[stage])
    space = sweep(tmp_path).space
    for stages, found in ((["evaluate"], [kept[1]]), (["evaluate", "train"], [])):
        one = trial(0, {"a.value": 1}, 1.0)
        one.artifacts = {"value": [(stage, "key") for stage in stages]}
        assert list(scores_in(store)(space, one)) == found
    (read,) = scores_in(store)(space, replace(one, artifacts={"value": [("evaluate", "key")]}))
    assert np.array_equal(read.influence.psi, kept[1].influence.psi)
