from types import SimpleNamespace

from stages.sections import timed


def node(method="sit", **timings):
    manifest = SimpleNamespace(timings=timings)
    artifact = SimpleNamespace(manifest=manifest, description={"method": method})
    return SimpleNamespace(manifest=manifest, artifact=artifact)


def test_medians_of_curves_make_the_claim_and_single_times_do_not():
    slow = [(step, 0.05) for step in range(25, 200, 25)]
    fast = [(step, 0.04) for step in range(25, 200, 25)]
    run = {
        "train/reg": node("reg", step_seconds=slow),
        "train/maskalign": node("maskalign", step_seconds=fast),
        "diagnose/reg": node(step_seconds=0.05),
        "prepare": node(),
        "sample/blocked": SimpleNamespace(manifest=None),
    }
    assert "0.8" in timed.section(run)
    del run["train/maskalign"]
    assert "not measured" in timed.section(run)
