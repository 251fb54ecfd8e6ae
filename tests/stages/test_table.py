"""Recipes, presets and the settings that must fit together across stages."""

import subprocess
import sys

import pytest

from pipeline import config
from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.stage import resolve
from stages.evaluate import features_node
from stages.methods import table as names
from stages.table import CATALOG, RECIPES, Bench


def graph(*overrides, preset="digits", recipe="full") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def changed(*overrides) -> set[str]:
    """Nodes whose key changes with overrides, of those in both graphs."""
    before, after = graph().keys, graph(*overrides).keys
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_nodes_of_the_full_recipe():
    nodes = graph("sample.nfes=[5,6,10]")
    assert {"prepare", "extractor", "train/sit", "sample/sit-reference", "report"} <= set(
        nodes.nodes
    )
    steps = [nodes[f"sample/sit-step{step}"].settings for step in (600, 1200, 1800, 2400)]
    assert [s.step for s in steps] == [600, 1200, 1800, 2400]
    assert {s.nfe for s in steps} == {20}
    swept = {
        name
        for name in nodes.nodes
        if name.startswith("sample/") and "-nfe" in name and "csflow" not in name
    }
    even, odd = ("euler", "dpmpp2m", "unipc"), (5, 9)
    assert swept == {
        *(f"sample/sit-{solver}-nfe{nfe}" for solver in (*even, "fitted") for nfe in (5, 6, 10)),
        *(f"sample/sit-{solver}-calibrated-nfe{nfe}" for solver in even for nfe in (5, 6, 10)),
        *(f"sample/sit-heun{end}-nfe{nfe}" for end in ("", "-calibrated") for nfe in odd),
    }
    assert nodes["sample/sit-heun-nfe9"].settings.grid == "edm"
    assert nodes["evaluate/sit-euler"].settings.abscissa == "nfe"
    assert nodes["evaluate/sit-euler"].slot("reference") == ("sample/sit-reference",)
    assert nodes["evaluate/sit-heun"].tags["solver"] == "heun"
    assert nodes["evaluate/sit"].settings.abscissa == "training_step"


def test_the_train_recipe_trains_only():
    assert set(graph(recipe="train").nodes) == {"prepare", "train/sit"}
    assert graph(recipe="train").keys["train/sit"] == graph().keys["train/sit"]


# Scans stand beside scores of their checkpoints' samples; what they measured is remembered.
BESIDE_SCORES = ("scan/unet-rich", "scan/unet-limited")


def test_an_evaluation_setting_repeats_evaluation_only():
    scored = {name for name in graph().nodes if name.startswith(("evaluate", "report"))}
    assert changed("evaluate.neighbours=3") == scored | {*BESIDE_SCORES}
    own = {"evaluate/unet-rich", "evaluate/unet-limited"}  # as many samples as icr.num_samples
    assert changed("evaluate.num_samples=900") == scored - own


def test_every_scored_set_has_its_features_once():
    nodes = graph()
    scored = {
        name for node in nodes if node.stage.name == "evaluate" for name in node.slot("samples")
    }
    for name in scored:
        assert nodes[features_node(name)].slot("samples") == (name,)
    taken = [node.name for node in nodes if node.stage.name == "features"]
    assert len(taken) == len(scored) + 2
    for node in nodes:
        if node.stage.name == "evaluate":
            own = tuple(features_node(name) for name in node.slot("samples"))
            assert node.slot("features") == own
    assert changed("extractor.batch_size=64") == {
        *taken,
        *BESIDE_SCORES,
        *(name for name in nodes.nodes if name.startswith(("evaluate", "report"))),
    }


def test_several_seeds_of_a_checkpoint_are_scored_together():
    nodes = graph("sample.num_seeds=3", "seed=5", "train.steps=400")
    sets = nodes["evaluate/sit"].slot("samples")
    assert len(sets) == 3 * 4
    assert sets[:3] == tuple(f"sample/sit-step100{end}" for end in ("", "-seed6", "-seed7"))
    assert [nodes[name].settings.seed for name in sets[:3]] == [5, 6, 7]
    one = graph("seed=5", "train.steps=400")
    assert one.keys["sample/sit-step100"] == nodes.keys["sample/sit-step100"]


