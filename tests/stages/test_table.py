"""Recipes, presets and the settings that must fit together across stages."""

import subprocess
import sys

import pytest
import torch

from pipeline import config
from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.stage import Stage, resolve
from stages.catalog import CATALOG, RECIPES, STAGES, Bench
from stages.data import counted
from stages.methods import table as names
from stages.scoring.evaluate import features_node
from stages.settings.methods import options_of


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
    kept = range(300, 2401, 300)
    steps = [nodes[f"sample/sit-step{step}"].settings for step in kept]
    assert [s.step for s in steps] == [*kept]
    assert {s.nfe for s in steps} == {10}
    swept = {
        name
        for name in nodes.nodes
        if name.startswith("sample/sit-") and "-nfe" in name and "csflow" not in name
    }
    even, odd = ("euler", "dpmpp2m", "unipc"), (5, 9)
    assert swept == {
        *(f"sample/sit-{solver}-nfe{nfe}" for solver in (*even, "whole") for nfe in (5, 6, 10)),
        *(f"sample/sit-{solver}-calibrated-nfe{nfe}" for solver in even for nfe in (5, 6, 10)),
        *(f"sample/sit-heun{end}-nfe{nfe}" for end in ("", "-calibrated") for nfe in odd),
    }
    assert nodes["sample/sit-heun-nfe9"].settings.grid == "edm"
    assert nodes["evaluate/sit-euler"].settings.abscissa == "nfe"
    assert nodes["evaluate/sit-euler"].slot("reference") == ("sample/sit-reference",)
    assert nodes["evaluate/sit-heun"].tags["solver"] == "heun"
    assert nodes["evaluate/sit"].settings.abscissa == "training_step"


# Scans stand beside scores of their checkpoints' samples; what they measured is remembered.
BESIDE_SCORES = ("scan/unet-rich", "scan/unet-limited")


def test_an_evaluation_setting_repeats_evaluation_only():
    scored = {name for name in graph().nodes if name.startswith(("evaluate", "report"))}
    assert changed("evaluate.neighbours=3") == scored | {*BESIDE_SCORES}
    own = {"evaluate/unet-rich", "evaluate/unet-limited"}  # as many samples as icr.num_samples
    assert changed("evaluate.num_samples=700") == scored - own


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
    assert len(sets) == 3 * 8
    assert sets[:3] == tuple(f"sample/sit-step50{end}" for end in ("", "-seed6", "-seed7"))
    assert [nodes[name].settings.seed for name in sets[:3]] == [5, 6, 7]
    one = graph("seed=5", "train.steps=400")
    assert one.keys["sample/sit-step50"] == nodes.keys["sample/sit-step50"]


def test_a_folder_without_classes_is_refused_before_any_work(tmp_path):
    def planned(**more):
        said = [f"{name.replace('_', '.')}={value}" for name, value in more.items()]
        return graph(f"data.path={tmp_path / 'set'}", "data.size=8", *said)

    for number in range(60):
        place = tmp_path / "set" / "train"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").touch()
    with pytest.raises(UsageError, match=r"no class folders, and extractor\.kind=embedded"):
        planned()
    planned(extractor_kind="inception", extractor_weights=tmp_path)
    (tmp_path / "set" / "dataset.json").touch()  # whatever it says
    planned()
    (tmp_path / "set" / "dataset.json").unlink()
    for number in range(60):
        place = tmp_path / "set" / "train" / str(number % 2)
        place.mkdir(exist_ok=True)
        (tmp_path / "set" / "train" / f"{number}.png").rename(place / f"{number}.png")
    planned()
    planned(teach_objective="labels")


