"""The checks made before anything runs, selection, and keys."""

from dataclasses import replace

import pytest

from pipeline.artifact import Artifact
from pipeline.errors import UsageError
from pipeline.fingerprint import fingerprint
from pipeline.graph import Graph, Node
from pipeline.stage import Input, Resources, Stage
from tests.toy import stages
from tests.toy.table import CATALOG, Toy, chain


def graph(**groups):
    toy = Toy.model_validate(groups)
    return Graph(chain(toy), CATALOG.exclude_sources)


def number(name, **settings):
    return Node(name, stages.NUMBER, stages.NumberSettings(**settings))


def applied(name, source):
    return Node(name, stages.APPLY, stages.ApplySettings(), {"number": source})


def test_nodes_come_after_what_they_read():
    order = Graph([applied("y", "x"), number("x")]).order
    assert order == ["x", "y"]


class Other(Artifact):
    """Not a number."""


OTHER = Stage("other", stages.NumberSettings, Other, "tests.toy.stages:run_number")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([number("x"), number("x")], "two nodes are named 'x'"),
        ([applied("y", "z")], "unknown node 'z'"),
        ([applied("y", "x"), applied("x", "y")], "cycle: .* -> "),
        ([Node("y", stages.APPLY, stages.ApplySettings())], "'number' is not connected"),
        (
            [number("x"), Node("y", stages.APPLY, stages.ApplySettings(), {"nmber": "x"})],
            "has no input 'nmber'",
        ),
        (
            [Node("o", OTHER, stages.NumberSettings()), applied("y", "o")],
            "takes Number, but o gives Other",
        ),
        (
            [
                number("a"),
                number("b"),
                Node("y", stages.APPLY, stages.ApplySettings(), {"number": ["a", "b"]}),
            ],
            "takes one node, 2 are given",
        ),
    ],
)
def test_a_wrong_graph_is_refused(nodes, message):
    with pytest.raises(UsageError, match=message):
        Graph(nodes)


def test_keys_depend_on_keyed_settings_inputs_and_threads_only():
    base = graph().keys
    changed = graph(a={"value": 9}).keys
    assert changed["number/a"] != base["number/a"]
    assert changed["apply/a"] != base["apply/a"]
    assert changed["total"] != base["total"]
    assert changed["number/b"] == base["number/b"]
    assert graph(apply={"shards": 5}).keys == base
    assert graph(resources={"number": {"cpus": 2}}).keys == base
    threads = graph(resources={"number": {"threads": 2}}).keys
    assert threads["number/a"] != base["number/a"]


def test_only_the_named_function_enters_a_key():
    closure = graph().identities["apply/a"].sources
    assert "tests.toy.arithmetic" in closure
    assert "tests.toy.arithmetic" not in graph().identities["number/a"].sources
    assert "tests.toy.table" not in closure


def test_selection_brings_what_is_needed():
    found = graph()
    everything = {"number/a", "number/b", "apply/a", "total"}
    assert found.select() == everything
    assert found.select(only=["apply/a"]) == {"number/a", "apply/a"}
    assert found.select(end=["number"]) == {"number/a", "number/b"}
    assert found.select(start=["apply/a"]) == everything
    assert found.select(start=["number/a"], end=["apply"]) == {"number/a", "apply/a"}
    with pytest.raises(UsageError, match="did you mean 'apply/a'"):
        found.select(only=["aply/a"])


def test_mermaid_names_every_node_and_edge():
    chart = graph().mermaid({"total": "cached"})
    assert chart.count("-->") == 3
    assert "total<br/>cached" in chart


def test_a_many_slot_may_be_empty_and_its_names_enter_the_key():
    first = Node("t", stages.TOTAL, stages.TotalSettings(), {"numbers": ["a"]})
    second = Node("t", stages.TOTAL, stages.TotalSettings(), {"numbers": ["b"]})
    empty = Node("t", stages.TOTAL, stages.TotalSettings())
    keys = {Graph([number("a"), number("b"), node]).keys["t"] for node in (first, second, empty)}
    assert len(keys) == 3
    assert Input(Other).optional is False
    assert Resources().threads == 1


def test_files_that_settings_name_enter_the_key(tmp_path):
    file, folder = tmp_path / "data.bin", tmp_path / "folder"
    file.write_bytes(b"one")
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    reader = replace(stages.NUMBER, files=lambda settings: [file, folder])

    def key():
        fingerprint.cache_clear()
        return Graph([Node("x", reader, stages.NumberSettings())]).keys["x"]

    first = key()
    assert key() == first
    file.write_bytes(b"two")
    second = key()
    (folder / "b.png").write_bytes(b"b")
    assert len({first, second, key()}) == 3
    file.unlink()
    with pytest.raises(UsageError, match=r"data\.bin does not exist"):
        key()
