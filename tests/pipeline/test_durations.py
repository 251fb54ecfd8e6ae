"""How long a node takes follows from what is known of one like it, and how much more it does."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydantic import Field

from pipeline import durations
from pipeline import plan as planning
from pipeline.capacity import Amount
from pipeline.commands import plan_text
from pipeline.durations import Foreseen, Known
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
    grown = {name: large[name] / of for name, of in small.items() if large.get(name)}
    for stage in ("train", "sample", "teach", "extractor", "calibrate", "scan", "diagnose"):
        times = [by for name, by in grown.items() if name.startswith(stage)]
        assert times, stage
        assert min(times) > 5, stage
    assert large["prepare"] is None  # which reads other files


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
    assert plan.about_seconds(Amount(64, 1)) == pytest.approx(work)
    assert plan.about_seconds(Amount(64, 0)) == pytest.approx(work)  # as on the one that it needs
    assert plan.about_seconds(Amount(64, 2)) == pytest.approx(work / 2)
    assert re.search(r"about \d+ min \d+ s on 64 cores and \d+ GPUs?\)", plan_text(plan, 64))


def test_what_nobody_counts_takes_as_long_only_where_it_is_the_same(tmp_path):
    usual = seconds(tmp_path)
    assert usual["report"] is not None
    assert seconds(tmp_path, "train.lr=0.001")["report"] == usual["report"]
    assert seconds(tmp_path, "data.held_out=280")["spectrum"] is None
    jit = "train.network={kind: jit, width: 64, depth: 2, heads: 2, patch: 2}"
    more = (jit, "train.method=jit", "maskalign.methods=[jit]")
    found = seconds(tmp_path, *more, recipe="train")
    sampled = [found[name] for name in found if name.startswith("sample/jit")]
    assert sampled
    assert {found["train/jit"], *sampled} == {None}
    sets = "sample.nfes=[3, 4, 5, 6, 7, 8, 9, 10]"
    assert seconds(tmp_path, sets)["evaluate/sit-euler"] > usual["evaluate/sit-euler"]


@pytest.mark.parametrize(
    "setting", ["train.precision=bfloat16", "train.compile=true", "train.num_workers=2"]
)
def test_what_runs_otherwise_takes_another_time(tmp_path, setting):
    found = seconds(tmp_path, setting)
    assert found["train/sit"] is None
    assert found["teach"] == 75


def test_other_kinds_of_network_are_of_another_speed(tmp_path):
    (tmp_path / "dinov2_vits14_pretrain.pth").touch()
    given = ("extractor.kind=dinov2-small", f"extractor.weights={tmp_path}")
    assert seconds(tmp_path, *given)["features/held-out"] is None


def test_a_recipe_that_needs_more_than_its_preset_is_not_guessed_at(tmp_path):
    file = tmp_path / "samples.npz"
    np.savez(file, arr_0=np.zeros((1500, 8, 8, 1), np.uint8))
    found = seconds(tmp_path, f"evaluate.path={file}", recipe="evaluate")
    assert found["extractor"] is None


def test_a_preset_that_bears_the_name_of_one_it_extends(tmp_path):
    own, other = tmp_path / "digits.yaml", tmp_path / "a" / "digits.yaml"
    own.write_text("extends: digits\ntrain: {steps: 4800}\n")
    assert seconds(tmp_path, preset=str(own))["train/sit"] == pytest.approx(300)
    own.write_text("extends: digits\ntrain: {steps: 1200}\nhints: {train/sit: 75}\n")
    other.parent.mkdir()
    other.write_text("extends: ../digits.yaml\ntrain: {steps: 4800}\n")
    assert seconds(tmp_path, preset=str(other))["train/sit"] == pytest.approx(300)


def of(work, scope="", **how):
    return Foreseen(work, how, scope)


def test_an_operation_takes_as_long_as_others_did_unless_these_were_few():
    known = Known(10, of(1e12))
    assert known.of(of(3e12)) == pytest.approx(30)
    assert known.of(of(1e11)) == pytest.approx(1)
    assert known.of(of(1e15)) == pytest.approx(1e4)
    # Two seconds of 1e6 operations went elsewhere.
    assert Known(2, of(1e6)).of(of(2e6)) == pytest.approx(2, rel=1e-3)
    assert Known(2, of(1e6)).of(of(1e9)) is None


def test_what_is_not_counted_tells_of_its_own_like_alone():
    assert Known(10, of(None, "a")).of(of(None, "a")) == 10
    assert Known(10, of(None, "a")).of(of(None, "b")) is None
    assert Known(10, of(None, "a")).of(of(1e9)) is None
    assert Known(10, of(1e9)).of(of(None, "a")) is None
    assert Known(10, of(1e9, device="cpu")).of(of(1e9, device="cuda")) is None
    assert Known(10, of(1e9, threads=1)).of(of(1e9, threads=2)) is None


class Placed(NumberSettings):
    device: str = Field("cpu", description="where it runs")


def estimate(settings, given):
    return {"flops": 1e12 * settings.value}


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
        request = Request("chain", overrides=(f"a.value={value}", "a.seconds=0.1"))
        return planning.make(placed(device), store, request).nodes["number/a"]

    assert first(100).seconds is None
    request = Request("chain", overrides=("a.value=100", "a.seconds=0.1"))
    run_all(placed("cpu"), store, request)
    record(store, planning.make(placed("cpu"), store, request))
    took = first(100).seconds
    assert first(100).state == CACHED
    told = store.runs()[0]["nodes"]["number/a"]["foreseen"]
    assert told == {"work": 1e14, "how": {"threads": 1, "device": "cpu"}, "scope": ""}
    assert first(200).seconds == pytest.approx(2 * took)
    assert first(200, "cuda").seconds is None


def test_of_a_hint_and_a_measurement_the_nearer_in_size_counts(tmp_path):
    def chain(toy):
        first, *others = placed("cpu").recipes["chain"](toy)
        return [replace(first, hint_seconds=100.0, hint_setting="apply.shards"), *others]

    preset = tmp_path / "own.yaml"
    preset.write_text("a: {value: 1}\napply: {shards: 1}\n")
    catalog, store = replace(placed("cpu"), recipes={"chain": chain}), Store(tmp_path / "store")

    def request(value):
        return Request("chain", str(preset), (f"a.value={value}", "a.seconds=0.1"))

    run_all(catalog, store, request(100))
    record(store, planning.make(catalog, store, request(100)))
    found = {
        value: planning.make(catalog, store, request(value)).nodes["number/a"].seconds
        for value in (2, 90)
    }
    assert found[2] == pytest.approx(200)  # twice the preset's own
    assert 0 < found[90] < 1  # nearer to what took a tenth of a second


def test_what_an_old_record_measured_is_left_aside(tmp_path):
    """It does not say of how much work that was."""
    store = Store(tmp_path / "store")
    request = Request("chain", overrides=("a.value=100", "a.seconds=0.1"))
    run_all(CATALOG, store, request)
    entry = record(store, planning.make(CATALOG, store, request))
    for node in entry.data["nodes"].values():
        del node["foreseen"]
    store.write_run(entry.id, entry.data)
    again = planning.make(CATALOG, store, Request("chain", overrides=("a.value=7",)))
    assert again.nodes["number/a"].seconds is None


def test_a_plan_looks_at_each_node_once(tmp_path, monkeypatch):
    seen, foreseen = [], Foreseen.of.__func__

    def noted(cls, graph, node):
        seen.append(node.name)
        return foreseen(cls, graph, node)

    monkeypatch.setattr(durations.Foreseen, "of", classmethod(noted))
    nodes = seconds(tmp_path, "stein.nfes=[4,7,9]", recipe="stein")
    assert len(nodes) > 500
    assert max(Counter(seen).values()) <= 2  # here, and as the preset has it