def test_a_teacher_of_classes_wants_some_before_any_work(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.png").touch()
    said = [f"data.path={tmp_path}", "data.size=8", "extractor.kind=inception"]
    said += [f"extractor.weights={tmp_path}"]
    graph(*said)
    with pytest.raises(UsageError, match=r"teach\.objective=labels learns classes, and .* has no"):
        graph(*said, "teach.objective=labels")


def test_the_first_of_large_classes_is_not_taken_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(counted, "LOOKED_AT", 5)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            (tmp_path / name / f"{number}.png").touch()
    assert not counted.lacks_labels(tmp_path)
    (tmp_path / "flat").mkdir()
    for number in range(5):
        (tmp_path / "flat" / f"{number}.png").touch()
    assert counted.lacks_labels(tmp_path / "flat")


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


def test_a_hint_is_that_of_the_longest_beginning_of_a_name():
    nodes = graph("hints={sample: 4, sample/unet: 1.5, train/sit: 7}")
    assert nodes["sample/sit-step600"].hint_seconds == 4
    assert nodes["sample/unet-rich-step25"].hint_seconds == 1.5
    assert nodes["train/sit"].hint_seconds == 7
    assert nodes["train/unet-rich"].hint_seconds is not None  # the preset's


def test_steps_move_the_checkpoints():
    nodes = graph("train.steps=400").nodes
    assert [name for name in nodes if "/sit-step" in name] == [
        f"{stage}/sit-step{step}" for stage in ("sample", "features") for step in range(50, 401, 50)
    ]


@pytest.mark.parametrize("preset", config.preset_names(CATALOG))
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_gives_every_recipe(preset, recipe):
    path = ["evaluate.path=samples"] if recipe == "evaluate" else []
    settings = config.resolve(CATALOG, preset, path).settings
    trains = {"train"} if settings.networks.format != "sit" else set()
    if settings.networks.path is not None and recipe in trains:
        with pytest.raises(UsageError, match=r"networks\.path=\S+ is "):
            RECIPES[recipe](settings)
        return
    if settings.is_latent and recipe == "csflow":
        with pytest.raises(UsageError, match=r"latents\.autoencoder and CSFlow contradict"):
            RECIPES[recipe](settings)
        return
    assert len(RECIPES[recipe](settings)) >= 2


def test_data_to_place_ask_for_their_path():
    with pytest.raises(UsageError, match=r"needs path: set data.path to where it is"):
        graph("data.dataset=folder", recipe="train")


def test_a_folder_of_fewer_images_than_scores_need_is_refused_in_one_sentence(tmp_path):
    data = (f"data.path={tmp_path}", "data.size=8")
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    for number in range(43):
        (tmp_path / "ab"[number % 2] / f"{number}.png").touch()
    with pytest.raises(UsageError, match=r"too few images, 43: .* at least 40 to train"):
        graph(*data, preset="smoke")
    (tmp_path / "b" / "43.png").touch()
    assert "prepare" in graph(*data, preset="smoke").nodes


def test_one_patch_is_refused_where_alignment_is_diagnosed():
    with pytest.raises(UsageError, match=r"patch=8 makes an image of 8 pixels a side one patch"):
        graph("train.network.patch=8", "teach.patch=8")
    graph("train.network.patch=8", "maskalign.in_full=false")


def test_workers_without_room_are_refused_before_any_work(tmp_path, capsys):
    rest = ["--store", str(tmp_path), "--preset", "smoke", "--jobs", "2"]
    for command in (["run", "full"], ["sweep", "maskalign"]):
        assert main([*command, *rest, "train.num_workers=16"]) == 2
        said = capsys.readouterr().err
        assert "starts 16 workers, which take 16 CPUs at once, and --jobs 2 here has 2" in said
        assert "set train.num_workers to at most 2" in said
    assert main(["sweep", "maskalign", *rest, "train.num_workers=[1,2]", "--dry-run"]) == 0


def test_latents_need_their_pixels():
    with pytest.raises(UsageError, match=r"a teacher sees pixels: set teach.pixels"):
        graph("data.dataset=npz", "data.path=x.npz", "data.latent=true", recipe="train")


def test_latents_without_their_autoencoder_are_trained_on_and_not_scored():
    given = ["data.dataset=npz", "data.path=x.npz", "data.latent=true", "data.size=null"]
    given += ["data.crop=null"]
    given += ["latents.autoencoder=null", "teach.pixels.dataset=npz", "teach.pixels.path=y.npz"]
    settings = config.resolve(CATALOG, "imagenet256", given).settings
    names = [node.name for node in RECIPES["train"](settings)]
    assert not [name for name in names if name.startswith(("evaluate", "features", "extractor"))]
    assert {"prepare/pixels", "teach", "train/maskalign", "diagnose/maskalign"} <= {*names}


def test_the_other_methods_are_trained_at_equal_steps():
    nodes = graph()
    common = ("steps", "method", "repa", "reg", "maskalign", "num_checkpoints")
    own = nodes["train/sit"].settings.model_dump(exclude=common)
    for method in ("repa", "reg", "maskalign"):
        node = nodes[f"train/{method}"]
        assert node.settings.model_dump(exclude=common) == own
        assert set(node.settings.kept_steps) < set(nodes["train/sit"].settings.kept_steps)
        assert node.slot("teacher") == ("teach",)
        sets = [f"sample/{method}-step{step}" for step in (300, 600, 900)]
        assert nodes[f"evaluate/{method}"].slot("samples") == tuple(sets)
        for name in sets:
            theirs = nodes[name.replace(method, "sit")].settings
            assert nodes[name].settings == theirs
        assert nodes[f"diagnose/{method}"].slot("model") == (f"train/{method}",)
    assert "diagnose/sit" not in nodes.nodes
    again = changed("train.maskalign.mask_ratio=0.5")
    assert {name for name in again if name.startswith("train/")} == {"train/maskalign"}


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["train.steps=2000"], (250, 500, 750, 1000)),
        (["train.steps=2000", "maskalign.num_checkpoints=2"], (500, 1000)),
        (["train.steps=100"], (25, 50, 75, 100)),
        (["train.steps=20000"], (2500,)),
        (["train.checkpoint_steps=[100,900]"], (100, 900)),
        (["maskalign.steps=1000"], (300, 600, 900)),
        (["maskalign.steps=600", "maskalign.num_checkpoints=2"], (300, 600)),
    ],
)
def test_the_other_methods_are_scored_at_steps_of_the_recipes_own_training(overrides, steps):
    nodes = graph("maskalign.steps=1200", "maskalign.num_checkpoints=4", *overrides)
    for method in ("repa", "reg", "maskalign"):
        found = nodes[f"train/{method}"].settings
        assert (found.kept_steps, found.steps) == (steps, steps[-1])
        for step in steps:
            assert f"sample/{method}-step{step}" in nodes["evaluate/" + method].slot("samples")
            assert f"sample/sit-step{step}" in nodes["evaluate/sit"].slot("samples")
    assert graph("maskalign.steps=900")["train/reg"].settings.checkpoint_steps == ()


