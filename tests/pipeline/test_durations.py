"""How long a node takes follows from what is known of one like it, and how much more it does."""

import re
from dataclasses import replace

import pytest
from pydantic import Field

from pipeline import plan as planning
from pipeline.commands import plan_text
from pipeline.durations import Known
from pipeline.plan import CACHED, Request
from pipeline.store import Store
from stages.catalog import CATALOG as BENCH
from tests.inline import run_all
from tests.pipeline.test_plan import record
from tests.toy.stages import NumberSettings
from tests.toy.table import CATALOG


def seconds(tmp_path, *overrides, preset="digits", recipe="full"):
    """By node, of a store that holds nothing."""
    request = Request(recipe, preset, overrides)
    plan = planning.make(BENCH, Store(tmp_path / "store"), request, lenient=True)
    return {name: node.seconds for name, node in plan.nodes.items()}


def test_a_preset_takes_as_long_as_it_says(tmp_path):
    found = seconds(tmp_path)
    assert (found["train/sit"], found["teach"], found["extractor"]) == (150, 75, 8)


@pytest.mark.parametrize(
    ("setting", "node", "times"),
    [
        ("train.steps=4800", "train/sit", 2),
        ("train.batch_size=128", "train/sit", 2),
        ("icr.train.batch_size=128", "train/unet-rich", 2),
        ("teach.steps=800", "teach", 2),
        ("extractor.epochs=16", "extractor", 49 / 25),  # and one pass for its accuracy
        ("sample.sweep_samples=3000", "sample/sit-euler-nfe10", 2),
        ("sample.reference_nfe=50", "sample/sit-reference", 0.5),
        ("stein.num_images=1000", "calibrate/sit-heun-nfe9", 2),
        ("stein.teacher_states=256", "follow/sit-whole-nfe5", 2),
        ("stein.teacher_states=256", "grids/sit-nfe5", 2),
        ("stein.num_trajectories=64", "lipschitz/sit-dpmpp2m-nfe6", 2),
        ("diagnose.num_images=1200", "diagnose/repa", 2),
        ("diagnose.num_images=6000", "diagnose/repa", 2.5),  # of 1,500 that there are
        ("train.lr=0.001", "train/sit", 1),
        ("stein.num_images=1000", "train/sit", 1),
    ],
)
def test_twice_the_work_takes_twice_as_long(tmp_path, setting, node, times):
    recipe = "beyond" if node.startswith("grids") else "full"
    before, after = (seconds(tmp_path, *more, recipe=recipe)[node] for more in ((), (setting,)))
    assert after == pytest.approx(times * before, rel=0.02)


def test_larger_images_take_longer_in_every_node_that_a_network_runs_in(tmp_path):
    small = seconds(tmp_path)
    large = seconds(tmp_path, "data.dataset=glyphs", "data.limit=1500")
    grown = {name: large[name] / of for name, of in small.items() if of and name in large}
    for stage in ("train", "sample", "teach", "extractor", "calibrate", "scan", "diagnose"):
        assert all(by > 10 for name, by in grown.items() if name.startswith(stage)), stage
    assert grown["report"] == 1


def test_what_one_preset_says_is_scaled_in_another_that_extends_it(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: digits\ntrain: {steps: 4800}\n")
    found = seconds(tmp_path, preset=str(own))
    assert found["train/sit"] == pytest.approx(300)
    own.write_text("extends: digits\ntrain: {steps: 4800}\nhints: {train/sit: 40}\n")
    assert seconds(tmp_path, preset=str(own))["train/sit"] == 40
    assert seconds(tmp_path, "train.steps=2400", preset=str(own))["train/sit"] == 20


def test_what_the_command_line_says_is_of_this_very_run(tmp_path):
    found = seconds(tmp_path, "train.steps=4800", "hints={train/sit: 40}")
    assert found["train/sit"] == 40


def test_what_is_said_of_a_cpu_tells_nothing_of_a_gpu(tmp_path):
    found = seconds(tmp_path, "train.device=cuda", "resources.train.gpus=1")
    assert found["train/sit"] is None
    assert found["teach"] == 75


def test_trainings_on_one_gpu_follow_each_other(tmp_path):
    plan = planning.make(BENCH, Store(tmp_path / "store"), Request("train", "glyphs32"))
    work = sum(node.seconds for node in plan.nodes.values() if node.node.gpus)
    assert work > 4 * 480
    assert plan.about_seconds(64, 1) == pytest.approx(work)
    assert plan.about_seconds(64, 0) == pytest.approx(work)  # as on the one that it needs
    assert plan.about_seconds(64, 2) == pytest.approx(work / 2)
    assert re.search(r"about \d+ min \d+ s on 64 cores and \d+ GPUs?\)", plan_text(plan, 64))


def test_of_two_sizes_the_nearer_counts():
    assert Known(10, 100).of(300) == 30
    assert Known(10).of(300) == Known(10, 100).of(None) == 10
    sizes = [Known(2.0, 10.0), Known(50.0, 200.0)]
    assert min(sizes, key=lambda known: known.distance(300.0)) is sizes[1]
    assert min(sizes, key=lambda known: known.distance(20.0)) is sizes[0]


class Placed(NumberSettings):
    device: str = Field("cpu", description="where it runs")


def estimate(settings, given):
    return {"flops": 1e9 * settings.value}


def placed(device):
    """The toy catalog, whose first number is of as much work as it is large, and on a device."""

    def chain(toy):
        first, *others = CATALOG.recipes["chain"](toy)
        stage = replace(first.stage, settings=Placed, estimate=f"{__name__}:estimate")
        settings = Placed(**first.settings.model_dump(), device=device)
        return [replace(first, stage=stage, settings=settings), *others]

    return replace(CATALOG, recipes={"chain": chain})


def test_what_was_measured_is_scaled_and_only_on_its_device(tmp_path):
    store = Store(tmp_path / "store")

    def first(value, device="cpu"):
        request = Request("chain", overrides=(f"a.value={value}",))
        return planning.make(placed(device), store, request).nodes["number/a"]

    assert first(100).seconds is None
    request = Request("chain", overrides=("a.value=100",))
    run_all(placed("cpu"), store, request)
    record(store, planning.make(placed("cpu"), store, request))
    took = first(100).seconds
    assert (first(100).state, first(100).work) == (CACHED, 1e11)
    assert store.runs()[0]["nodes"]["number/a"]["work"] == 1e11
    assert first(200).seconds == pytest.approx(2 * took)
    assert first(200, "cuda").seconds is None
