"""Runs side by side: settings, nodes and measurements, in any state and of any recipe."""

import io

import pytest

from pipeline import commands, compare, results
from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.store import Store
from tests.inline import run_all
from tests.pipeline.test_commands import command
from tests.toy.table import CATALOG


def recorded(store, run_id, overrides=(), recipe="chain", made=True):
    """A run's record, with its artifacts where it is said to have finished."""
    from pipeline import config
    from pipeline.plan import Request

    request = Request(recipe, overrides=tuple(overrides))
    settings = config.resolve(CATALOG, None, overrides).settings
    graph = Graph(CATALOG.recipes[recipe](settings), CATALOG.exclude_sources)
    if made:
        run_all(CATALOG, store, request)
    nodes = {
        node.name: {
            "stage": node.stage.name,
            "key": graph.keys[node.name],
            "upstream": [],
            "tags": {},
            "state": "done" if made else "queued",
            "seconds": 1.5 if made else None,
            "error": "",
        }
        for node in graph
    }
    data = {
        "id": run_id,
        "recipe": recipe,
        "preset": "plain",
        "overrides": list(overrides),
        "command": "python -m pipeline",
        "created": f"2026-06-0{len(store.runs()) + 1}T00:00:00",
        "state": "finished" if made else "failed",
        "settings": settings.model_dump(mode="json"),
        "git": {},
        "nodes": nodes,
    }
    store.write_run(run_id, data)
    return results.find(run_id, store)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def printed(of):
    from rich.console import Console

    stream = io.StringIO()
    compare.show(of, Console(file=stream, width=200))
    return stream.getvalue()


def test_what_differs_and_what_is_the_same(store):
    a = recorded(store, "a-run")
    b = recorded(store, "b-run", ["b.value=9"])
    of = compare.compare(CATALOG, [a, b])
    assert of.settings == (compare.Changed("b.value", ("4", "9")),)
    assert {node.name: node.same for node in of.nodes} == {
        "number/a": True,
        "number/b": False,
        "apply/a": True,
        "total": False,
    }
    lines = {(line.name, line.metric): line.values for line in of.measures}
    assert lines == {
        ("number/b", "value"): ("4", "9"),
        ("total", "value"): (
            f"{a['total'].metrics['value']:g}",
            f"{b['total'].metrics['value']:g}",
        ),
    }
    text = printed(of)
    assert "b.value   4   9" in text
    assert "4 nodes are in both runs, 2 of them with one and the same result" in text


def test_other_recipes_and_unfinished_runs(store):
    a = recorded(store, "a-run")
    b = recorded(store, "b-run", ["a.value=7"], recipe="wide", made=False)
    of = compare.compare(CATALOG, [a, b])
    assert compare.Changed("recipe", ("chain", "wide")) in of.settings
    assert not of.measures
    text = printed(of)
    assert "only in B: number/0, number/1" in text
    assert "B lacks 5 of its nodes (total, ...)" in text


def test_settings_that_only_one_version_knows(store):
    a, b = recorded(store, "a-run"), recorded(store, "b-run")
    del b.data["settings"]["width"]
    assert list(compare.settings([a, b])) == [compare.Changed("width", ("4", ""))]


def test_names_are_checked_first(store):
    recorded(store, "first-run")
    recorded(store, "second-run", ["a.value=9"])
    assert [run.id for run in compare.find(["second", "first"], store)] == [
        "second-run",
        "first-run",
    ]
    with pytest.raises(UsageError, match="did you mean 'second-run'"):
        compare.find(["first", "secnod-run"], store)
    with pytest.raises(UsageError, match="first and first-run are one run"):
        compare.find(["first", "first-run"], store)
    with pytest.raises(UsageError, match="takes two runs or more; see"):
        compare.find(["first"], store)


def test_the_command(store):
    recorded(store, "first-run")
    recorded(store, "second-run", ["a.value=9"])
    out = command("compare", "first", "second", store=store.uri, check=0).stdout
    assert "a.value" in out
    assert "html" not in out  # the toy catalog names no page
    bad = command("compare", "first", "third", store=store.uri, check=2)
    assert "unknown run 'third'" in bad.stderr
    assert set(commands.COMMANDS) >= {"compare", "report", "ui"}