def test_the_recipe_train_combines_seeds():
    nodes = graph(
        "maskalign.num_seeds=2", "maskalign.ablation_steps=600", recipe="train", preset="digits"
    )
    assert nodes["evaluate/reg"].slot("samples")[:2] == (
        "sample/reg-step300",
        "sample/reg-step300-seed1",
    )
    second = nodes["sample/reg-step300-seed1"]
    assert second.slot("model") == ("train/reg-seed1",)
    assert second.settings.seed == nodes["train/reg-seed1"].settings.seed == 1
    ablated = {name for name in nodes.nodes if name.startswith("evaluate/maskalign-")}
    assert ablated == {
        f"evaluate/maskalign-{what}"
        for what in ("ratio0", "ratio0.5", "ratio0.75", "mix0", "mix1", "mix3")
    }
    one = nodes["train/maskalign-ratio0.5-seed2"].settings
    assert (one.maskalign.mask_ratio, one.steps, one.kept_steps) == (0.5, 600, (600,))
    with pytest.raises(UsageError, match=r"maskalign.ablation_steps=500 is not a step"):
        graph("maskalign.ablation_steps=500", recipe="train")


def test_a_recipe_s_contradiction_is_one_sentence():
    with pytest.raises(UsageError, match=r"methods repa: repa.alignment_depth=9 is beyond"):
        graph("train.repa.alignment_depth=9")
    with pytest.raises(UsageError, match=r"teach.interpolate=true"):
        graph("teach.patch=4")


