"""The recipe icr and its part of full: nodes, names, seeds, and networks given by path."""

import json
import shutil

import pytest

from pipeline import config
from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.store import Store
from stages.icr_nodes import ICROptions
from stages.table import CATALOG, RECIPES
from tests.inline import run_all


def graph(*overrides, preset="smoke", recipe="icr") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def test_full_has_two_unets_and_three_scans():
    nodes = graph(recipe="full", preset="digits")
    scans = {node.name for node in nodes if node.stage.name == "scan"}
    assert scans == {"scan/unet-rich", "scan/unet-limited", "scan/unet-rich-sigma"}
    rich, limited = nodes["train/unet-rich"].settings, nodes["train/unet-limited"].settings
    assert (rich.limit, limited.limit) == (None, 64)
    assert rich.steps == limited.steps == 800
    assert nodes["scan/unet-limited"].inputs["scores"] == "evaluate/unet-limited"
    sampled = [nodes[name].settings.step for name in nodes["evaluate/unet-rich"].slot("samples")]
    assert tuple(sampled) == rich.kept_steps == (25, 50, 100, 141, 200, 283, 400, 566, 800)
    assert nodes["scan/unet-rich-sigma"].settings.components == 16
    shown = [name for name in nodes["report"].slot("samples") if "unet" in name]
    assert shown == ["sample/unet-rich-step800", "sample/unet-limited-step800"]
    without = graph("icr.in_full=false", recipe="full", preset="digits")
    assert not [name for name in without.nodes if "unet" in name]


def test_the_recipe_trains_from_several_seeds():
    nodes = graph("seed=4", "icr.num_seeds=2", preset="digits")
    trained = [name for name in nodes.nodes if name.startswith("train/")]
    assert trained == [
        "train/unet-rich",
        "train/unet-limited",
        "train/unet-rich-seed5",
        "train/unet-limited-seed5",
    ]
    assert [nodes[name].settings.seed for name in trained] == [4, 4, 5, 5]
    assert nodes["scan/unet-rich-sigma-seed5"].inputs["model"] == "train/unet-rich-seed5"
    views = {nodes[f"scan/{name.partition('/')[2]}"].settings.view_seeds for name in trained}
    assert views == {(0, 1, 2, 3)}


def test_checkpoints_are_at_powers_of_the_root_of_two():
    assert ICROptions().checkpoints == (
        *(25, 35, 50, 71, 100, 141, 200, 283, 400, 566, 800, 1131),
        1333,
    )
    given = ICROptions(train={"steps": 60, "checkpoint_steps": (10, 20)})
    assert given.checkpoints == (10, 20, 60)
    assert given.train.method == "edm"  # the rest is the U-Net's
    assert given.shortened() is given
    assert ICROptions(full_steps=(30, 20)).shortened().train.kept_steps == (20, 30)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["icr.num_seeds=0"], "icr.num_seeds=0 and no icr.paths leave nothing to scan"),
        (["icr.paths=[nowhere]"], "icr.paths=nowhere holds no model.json"),
        (["icr.sigmas=[0.2,0.1]"], "must ascend"),
        (["icr.full_steps=[5]"], "full_steps=.* below train.warmup_steps=10"),
        (["icr.train.limit=16"], "limited=16 is not below train.limit=16"),
        (["icr.train.network.multipliers=[1,1,1,1,1]"], "side of 8 pixels too often"),
        (["icr.train.network.kind=sit"], "method=edm and network.kind=sit"),
    ],
)
def test_mistakes_are_refused_before_any_work(overrides, words):
    with pytest.raises(UsageError, match=words):
        graph(*overrides)


@pytest.mark.slow
def test_networks_given_by_path_are_scanned(tmp_path):
    store = Store(tmp_path / "store")
    small = ("icr.num_seeds=1", "data.limit=60", "data.limit_held_out=60", "icr.train.steps=20")
    small += ("icr.train.checkpoint_steps=[10]", "icr.num_samples=40", "scan.num_images=40")
    small += ("extractor.epochs=1", "extractor.min_accuracy=0")
    made = run_all(CATALOG, store, Request("icr", "smoke", small))
    own = made["scan/unet-rich"]
    assert [row.step for row in own.load()] == [10, 20]
    assert all(row.memorization_ratio is not None for row in own.load())
    scores = {
        (row.training_step, row.score.metric): row.score.value
        for row in made["evaluate/unet-rich"].load()
    }
    assert [row.fid for row in own.load()] == [scores[10, "fid"], scores[20, "fid"]]
    text = (made["report"].path / "report.html").read_text()
    assert "ICR: a warning of memorisation" in text
    # The same network as a folder that came from elsewhere.
    folder = tmp_path / "elsewhere"
    shutil.copytree(made["train/unet-rich"].path, folder)
    (folder / "manifest.json").unlink()
    overrides = (*small[1:], "icr.num_seeds=0", f"icr.paths=[{folder}]")
    again = run_all(CATALOG, store, Request("icr", "smoke", overrides))
    given = again["scan/elsewhere"]
    assert given.load() == own.load()
    assert again["scan/elsewhere-sigma"].load() == made["scan/unet-rich-sigma"].load()
    facts = json.loads((folder / "model.json").read_text())
    assert given.description["model"]["num_images"] == facts["num_images"] == 60
