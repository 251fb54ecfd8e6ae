"""The GPU benchmark runs small on a CPU: every phase but `stages`, which recipes' tests cover,
and `features`, whose networks are large."""

import json
import time

import pytest

from tests.bench import gpu
from tests.stages.test_table import graph

SHORT = (gpu.ceilings, gpu.correctness, gpu.waits, gpu.training, gpu.sampling, gpu.feeding)
SHORT += (gpu.resume, gpu.recomputed, gpu.kernels, gpu.host, gpu.nccl)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "PHASES", (*SHORT, gpu.scoring, gpu.decoding))
        out = tmp_path_factory.mktemp("out") / "gpu.jsonl"
        bench = gpu.Bench("cpu", tiny=True, deadline=time.monotonic() + 300)
        found = gpu.run(bench, out)
        assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == found
    return {record["name"]: record for record in found}


def test_every_phase_measures_and_none_fails(records):
    assert not [record for record in records.values() if "error" in record]
    assert records["decoding/images_a_second"]["value"] > 0
    assert records["kernels/tiny/products_ms"]["value"] > 0
    assert records["kernels/tiny/attention_ms"]["value"] > 0
    assert records["host/4/steps_a_second"]["value"] > 0
    assert records["nccl/sum"]["value"] == 8
    assert records["nccl/sharded"]["value"] < 1e-6
    assert records["scoring/adm/seconds"]["value"] > 0
    shown = gpu.shown(list(records.values()))
    for name in ("ceilings/", "training/", "sampling/", "feeding/"):
        assert any(found.startswith(name) for found in records), name
        assert f"| {name}" in shown


def test_some_phases_alone(tmp_path, monkeypatch):
    def phase(bench):
        yield "value", 1.0

    def other(bench):
        raise AssertionError("it was not asked for")

    monkeypatch.setattr(gpu, "PHASES", (phase, other))
    bench = gpu.Bench("cpu", tiny=True, deadline=time.monotonic() + 60)
    names = [record["name"] for record in gpu.run(bench, tmp_path / "gpu.jsonl", ["phase"])]
    assert names == ["device", "phase/value"]


def test_what_has_a_target_here_meets_it(records):
    for name in ("correctness/float32", "correctness/compiled", "correctness/draws"):
        assert records[name]["value"] <= gpu.TARGETS[name][1]
    assert 0 < records["correctness/bfloat16"]["value"] <= gpu.TARGETS["correctness/bfloat16"][1]
    for name in ("default/repeated", "deterministic/resumed", "deterministic/compiled/resumed"):
        assert records[f"resume/{name}"]["value"] == 0
    assert records["training/waits_a_step"]["value"] == 0
    assert records["scoring/host_gib"]["value"] <= gpu.TARGETS["scoring/host_gib"][1]


def test_the_table_says_what_met_its_target():
    table = gpu.shown(
        [
            {"name": "training/B/compiled/maskalign_over_reg", "value": 0.9},
            {"name": "sampling/XL/bfloat16_compiled_over_float32", "value": 7.0},
            {"name": "stages", "error": "no time was left"},
        ]
    )
    assert "| 0.9 | at most 0.88 | MISSED |" in table
    assert "| 7 | at least 6 | met |" in table
    assert "| stages | no time was left | | |" in table


@pytest.mark.parametrize("preset", ["smoke-gpu", "glyphs32"])
def test_every_stage_that_has_a_device_is_put_on_it(preset):
    nodes = graph(preset=preset).nodes.values()
    found = [node for node in nodes if hasattr(node.settings, "device")]
    assert {node.settings.device for node in found} == {"cuda"}
    assert all(node.resources.gpus for node in found)
    assert {"evaluate", "features", "train", "diagnose"} <= {node.stage.name for node in found}


def test_no_phase_begins_when_the_time_is_up(tmp_path):
    found = gpu.run(gpu.Bench("cpu", tiny=True, deadline=time.monotonic() - 1), tmp_path / "x")
    assert all("value" not in record for record in found)
    assert len(found) == 1 + len(gpu.PHASES)