def test_checkpoints_can_be_sampled_by_the_papers_sde():
    nodes = graph("sample.checkpoint_solver=sde", "sample.checkpoint_nfe=250")
    for method in ("sit", "maskalign"):
        settings = nodes[f"sample/{method}-step300"].settings
        assert (settings.solver, settings.nfe, settings.grid) == ("sde", 250, "uniform_t")
    assert nodes["sample/sit-reference"].settings.solver == "dpmpp2m"
    for words in (["sample.solver=sde"], ["sample.checkpoint_solver=heun"]):
        with pytest.raises(UsageError, match=r"checkpoint_solver=sde|samples over training steps"):
            graph(*words)


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
        (["evaluate.device=cuda"], ["evaluate.device=cuda", "set resources.evaluate.gpus=1"]),
        (
            ["resources.train.gpus=1", "train.num_workers=2"],
            ["resources.train.gpus=1", "train.num_workers=2"],
        ),
        (["sample.nfes=[5,100]"], ["nfes reaches 100", "reference_nfe=100"]),
        (["train.checkpoint_steps=[2500]"], ["checkpoint_steps has 2500", "steps=2400"]),
        (["sample.solver=heun"], ["solver=heun", "nfe=10", "9 or 11"]),
        (
            ["sample.guidance=2", "train.conditional=false"],
            ["sample.guidance=2", "train.conditional=false", "set sample.guidance=1"],
        ),
        (
            ["sample.guidance=0", "train.label_dropout=0"],
            ["sample.guidance=0", "train.label_dropout=0", "set train.label_dropout=0.1"],
        ),
        (["evaluate.neighbours=100", "evaluate.num_samples=60"], ["neighbours=100", "at most 58"]),
        (
            ["data.limit=60", "evaluate.neighbours=90", "icr.in_full=false", "stein.num_images=30"],
            ["evaluate.neighbours=90", "the 60 training images"],
        ),
        (
            ["data.limit=30", "icr.in_full=false", "stein.num_images=30"],
            ["data.limit=30", "at least 40"],
        ),
        (
            ["data.held_out=1760", "icr.in_full=false", "stein.num_images=30"],
            ["data.held_out=1760", "leave 37"],
        ),
        (["stein.num_images=1501"], ["stein.num_images=1501", "the 1500 training images"]),
        (
            ["data.held_out=3", "icr.in_full=false", "stein.num_images=30"],
            ["data.held_out=3", "at least 4"],
        ),
        (
            ["data.limit_held_out=2", "icr.in_full=false", "stein.num_images=30"],
            ["data.limit_held_out=2", "at least 4"],
        ),
        (["sample.s_min=1e-12"], ["sample.s_min=1e-12", "equal to 0.00001"]),
        (["scan.tau=.inf"], ["scan.tau=.inf", "finite"]),
        (["resources.train.cpus=.inf"], ["resources.train.cpus=.inf", "finite"]),
        (["sample.solvers=[]"], ["sample.solvers=[]", "give at least 1"]),
        (["maskalign.mask_ratios=[0.25,1]"], ["maskalign.mask_ratios.1=1", "less than 1"]),
        (["maskalign.mix_layers=[-1]"], ["maskalign.mix_layers.0=-1", "equal to 0"]),
        ([f"seed={2**63 - 1}"], ["seed=9223372036854775807", "less than"]),
        (["hints.train=-1"], ["hints.train=-1", "equal to 0"]),
        (["hints.trian/sit=3"], ["begins with 'trian/sit'", "did you mean 'train'?"]),
        (["train.lrr=1"], ["unknown setting 'train.lrr'", "did you mean 'train.lr'"]),
        (["sample.solvers=[euler,hoin]"], ["unknown solver 'hoin'", "did you mean 'heun'"]),
    ],
)
def test_contradictions_name_both_settings_and_a_remedy(overrides, words):
    with pytest.raises(UsageError) as refused:
        graph(*overrides)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_the_largest_seed_leaves_room_for_those_that_count_on():
    nodes = graph(f"seed={2**62 - 1}", recipe="train")
    assert max(getattr(node.settings, "seed", 0) for node in nodes) == 2**62 + 1
    torch.Generator().manual_seed(2**62 + 1)


def test_hints_are_checked_against_every_stage():
    assert {*Bench().resources.model_dump()} == {*STAGES}
    for recipe in RECIPES.values():
        try:
            nodes = recipe(config.resolve(CATALOG, "smoke").settings)
        except UsageError:  # a recipe that needs a path
            continue
        assert all(node.name.partition("/")[0] == node.stage.name for node in nodes)


def test_every_name_leads_somewhere():
    tables = (names.DATASETS, names.EXTRACTORS, names.NETWORKS, names.LOSSES, names.GRIDS)
    for dotted in {d for table in tables for d in table.values()}:
        assert callable(resolve(dotted))
    assert all(callable(resolve(options_of(method).mathematics)) for method in names.LOSSES)
    for entry in (*names.SOLVERS.values(), *names.CORRECTIONS.values()):
        assert resolve(entry.place)
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
        "import sys, stages.catalog as t; from pipeline import config; from pipeline.graph import "
        "Graph; r = config.resolve(t.CATALOG, None); g = Graph(t.RECIPES['full'](r.settings), "
        "t.CATALOG.exclude_sources); g.keys; "
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_stage_says_which_metrics_it_may_report():
    # A stage left out would take any name, and a wrong one would fail only in the trial.
    anything = Stage.metrics
    assert [name for name, stage in STAGES.items() if stage.metrics is anything] == []


def test_another_teacher_is_asked_for_alone():
    usual, other = graph(), graph("teach.seed=1")
    assert other.nodes["teach"].settings.seed == 1
    moved = {name for name in usual.nodes if usual.keys[name] != other.keys[name]}
    assert {"teach", "train/repa", "train/reg", "train/maskalign", "report"} <= moved
    assert not moved & {"prepare", "extractor", "train/sit", "train/unet-rich"}
    assert graph("teach.seed=0").keys == usual.keys
