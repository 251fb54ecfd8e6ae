"""What a plan says before anything runs."""

import json

import pytest

from pipeline import config, estimates
from pipeline.__main__ import main
from pipeline.graph import Graph
from stages.catalog import CATALOG, RECIPES
from stages.data.counted import counts
from stages.data.options import PrepareSettings
from stages.sampling.sample import SampleSettings
from stages.settings import costs


def taken(*overrides, preset="imagenet256", recipe="full"):
    settings = config.resolve(CATALOG, preset, overrides).settings
    graph = Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)
    return estimates.by_stage(graph, graph.nodes)


def test_imagenet_s_size_is_said_before_anything_runs():
    found = taken()
    assert (
        "1,281,167 images to train on, 50,000 held out, none of them out" in found["prepare"].said
    )
    # A float16 mean and deviation of 4 x 32 x 32 values of every image.
    assert found["encode"].bytes == 1_331_167 * 2 * 2 * 4096
    assert 650e6 < found["train"].parameters < 760e6
    # 400,000 steps of 256 images, three passes of 237 GFLOP each, of four methods.
    alone = 4 * 400_000 * 256 * 3 * 237.2e9 / (0.4 * 400e12) / 3600
    assert found["train"].gpu_hours == pytest.approx(alone, rel=0.1)
    assert "online" in found["teach"].said
    assert "506 GB" in found["teach"].said
    assert found["decode"].gpu_hours > 0.5
    words = estimates.text(found)
    assert "GPU-hours" in words
    assert "of a GPU's memory" in words


def test_blocks_that_are_computed_again_take_less_of_a_gpu():
    whole, inputs = (
        taken(f"train.activation_checkpointing={said}")["train"].gpu_bytes
        for said in ("false", "true")
    )
    # Of 8 workers, each 32 images of 256 tokens of 1152 values: 28 blocks, but for one 4 bytes.
    values = 32 * 256 * 1152
    assert whole - inputs == pytest.approx(values * (28 * 34 - 28 * 4 - 34), rel=1e-9)


@pytest.mark.parametrize(("kept", "each"), [("float32", 4), ("nearest", 1), ("down", 1)])
def test_samples_take_a_byte_a_value_where_they_are_rounded(kept, each):
    settings = SampleSettings(num_samples=50, kept=kept)
    assert costs.sample(settings, {"model": {"shape": (3, 8, 8)}})["bytes"] == each * 50 * 192


def test_mirrored_latents_take_twice_the_room_of_training():
    once, twice = taken()["encode"].bytes, taken("latents.flips=true")["encode"].bytes
    assert twice - once == 1_281_167 * 2 * 2 * 4096


def test_a_plan_says_it_though_the_data_are_yet_to_be_placed(capsys, tmp_path):
    rest = ["--preset", "imagenet256", "--store", str(tmp_path), f"data.path={tmp_path}/none"]
    assert main(["plan", "full", *rest]) == 2
    said = capsys.readouterr()
    assert "1,281,167 images to train on" in said.out
    assert "do not exist; set data.path" in said.err


def test_little_is_not_worth_a_word(capsys, tmp_path):
    assert taken(preset="digits") == {}
    assert main(["plan", "full", "--json", "--store", str(tmp_path)]) == 0
    assert "estimates" not in json.loads(capsys.readouterr().out)


def test_a_plan_as_data_has_the_estimates(capsys, tmp_path):
    rest = ["train.steps=1000000", "train.network.width=2048", "--store", str(tmp_path)]
    assert main(["plan", "full", "--json", *rest]) == 0
    found = json.loads(capsys.readouterr().out)["estimates"]
    assert found["stages"]["train"]["gpu_hours"] > 1
    assert found["gpu_hours"] >= found["stages"]["train"]["gpu_hours"]


@pytest.mark.parametrize(
    ("files", "more", "expected"),
    [
        (["a/1.png", "a/2.jpeg", "b/3.PNG", "b/notes.txt"], {"held_out": 1}, (2, 1, 2)),
        ([f"{i % 2}/{i}.png" for i in range(12)], {}, (10, 2, 2)),
        ([f"{i % 2}/{i}.png" for i in range(12)], {"limit": 4}, (4, 2, 2)),
        (["train/a/1.png", "train/b/2.png", "val/a/1.png"], {}, (2, 1, 2)),
        (["train/a/1.png", "train/b/2.png", "dev/a/1.png"], {}, (2, 1, 2)),
    ],
)
def test_a_folder_is_counted_by_its_listing(tmp_path, files, more, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    settings = PrepareSettings(dataset="folder", path=str(tmp_path), **more)
    assert counts(settings) == expected


def test_sets_that_are_always_the_same_are_known_by_name(tmp_path):
    place = str(tmp_path / "absent")
    assert counts(PrepareSettings(dataset="digits")) == (1500, 297, 10)
    assert counts(PrepareSettings(dataset="cifar10", path=place, limit=100)) == (100, 10_000, 10)
    assert counts(PrepareSettings(dataset="imagenet", path=place))[:2] == (1_281_167, 50_000)
    assert counts(PrepareSettings(dataset="npz", path=place)) is None
