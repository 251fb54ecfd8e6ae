"""The arms that put the methods together: what differs between them, and what does not."""

import pytest

from pipeline import config
from pipeline.errors import UsageError
from pipeline.graph import Graph
from stages.catalog import CATALOG, RECIPES


def graph(*overrides) -> Graph:
    settings = config.resolve(CATALOG, "digits", overrides).settings
    return Graph(RECIPES["full"](settings), CATALOG.exclude_sources)


def arms(nodes: Graph) -> set[str]:
    return {name.partition("combined-")[2] for name in nodes.nodes if "evaluate/combined" in name}


def test_arms_differ_in_one_thing_each_and_share_the_rest():
    nodes = graph("combined.nfes=[10,5]")
    assert arms(nodes) == {"plain", "maskalign", "csflow", "calibrated", "all"}
    plain = nodes["sample/combined-plain-nfe5"].settings
    assert plain.step == nodes["train/maskalign"].settings.kept_steps[-1] == 900
    assert plain.step in nodes["train/sit"].settings.kept_steps
    for arm, changed in {
        "maskalign": set(),
        "csflow": {"grid", "density"},
        "calibrated": {"correction"},
        "all": {"grid", "density", "correction"},
    }.items():
        settings = nodes[f"sample/combined-{arm}-nfe5"].settings
        differing = {
            name
            for name in type(plain).model_fields
            if getattr(plain, name) != getattr(settings, name)
        }
        assert differing == changed, arm
    trained = {arm: nodes[f"sample/combined-{arm}-nfe5"].inputs["model"] for arm in arms(nodes)}
    assert {arm for arm, model in trained.items() if model == "train/maskalign"} == {
        "maskalign",
        "all",
    }
    scores = nodes["evaluate/combined-all"]
    assert scores.slot("samples") == ("sample/combined-all-nfe5", "sample/combined-all-nfe10")
    assert not scores.slot("reference")  # two models have no common trajectory


def test_a_calibration_is_of_its_arms_model_grid_and_step():
    nodes = graph()
    for arm, model, grid in (("all", "maskalign", "csflow"), ("calibrated", "sit", "uniform_t")):
        sampled = nodes[f"sample/combined-{arm}-nfe5"]
        (name,) = sampled.slot("schedule")
        found = nodes[name]
        assert found.slot("model") == (f"train/{model}",)
        assert found.settings.grid == grid
        for field in ("solver", "nfe", "grid", "density", "step", "guidance"):
            assert getattr(found.settings, field) == getattr(sampled.settings, field)
        # Clean class tokens are not stored with the images: no arm may need them.
        assert found.settings.target == "trajectory"


@pytest.mark.parametrize(
    "override",
    [
        "combined.in_full=false",
        "csflow.in_full=false",
        "maskalign.in_full=false",
        "maskalign.methods=[sit,reg]",
    ],
)
def test_without_a_fair_comparison_there_is_none(override):
    assert not arms(graph(override))


def test_evaluations_are_positive():
    for nfe in (0, 10_001):
        with pytest.raises(UsageError, match=rf"combined\.nfes\.0={nfe}"):
            graph(f"combined.nfes=[{nfe},5]")
