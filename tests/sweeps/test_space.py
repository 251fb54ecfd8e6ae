"""Search spaces: what they draw, and one sentence for what cannot be."""

import math

import pytest

from pipeline.errors import UsageError
from stages.catalog import CATALOG
from sweeps import space
from sweeps.check import checked
from sweeps.space import Parameter, decoded, encoded
from sweeps.target import Sweep
from tests.sweeps.spaces import CHAIN, write


def read(folder, **changes):
    return space.read("mine", write(folder, **changes))


def test_a_grid_is_the_product_in_the_order_written(tmp_path):
    found = read(
        tmp_path, parameters={"a.value": {"grid": [3, 1]}, "apply.shards": {"choice": [1, 2]}}
    )
    assert [tuple(values.values()) for values in found.values()] == [(3, 1), (3, 2), (1, 1), (1, 2)]
    assert found.paths == ("a.value", "apply.shards")


def test_a_large_grid_is_sampled_and_stays_in_order(tmp_path):
    grid = {"a.value": {"grid": list(range(100))}}
    some = [v["a.value"] for v in read(tmp_path, parameters=grid, trials=10).values()]
    assert len(set(some)) == 10
    assert some == sorted(some)
    assert some == [v["a.value"] for v in read(tmp_path, parameters=grid, trials=10).values()]
    other = read(tmp_path, parameters=grid, trials=10, search_seed=1)
    assert some != [v["a.value"] for v in other.values()]


def test_random_values_stay_when_more_are_asked_for(tmp_path):
    parameters = {"total.offset": {"uniform": [2, 3]}, "a.value": {"randint": [1, 4]}}
    few = read(tmp_path, parameters=parameters, search="random", trials=5).values()
    many = read(tmp_path, parameters=parameters, search="random", trials=50).values()
    assert many[:5] == few
    alone = {"total.offset": parameters["total.offset"]}
    single = read(tmp_path, parameters=alone, search="random", trials=5).values()
    assert [v["total.offset"] for v in single] == [v["total.offset"] for v in few]
    assert {v["a.value"] for v in many} == {1, 2, 3, 4}, "both ends are drawn"
    assert all(2 <= v["total.offset"] <= 3 for v in many)


def test_loguniform_has_as_many_values_in_every_decade(tmp_path):
    parameters = {"total.offset": {"loguniform": [1e-4, 1.0]}}
    found = read(tmp_path, parameters=parameters, search="random", trials=2000).values()
    decades = [math.floor(math.log10(v["total.offset"])) for v in found]
    counts = [decades.count(d) for d in (-4, -3, -2, -1)]
    assert min(counts) > 400  # 500 are expected, with a standard deviation of 19


def test_a_small_space_is_used_up_without_repeats(tmp_path):
    parameters = {"a.value": {"choice": [1, 2]}, "apply.shards": {"choice": [1, 2]}}
    found = read(tmp_path, parameters=parameters, search="random", trials=10).values()
    assert len(found) == 4


def test_what_a_search_cannot_hold_travels_as_text(tmp_path):
    parameters = {"a.value": {"choice": [1, 2]}, "b.value": {"choice": [[1, 2], [3]]}}
    found = read(tmp_path, parameters=parameters, search="optuna", trials=2)
    values = {"a.value": 2, "b.value": [1, 2]}
    assert encoded(found, values) == {"a.value": 2, "json:b.value": "[1, 2]"}
    assert decoded(encoded(found, values)) == values