def test_samples_made_elsewhere_join_a_full_run():
    nodes = graph("evaluate.path=somewhere/best")
    assert nodes["evaluate/external"].tags["method"] == "best"
    assert "external" in nodes["report"].slot("samples")


def test_a_training_setting_prepares_nothing_again():
    again = changed("train.lr=0.001")
    assert "train/sit" in again
    assert not again & {"prepare", "extractor"}


def test_the_seed_leaves_the_split():
    closed_forms = {name for name in graph().nodes if name.startswith("fit/")}
    assert changed("seed=1") == set(graph().nodes) - {"prepare", "spectrum"} - closed_forms


@pytest.mark.parametrize(
    "setting", ["train.save_every=7", "sample.shard_size=10", "extractor.shard_size=10"]
)
def test_what_changes_no_result_changes_no_key(setting):
    assert changed(setting) == set()


def test_steps_move_the_checkpoints():
    nodes = graph("train.steps=400").nodes
    assert [name for name in nodes if "/sit-step" in name] == [
        f"{stage}/sit-step{step}"
        for stage in ("sample", "features")
        for step in (100, 200, 300, 400)
    ]


@pytest.mark.parametrize("preset", config.preset_names(CATALOG))
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_gives_every_recipe(preset, recipe):
    path = ["evaluate.path=samples"] if recipe == "evaluate" else []
    assert len(graph(*path, preset=preset, recipe=recipe)) >= 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["evaluate.num_samples=2000"],
            ["evaluate.num_samples=2000", "sample.num_samples=1500", "raise", "lower"],
        ),
        (["train.network.patch=3"], ["train.network.patch=3", "8 pixels", "data.size", "9"]),
        (["data.size=9"], ["train.network.patch=2", "9 pixels"]),
        (["train.device=cuda"], ["train.device=cuda", "resources.train.gpus=0"]),
        (
            ["extractor.device=cuda", "resources.extractor.gpus=1"],
            ["extractor.device=cuda", "resources.features.gpus=0"],
        ),
        (["resources.sample.gpus=1"], ["resources.sample.gpus=1", "sample.device=cpu"]),
        (
            ["resources.train.gpus=1", "train.num_workers=2"],
            ["resources.train.gpus=1", "train.num_workers=2"],
        ),
        (["sample.nfes=[5,100]"], ["nfes reaches 100", "reference_nfe=100"]),
        (["train.checkpoint_steps=[2500]"], ["checkpoint_steps has 2500", "steps=2400"]),
        (["sample.solver=heun"], ["solver=heun", "nfe=20", "19 or 21"]),
        (["train.lrr=1"], ["unknown setting 'train.lrr'", "did you mean 'train.lr'"]),
        (["sample.solvers=[euler,hoin]"], ["unknown solver 'hoin'", "did you mean 'heun'"]),
    ],
)
def test_contradictions_name_both_settings_and_a_remedy(overrides, words):
    with pytest.raises(UsageError) as refused:
        graph(*overrides)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_every_name_leads_somewhere():
    tables = (names.DATASETS, names.EXTRACTORS, names.NETWORKS, names.LOSSES, names.GRIDS)
    for dotted in {d for table in (*tables, names.SOLVERS) for d in table.values()}:
        assert callable(resolve(dotted))
    for stage in CATALOG.stages.values():
        assert callable(resolve(stage.run))


def test_every_setting_is_described():
    def undescribed(model, at=""):
        for name, info in model.model_fields.items():
            inner = info.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from undescribed(inner, f"{at}{name}.")
            if not info.description:
                yield at + name

    assert list(undescribed(Bench)) == []


def test_declarations_import_nothing_heavy():
    code = (
        "import sys, stages.table as t; from pipeline import config; from pipeline.graph import "
        "Graph; r = config.resolve(t.CATALOG, None); g = Graph(t.RECIPES['full'](r.settings), "
        "t.CATALOG.exclude_sources); g.keys; "
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
