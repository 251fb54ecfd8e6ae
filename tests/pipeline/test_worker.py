"""What happens in a worker: capture, resume, waiting, errors, damaged inputs."""

import pytest

from pipeline import fanout, worker
from pipeline import plan as planning
from pipeline.garbage import garbage
from pipeline.plan import Request
from pipeline.store import Store
from tests.inline import job_of
from tests.toy.table import CATALOG


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def execute(store, name, *overrides, mapper=worker.run_inline):
    plan = planning.make(CATALOG, store, Request("chain", overrides=overrides))
    events = []
    outcome = worker.execute(job_of(plan.graph, store, name), events.append, mapper)
    return outcome, events


def log_of(events):
    return "".join(event[2] for event in events if event[0] == "log")


def test_a_node_leaves_an_artifact_with_its_provenance(store):
    outcome, events = execute(store, "number/a", "a.steps=3")
    assert outcome.state == worker.DONE
    assert outcome.made
    manifest = outcome.manifest
    assert manifest.metrics == {"value": 3.0}
    assert manifest.curves == {"loss": 3}
    assert set(manifest.files) == {"number.json", "curves.parquet"}
    assert manifest.sources
    assert manifest.host["cpus"] > 0
    rows = store.open("number", manifest.key).curves()
    assert rows == [("loss", 0, 1.0), ("loss", 1, 0.5), ("loss", 2, 1 / 3)]
    assert "made 3, counted from 0" in log_of(events)
    assert ("started", "number/a") in events
    assert [e for e in events if e[0] == "progress"][-1][2:5] == (3.0, 3.0, "steps")
    assert not store.has_work("number", manifest.key)


def test_the_second_time_nothing_runs(store):
    first, _ = execute(store, "number/a")
    second, events = execute(store, "number/a")
    assert (second.made, second.manifest) == (False, first.manifest)
    assert events == []


def test_a_node_continues_from_its_work_area(store):
    plan = planning.make(CATALOG, store, Request("chain", overrides=("a.steps=5",)))
    (store.work("number", plan.nodes["number/a"].key).path / "step").write_text("4")
    outcome, events = execute(store, "number/a", "a.steps=5")
    assert "counted from 4" in log_of(events)
    fresh, _ = execute(Store(store.local / "other"), "number/a", "a.steps=5")
    assert outcome.manifest.payload == fresh.manifest.payload


def test_an_error_is_told_in_one_line_and_leaves_nothing(store):
    outcome, events = execute(store, "number/a", "a.fail=true")
    assert outcome.state == worker.FAILED
    assert outcome.error == "value 3 was told to fail"
    assert "Traceback" not in log_of(events)
    assert list(store.artifacts()) == []
    assert not list((store.local / "tmp").iterdir())


def test_an_unexpected_error_has_its_traceback_in_the_log(store):
    def broken(*arguments):
        raise ZeroDivisionError("by nothing")

    execute(store, "number/a")
    outcome, events = execute(store, "apply/a", "apply.shards=2", mapper=broken)
    assert outcome.error == "ZeroDivisionError: by nothing"
    assert "Traceback" in log_of(events)


def test_a_node_that_another_process_makes_is_left_to_it(store):
    plan = planning.make(CATALOG, store, Request("chain"))
    with store.lock(f"number-{plan.nodes['number/a'].key}"):
        outcome, _ = execute(store, "number/a")
        assert outcome.state == worker.BUSY
    assert execute(store, "number/a")[0].state == worker.DONE


def test_a_damaged_input_is_named(store):
    made, _ = execute(store, "number/a")
    (store.local / "artifacts/number" / made.manifest.key / "number.json").write_text("9")
    plan_before = made.manifest.key
    outcome, _ = execute(store, "apply/a")
    assert outcome.state == worker.DAMAGED
    assert outcome.damaged == ("number", plan_before)


def test_shards_give_the_same_as_one(store):
    execute(store, "number/a")
    one, _ = execute(store, "apply/a")
    many, events = execute(Store(store.local), "apply/a", "apply.shards=4", "apply.function=square")
    assert one.manifest.metrics == {"value": 6.0}
    assert many.manifest.metrics == {"value": 9.0}
    assert [f"shard {i}" in log_of(events) for i in range(4)] == [True] * 4


def test_an_error_of_a_shard_elsewhere_is_the_one_it_raised(monkeypatch):
    import ray
    from ray.exceptions import RayTaskError

    class Task:
        def options(self, **_):
            return self

        def remote(self, _node, _function, item, *_):
            return f"what shard {item} gives"

    class Everything:
        def width(self, most, kinds):
            return most

    class Here:
        def get_assigned_resources(self):
            return {"CPU": 1.0}

    def lost(reference):
        raise RayTaskError("shard", "Traceback ...", ValueError("no image")).as_instanceof_cause()

    monkeypatch.setattr(fanout, "remote", lambda function, fresh: Task())
    monkeypatch.setattr(ray, "wait", lambda going, num_returns: (going[:1], going[1:]))
    monkeypatch.setattr(ray, "cancel", lambda reference, force: None)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lost)
    monkeypatch.setattr(ray, "get_runtime_context", Here)
    with pytest.raises(ValueError, match="no image") as found:
        fanout.fan_out("node", abs, [1, 2], (), Everything(), 1, fanout.Share(0, 0, 3, 9, False))
    assert type(found.value) is ValueError
    assert str(found.value) == "no image"


def test_threads_of_torch_follow_the_node():
    import os

    import torch

    before = torch.get_num_threads()
    worker.set_threads(2)
    assert torch.get_num_threads() == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"
    worker.set_threads(before)


def context_of(store, events, *overrides):
    plan = planning.make(CATALOG, store, Request("chain", overrides=overrides))
    job = job_of(plan.graph, store, "number/a")
    return worker.WorkerContext(job, {}, store.local, None, events.append, worker.run_inline)


def test_what_a_node_remembers_serves_others_of_its_stage_and_code(store, monkeypatch):
    first, other = context_of(store, []), context_of(store, [], "a.steps=7")
    assert first.recall({"weights": "abc"}) is None
    first.remember({"weights": "abc"}, {"rows": [1, 2.5]})
    assert other.recall({"weights": "abc"}) == {"rows": [1, 2.5]}
    assert other.recall({"weights": "abd"}) is None
    monkeypatch.setitem(other._identity.sources, "tests.toy.stages", "changed")
    assert other.recall({"weights": "abc"}) is None
    (file,) = (store.local / "memory" / "number").iterdir()
    file.write_text("{half")
    assert first.recall({"weights": "abc"}) is None
    assert garbage(store, keep=1)[0] == ["memory/number"]


def test_a_notice_goes_to_the_log_and_to_the_driver(store, capsys):
    events = []
    context_of(store, events).notice("rises again", alarm="step 5")
    assert events == [("notice", "number/a", "rises again", {"alarm": "step 5"})]
    assert "rises again" in capsys.readouterr().out
