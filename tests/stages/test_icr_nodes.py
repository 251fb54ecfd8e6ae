"""The recipe icr and its part of full: nodes, names, seeds, and networks given by path."""

import json
import shutil

import pytest

from pipeline import config
from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.store import Store
from stages.catalog import CATALOG, RECIPES
from stages.data import prepare
from stages.data.prepare import PrepareSettings
from stages.papers.icr.options import ICROptions
from tests.inline import run_all
from tests.stages.context import make


def graph(*overrides, preset="smoke", recipe="icr") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def test_full_has_two_unets_and_three_scans():
    nodes = graph(recipe="full", preset="digits")
    scans = {node.name for node in nodes if node.stage.name == "scan"}
    assert scans == {"scan/unet-rich", "scan/unet-limited", "scan/unet-rich-sigma"}
    rich, limited = nodes["train/unet-rich"].settings, nodes["train/unet-limited"].settings
    assert (rich.limit, limited.limit) == (None, 64)
    assert rich.steps == limited.steps == 566
    assert nodes["scan/unet-limited"].inputs["scores"] == "evaluate/unet-limited"
    sampled = [nodes[name].settings.step for name in nodes["evaluate/unet-rich"].slot("samples")]
    assert tuple(sampled) == rich.kept_steps == (25, 50, 100, 141, 200, 283, 400, 566)
    assert nodes["scan/unet-rich-sigma"].settings.components == 16
    shown = [name for name in nodes["report"].slot("samples") if "unet" in name]
    assert shown == ["sample/unet-rich-step566", "sample/unet-limited-step566"]
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
        (["icr.paths=[nowhere]"], r"icr.paths: there is no network at /\S+/nowhere; place"),
        (["icr.sigmas=[0.2,0.1]"], "must ascend"),
        (["icr.full_steps=[5]"], "full_steps=.* below train.warmup_steps=10"),
        (["icr.train.limit=16"], "limited=16 is not below train.limit=16"),
        (["icr.train.network.multipliers=[1,1,1,1,1]"], "side of 8 pixels too often"),
        (["icr.train.network.kind=sit"], "method=edm and network.kind=sit"),
        (["icr.limited=5000"], "icr.limited=5000 is above the .* training images .* lower it"),
        (["data.limit=12"], "icr.limited=16 is above the 12 training images .* data.limit"),
        (["icr.train.limit=4000"], "icr.train.limit=4000 is above"),
        (["scan.num_images=50", "data.limit_held_out=40"], "scan.num_images=50 is above the 40"),
    ],
)
def test_mistakes_are_refused_before_any_work(overrides, words):
    with pytest.raises(UsageError, match=words):
        graph(*overrides)


def test_the_most_images_of_digits_are_those_that_prepare_finds(tmp_path):
    for more in ({}, {"held_out": 100}, {"limit": 40}):
        settings = PrepareSettings(**more)
        data = make(tmp_path / str(len(str(more))), prepare.STAGE, settings)
        assert settings.most_train == data.description["num_train"]
    assert PrepareSettings(dataset="npz", path="x.npz").most_train is None


def given(folder, **config):
    """A folder laid out like a training's artifact, as far as a plan reads it."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-000007.safetensors").touch()
    facts = {"network": "sit", "config": config, "method": "reg", "steps": [7]}
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


def test_networks_given_by_path_have_names_of_their_own(tmp_path):
    names = ["a/model", "b/model", "c/unet-rich", "d/other", "e/other-sigma", "f/a-model"]
    folders = [given(tmp_path / name) for name in names]
    found = graph(f"icr.paths=[{','.join(map(str, folders))}]")
    made = [node.name for node in found if node.stage.name == "checkpoint"]
    assert made == [
        "checkpoint/a-model",
        "checkpoint/b-model",
        "checkpoint/c-unet-rich",
        "checkpoint/other",
        "checkpoint/e-other-sigma",
        "checkpoint/f-a-model",
    ]
    alone = graph(f"icr.paths=[{folders[2]},{folders[2]}]", "icr.num_seeds=0")
    assert {"checkpoint/c-unet-rich", "checkpoint/c-unet-rich-2"} < set(alone.nodes)
    assert "checkpoint/unet-rich" in graph(f"icr.paths=[{folders[2]}]", "icr.num_seeds=0").nodes


def test_networks_that_cannot_be_scanned_are_refused_before_they_are_sampled(tmp_path):
    folder = given(tmp_path / "reg", class_token_dim=64)
    with pytest.raises(UsageError, match=r"icr.paths=.*reg: a network of method reg sees"):
        graph(f"icr.paths=[{folder}]")
    (folder / "model.json").write_text("[]")
    with pytest.raises(UsageError, match=r"model.json holds no facts by name"):
        graph(f"icr.paths=[{folder}]")


def test_trainings_know_the_scans_to_come():
    nodes = graph("scan.layer=inner.middle", "icr.components=7")
    rich, limited = (nodes[f"train/unet-{name}"].settings for name in ("rich", "limited"))
    assert [one.components for one in rich.scanned] == [None, 7]
    assert [one.components for one in limited.scanned] == [None]
    assert {one.layer for one in (*rich.scanned, *limited.scanned)} == {"inner.middle"}
    # They are checked by them, and are not others for it.
    keys = graph().keys
    assert all(nodes.keys[name] == keys[name] for name in keys if name.startswith("train/"))


def test_more_held_out_images_than_digits_have_are_refused_at_the_plan():
    for recipe in ("icr", "full"):
        with pytest.raises(UsageError, match=r"scan.num_images=298 is above the 297 held-out"):
            graph("scan.num_images=298", preset="digits", recipe=recipe)
    assert graph("scan.num_images=297", preset="digits")
    # Without a scan nobody asks.
    assert graph("scan.num_images=298", "icr.in_full=false", preset="digits", recipe="full")


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
