"""What a trial runs, what trials share, and what is refused before any of them starts."""

from dataclasses import replace

import pytest

from pipeline.capacity import Amount
from pipeline.errors import UsageError
from pipeline.stage import Workers
from pipeline.store import Store
from pipeline.yaml12 import parse, plain
from sweeps import target
from sweeps.check import check_resources, checked
from sweeps.target import nested, setting, shared_keys, targets
from tests.sweeps.spaces import sweep, write
from tests.toy.__main__ import main, root
from tests.toy.table import CATALOG


def test_only_what_the_metrics_need_is_run(tmp_path):
    metrics = {"value": {"node": "apply/a", "direction": "max"}}
    (found,) = targets(CATALOG, sweep(tmp_path, metrics=metrics), {"a.value": 2})
    assert list(found.graph.nodes) == ["number/a", "apply/a"]
    assert found.resolved.flat()["a.value"] == 2


def test_keys_are_those_of_a_plain_run(tmp_path):
    from pipeline.plan import Request, build

    (found,) = targets(CATALOG, sweep(tmp_path, "b.value=7"), {"a.value": 2})
    _, graph = build(CATALOG, Request("chain", overrides=("a.value=2", "b.value=7")))
    assert found.graph.keys == graph.keys


def test_shared_nodes_are_those_that_two_trials_need(tmp_path):
    parameters = {"a.value": {"grid": [1, 2]}, "apply.function": {"grid": ["double", "square"]}}
    found = checked(CATALOG, sweep(tmp_path, parameters=parameters))
    names = {
        name
        for trial in found.looked_at
        for t in trial
        for name, key in t.graph.keys.items()
        if key in found.shared
    }
    assert names == {"number/a", "number/b"}
    assert len(found.shared) == 3  # number/a is made with two values
    assert shared_keys([]) == set()


def test_seeds_make_one_target_each(tmp_path):
    found = targets(CATALOG, sweep(tmp_path, "seed=4", seeds=2), {"a.value": 2})
    assert [t.resolved.settings.seed for t in found] == [4, 5]
    assert found[0].graph.keys["apply/a"] == found[1].graph.keys["apply/a"]
    assert found[0].graph.keys["number/b"] != found[1].graph.keys["number/b"]


@pytest.mark.parametrize(
    "value", [1e-05, 3, "word", "010", "ö 😀", True, None, [1, 2e-7], ["a"], {"x": 1e-9}]
)
def test_a_value_reaches_the_settings_as_it_is(value):
    path, _, text = setting("x.y", value).partition("=")
    assert path == "x.y"
    assert plain(parse(text)) == value


def test_settings_become_a_preset_tree():
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_node_may_be_named_by_a_setting(tmp_path):
    metrics = {"value": {"node": "{missing.one}", "direction": "min"}}
    with pytest.raises(UsageError, match=r"names unknown setting 'missing\.one'"):
        targets(CATALOG, sweep(tmp_path, metrics=metrics), {"a.value": 2})
    assert target.filled("apply/{x}-{y.z}", {"x": "a", "y.z": 3}) == "apply/a-3"


BAD = {
    "error: unknown parameter 'a.valeu'; did you mean 'a.value'?": {
        "parameters": {"a.valeu": {"grid": [1, 2]}}
    },
    "error: total reports no metric 'fid' (it reports: value)": {
        "metrics": {"fid": {"node": "total", "direction": "min"}}
    },
    "total reports no metric 'valu'; did you mean 'value'?": {
        "metrics": {"valu": {"node": "total", "direction": "min"}}
    },
    "no node of the recipe fits 'totl', for value; did you mean 'total'?": {
        "metrics": {"value": {"node": "totl", "direction": "min"}}
    },
    "'number/*' fits 2 nodes (number/a, number/b)": {
        "metrics": {"value": {"node": "number/*", "direction": "min"}}
    },
    "error: trial value=501: a.value and b.value are both above 500": {
        "parameters": {"a.value": {"grid": [1, 501]}},
        "settings": {"b.value": 900},
    },
    "none of apply.shards changes what value needs": {
        "parameters": {"apply.shards": {"grid": [1, 2]}}
    },
    "trial-01 (value=1, shards=1) and trial-02 (value=1, shards=2) would run the same: "
    "apply.shards changes nothing that value needs there": {
        "parameters": {"a.value": {"grid": [1, 2]}, "apply.shards": {"grid": [1, 2]}}
    },
    "trial-01 (value=1) and trial-03 (value=1) would run the same: a.value changes": {
        "parameters": {"a.value": {"grid": [1, 2, 1.0]}}
    },
    "halving watches number/b, which value does not need": {
        "metrics": {"value": {"node": "apply/a", "direction": "min"}},
        "settings": {"b.steps": 9},
        "halving": {"node": "number/b", "metric": "loss", "grace": 5},
    },
    "number/a reports no metric 'loss' (it reports: value)": {
        "halving": {"node": "number/a", "metric": "loss", "grace": 5},
    },
    "halving.grace=9 is not below the 9 steps of number/a, so that no trial could be stopped": {
        "settings": {"a.steps": 9},
        "halving": {"node": "number/a", "metric": "loss", "grace": 9},
    },
    "seeded has unknown stage 'totla'; did you mean 'total'?": {"seeds": 2, "seeded": ["totla"]},
    "seeded: total has no seed; leave total out": {"seeds": 2, "seeded": ["total"]},
    "seeds=2 changes nothing: value does not depend on the setting seed": {
        "metrics": {"value": {"node": "apply/a", "direction": "min"}},
        "seeds": 2,
    },
    "resources.number.cpus to at most 1": {"settings": {"resources.number.cpus": 8}},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_ends_with_2_before_any_trial(words, tmp_path, capsys):
    arguments = ["sweep", "mine", "--space", write(tmp_path, **BAD[words]), "--jobs", "1"]
    code = main([*arguments, "--store", str(tmp_path / "store")], root=root)
    said = capsys.readouterr().err
    assert code == 2
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "store" / "runs").exists()


