"""What nodes are said to report is what they report, and nothing else can be named in a sweep."""

from fnmatch import fnmatchcase

import pytest

from pipeline import config
from pipeline.errors import UsageError
from pipeline.graph import Graph, Node
from stages.catalog import CATALOG, RECIPES
from sweeps.space import Space
from sweeps.target import Sweep, targets


@pytest.fixture(scope="module")
def full() -> Graph:
    settings = config.resolve(CATALOG, "smoke", ()).settings
    return Graph(RECIPES["full"](settings), CATALOG.exclude_sources)


def names(node: Node) -> tuple[str, ...]:
    return tuple(node.stage.metrics(node))


def test_names_follow_settings_and_inputs(full):
    assert names(full["train/unet-rich"]) == ("loss/denoising", "gradient_norm")
    assert "trajectory_rms" in names(full["evaluate/sit-euler"])
    assert "trajectory_rms" not in names(full["evaluate/sit"])
    live = config.resolve(CATALOG, "smoke", ["scan.live=true"]).settings
    graph = Graph(RECIPES["full"](live), CATALOG.exclude_sources)
    assert "icr" in names(graph["train/sit"])
    assert "icr" not in names(graph["train/reg"])  # its class token cannot be watched


REFUSED = [
    ("train/sit", "loss/velocit", "did you mean 'loss/velocity'"),
    ("train/sit", "loss/alignment", "it reports: loss/velocity, gradient_norm"),
    ("train/sit", "icr", "reports no metric 'icr'"),
    ("evaluate/sit", "trajectory_rms", "reports no metric"),
    ("risk/wiener", "denoising_mse_sigma_7", "reports no metric"),
    ("scan/unet-rich", "icr_minimum_sigma", "reports no metric"),
]


@pytest.mark.parametrize(("node", "metric", "words"), REFUSED)
def test_a_metric_that_the_node_will_not_report_is_refused(full, node, metric, words):
    assert node in full.nodes
    tree = {
        "recipe": "full",
        "metrics": {metric: {"node": node, "direction": "min"}},
        "parameters": {"train.lr": {"grid": [0.1, 0.2]}},
    }
    sweep = Sweep("mine", Space.model_validate(tree), "smoke")
    with pytest.raises(UsageError, match=words):
        targets(CATALOG, sweep, {"train.lr": 0.1})
    halving = {"node": node, "metric": metric, "grace": 1}
    watched = tree | {
        "metrics": {"figures": {"node": "report", "direction": "min"}},
        "halving": halving,
    }
    with pytest.raises(UsageError, match=words):
        targets(CATALOG, Sweep("mine", Space.model_validate(watched), "smoke"), {"train.lr": 0.1})


def test_the_names_are_found_by_pattern(full):
    assert any(fnmatchcase("claims/holds", pattern) for pattern in names(full["report"]))
