"""The run's graph: nodes one by one where they are few, by stage where they are many."""

import re

from pipeline import drawing


def node(stage, *upstream, state="done", seconds=1.0):
    return {"stage": stage, "upstream": list(upstream), "state": state, "seconds": seconds}


def columns(svg):
    """The horizontal place of every box, by name."""
    found = re.findall(r"<rect x='(\d+)'.*?<text[^>]*>([^<]*)</text>", svg)
    return {name: int(x) for x, name in found}


def test_few_nodes_are_drawn_one_by_one():
    nodes = {
        "prepare": node("prepare"),
        "train/<a>": node("train", "prepare", state="failed", seconds=None),
        "evaluate/a": node("evaluate", "train/<a>", state="not run", seconds=None),
    }
    svg = drawing.graph({"nodes": nodes})
    x = columns(svg)
    assert x["prepare"] < x["train/&lt;a&gt;"] < x["evaluate/a"]
    assert svg.count("fill='none'") == 2
    assert svg.count("class='failed'") == 2
    assert "<details>" not in svg


def test_many_nodes_are_drawn_by_stage_and_listed():
    nodes = {"prepare": node("prepare")}
    nodes |= {f"sample/{i}": node("sample", "prepare", state="cached") for i in range(20)}
    nodes |= {f"score/{i}": node("score", f"sample/{i}", "prepare") for i in range(20)}
    nodes["score/7"] |= {"state": "failed", "seconds": None}
    svg = drawing.graph({"nodes": nodes})
    x = columns(svg.partition("<details>")[0])
    assert list(x) == ["prepare", "sample", "score"]
    assert x["prepare"] < x["sample"] < x["score"]
    assert "20 nodes, 20 cached, 20.0 s" in svg
    assert "20 nodes, 1 missing, 19.0 s" in svg
    assert "all 41 nodes with their times" in svg
    assert "<td>score/7</td><td class='failed'>failed</td>" in svg


def test_a_long_graph_goes_downwards_and_its_boxes_are_filled_by_time():
    chain = {f"s{i}": node(f"s{i}", *(f"s{j}" for j in range(i)), seconds=i) for i in range(9)}
    svg = drawing.graph({"nodes": chain})
    assert int(re.search(r"width='(\d+)'", svg)[1]) <= drawing.WIDEST
    assert len(set(columns(svg).values())) == 1
    edges = re.findall(r"<path d='M[\d.]+ [\d.]+ C", svg)
    assert len(edges) == 8  # what is read by way of another has no line of its own
    filled = [int(width) for width in re.findall(r"<path d='M\d+ \d+h(\d+)v", svg)]
    assert filled == [round(drawing.BOX_WIDTH * i / 8) for i in range(1, 9)]


def test_stages_that_read_each_other_are_drawn_all_the_same():
    nodes = {f"a/{i}": node("a", *([f"b/{i - 1}"] if i else [])) for i in range(15)}
    nodes |= {f"b/{i}": node("b", f"a/{i}") for i in range(15)}
    assert set(columns(drawing.graph({"nodes": nodes}).partition("<details>")[0])) == {"a", "b"}


def test_a_run_without_nodes():
    assert "<svg" in drawing.graph({"nodes": {}})