def test_a_share_of_the_steps_is_that_of_the_shortest_curve(tmp_path):
    halving = {"node": "number/a", "metric": "loss", "grace": 0.25}
    parameters = {"a.steps": {"grid": [40, 8, 80]}}
    asked = {"parameters": parameters, "settings": {"a.value": 3}}
    assert checked(CATALOG, sweep(tmp_path, **asked, halving=halving)).grace == 2
    assert checked(CATALOG, sweep(tmp_path, **asked, halving=halving | {"grace": 3})).grace == 3
    assert checked(CATALOG, sweep(tmp_path, **asked)).grace is None


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("a.value is swept by the space and set on the command line", ["a.value=3"]),
        ("a.value is swept by the space and a is set on the command line", ["a={value: 3}"]),
        ("--scheduler asha: the space of sweep 'mine' has no 'halving'", ["--scheduler", "asha"]),
        ("no sweep 'mine' to resume", ["--resume"]),
        ("no sweep 'mine' to resume", ["--resume", "--dry-run"]),
        ("--trials 0: give at least 1", ["--trials", "0"]),
        ("--seeds 0: give at least 1", ["--seeds", "0"]),
        ("objective 'x' is none of its metrics", ["--objective", "x"]),
    ],
)
def test_contradictions_on_the_command_line(words, arguments, tmp_path, capsys):
    space = write(tmp_path)
    store = ["--store", str(tmp_path / "store")]
    assert main(["sweep", "mine", "--space", space, *store, *arguments], root=root) == 2
    assert words in capsys.readouterr().err


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, capsys):
    space, store = write(tmp_path), tmp_path / "store"
    assert main(["sweep", "mine", "--space", space, "--store", str(store), "--dry-run"], root) == 0
    said = capsys.readouterr().out
    assert "trial-01    3 nodes to do  value=3" in said
    assert said.endswith("once, before the trials: number/b\n")
    assert not store.exists()


def test_a_dry_run_of_a_search_lists_no_trials_that_it_will_not_make(tmp_path, capsys):
    pytest.importorskip("optuna")
    rest = ["--search", "optuna", "--trials", "7", "--store", str(tmp_path / "store"), "--dry-run"]
    assert main(["sweep", "mine", "--space", write(tmp_path), *rest], root) == 0
    said = capsys.readouterr().out
    assert said.startswith("7 trials, made up by the search; each at most 3 nodes to do\n")
    assert "trial-0" not in said


def test_training_workers_count_as_cpus(tmp_path, monkeypatch):
    found = checked(CATALOG, sweep(tmp_path))
    assert found.concurrent(cpus=4, gpus=0) == 4
    assert found.concurrent(cpus=0.5, gpus=0) == 1
    node = found.looked_at[0][0].graph["number/a"]
    assert node.stage.workers(node.settings) is None
    object.__setattr__(node, "stage", replace(node.stage, workers=lambda s: Workers(2, 2, 1, "n")))
    assert found.concurrent(cpus=4, gpus=4) == 2
    assert found.concurrent(cpus=8, gpus=3) == 3
    store = Store(tmp_path / "s")
    check_resources(found, store, Amount(4, 1), "here")
    with pytest.raises(
        UsageError, match=r"starts 2 workers.*here has 1; set number.n to at most 1"
    ):
        check_resources(found, store, Amount(1, 1), "here")