WRONG = {
    "it is empty; give either parameters or points": {"parameters": {}},
    "grid has no values": {"parameters": {"a.value": {"grid": []}}},
    "grid has 2 twice": {"parameters": {"a.value": {"grid": [2, 3, 2]}}},
    "unknown kind 'unifrom'; did you mean 'uniform'?": {
        "parameters": {"a.value": {"unifrom": [1, 2]}}
    },
    "a.value is uniform and search=grid": {"parameters": {"a.value": {"uniform": [1, 2]}}},
    "uniform from 2 to 1 is empty": {
        "parameters": {"a.value": {"uniform": [2, 1]}},
        "search": "random",
        "trials": 2,
    },
    "loguniform from 0 reaches zero": {
        "parameters": {"a.value": {"loguniform": [0, 1]}},
        "search": "random",
        "trials": 2,
    },
    "search=random needs trials": {"search": "random"},
    "a.value is both a parameter and in settings": {"settings": {"a.value": 1}},
    "seed is a parameter and seeds=2": {"parameters": {"seed": {"grid": [1, 2]}}, "seeds": 2},
    "objective 'valeu' is none of its metrics; did you mean 'value'?": {"objective": "valeu"},
    "unknown key 'metrics.value.nod'; did you mean 'node'?": {
        "metrics": {"value": {"node": "total", "direction": "min", "nod": 1}}
    },
    "metrics.value.direction: input should be 'min' or 'max'": {
        "metrics": {"value": {"node": "total", "direction": "down"}}
    },
    "recipe is missing": {"recipe": None},
    "lacks b.value; every point sets the same": {
        "parameters": None,
        "points": [{"a.value": 1}, {"a.value": 2, "b.value": 1}],
    },
    "points has {'a.value': 1, 'b.value': 2} twice; leave one out": {
        "parameters": None,
        "points": [{"a.value": 1, "b.value": 2}, {"b.value": 2, "a.value": 1}],
    },
    "a is a parameter and a.value is a parameter, and one is part of the other": {
        "parameters": {"a": {"grid": [{"value": 1}, {"value": 2}]}, "a.value": {"grid": [1, 2]}}
    },
    "a.value is a parameter and a is in settings, and one is part": {"settings": {"a": {}}},
    "a is a parameter and a.value is in settings, and one is part": {
        "parameters": {"a": {"grid": [{"value": 1}, {"value": 2}]}},
        "settings": {"a.value": 1},
    },
    "halving: grace=2.5 is no step": {
        "halving": {"node": "number/a", "metric": "loss", "grace": 2.5}
    },
    "it has both": {"points": [{"a.value": 1}]},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_space_is_refused_in_one_sentence(words, tmp_path):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, **WRONG[words])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"unknown sweep 'trian'; did you mean 'train'\?"):
        space.read("trian")
    with pytest.raises(UsageError, match=r"space file .*none.yaml cannot be read"):
        space.read("mine", "none.yaml")


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".", ".a", "-a", "a b", "a\\b", "x" * 101])
def test_a_name_that_is_no_name_of_a_folder_is_refused(name, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("{}")
    with pytest.raises(UsageError, match="runs and folders are called after it"):
        space.read(name, str(file))


HEAD = "recipe: chain\nmetrics: {value: {node: total, direction: max}}\n"


def written(tmp_path, text):
    file = tmp_path / "s.yaml"
    file.write_text(HEAD + text)
    return space.read("lr-0.1_a+b", str(file))


def test_numbers_of_a_space_are_those_of_yaml_1_2(tmp_path):
    found = written(
        tmp_path,
        "search: random\ntrials: 1e1\nparameters:\n  a.level: {loguniform: [1e-4, 1e-2]}\n"
        "  a.value: {randint: ['1e2', 1e3]}\n  a.steps: {choice: 1e1}\n"
        "  a.marks: {choice: [010]}\n",
    )
    ends = [(p.path, p.values) for p in found.ranges()]
    assert ends[:2] == [("a.level", (1e-4, 1e-2)), ("a.value", (100, 1000))]
    assert isinstance(ends[1][1][0], int)
    assert ends[2:] == [("a.steps", (10.0,)), ("a.marks", ("010",))]
    assert found.trials == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search: random\ntrials: 2\nparameters: {a.level: {uniform: [0, .inf]}}", "two numbers"),
        ("search: random\ntrials: 2\nparameters: {a.level: {uniform: [0, yes]}}", "two numbers"),
        ("search: random\ntrials: 2\nparameters: {a.level: {uniform: 3}}", "has no values"),
        ("search: random\ntrials: 010\nparameters: {a.value: {grid: 3}}", "trials=010 .* line 4"),
        ("parameters: {a.value: {grid: 3}}\nparameters: {b.value: {grid: 3}}", "twice, in line 3"),
        ("parameters: {a.value: {grid: [1]}, a.value: {grid: [2]}}", "'a.value' twice in line 3"),
        ("parameters: {a.value: 3}", "parameters.a.value=3 .*give names with values"),
    ],
)
def test_a_space_that_is_written_wrong_is_refused(text, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        written(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_parameter_knows_what_is_plain():
    assert Parameter.of("x", {"grid": [1, "a", None, True, 0.5]}).plain
    assert not Parameter.of("x", {"grid": [[1], [2]]}).plain


@pytest.mark.parametrize("name", space.names())
@pytest.mark.parametrize(("preset", "trials"), [("smoke", None), ("digits", 3)])
def test_every_named_space_fits_the_recipes(name, preset, trials):
    found = checked(CATALOG, Sweep(name, space.read(name, trials=trials, seeds=2), preset))
    first, second = found.looked_at[0]
    assert first.results != second.results
    extractors = [t.graph.keys.get("extractor") for t in (first, second)]
    assert extractors[0] == extractors[1], "scores of all seeds are by the same protocol"
    assert len(found.values) > 1
    assert found.shared, "something is made once for all trials"
    assert len({target.results for trial in found.looked_at for target in trial}) > 1


def test_the_toy_space_is_a_space(tmp_path):
    assert read(tmp_path).recipe == CHAIN["recipe"]
