"""What the scheduler does with how nodes ended, without Ray."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline import cluster, progress, run, worker
from pipeline import plan as planning
from pipeline.capacity import Amount
from pipeline.plan import Request
from pipeline.run import MOST_REMAKES, Execution
from pipeline.store import Store
from tests.inline import job_of, run_all
from tests.toy.table import CATALOG


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    run_all(CATALOG, store, Request("chain"))
    return store


@pytest.fixture
def execution(store):
    said = []
    view = SimpleNamespace(update=lambda *a, **k: None, message=said.append)
    listener = SimpleNamespace(view=view, tracker=None, on_change=None, said=said)
    plan = planning.make(CATALOG, store, Request("chain"))
    execution = Execution(plan, store, listener, (), git={})
    execution.channel = SimpleNamespace(drain=list)
    return execution


def damage(execution, name):
    """Damage an artifact; what a reader of it then says."""
    key = execution.nodes[name].key
    execution.store.open("number", key).path.joinpath("number.json").write_text("12345")
    return worker.Outcome(worker.DAMAGED, error="it does not match", damaged=("number", key))


def make(execution, name):
    """Make a node here, as a worker would."""
    outcome = worker.execute(job_of(execution.plan.graph, execution.store, name), lambda e: None)
    assert outcome.state == worker.DONE, outcome.error
    execution._handle(name, outcome)


def states(execution):
    return {name: item.state for name, item in execution.nodes.items()}


def aside(store):
    return store.location.children("quarantine")


def test_damage_that_two_readers_find_is_set_aside_once(execution, store):
    found = damage(execution, "number/b")
    execution._handle("total", found)
    execution._handle("apply/a", found)
    assert states(execution)["number/b"] == progress.QUEUED
    assert {states(execution)[n] for n in ("total", "apply/a")} == {progress.QUEUED}
    assert len(aside(store)) == 1
    assert len(execution.listener.said) == 1


def test_a_node_whose_input_is_made_again_keeps_no_room_free(execution):
    room, item = execution.claims.room, execution.nodes["total"]
    room.awaited[item.key] = room.groups[item.key] = item.node.need
    execution.lacks["total"] = 1
    assert execution._submit("total")
    assert (room.awaited, room.groups, execution.later) == ({}, {}, ["total"])


def test_the_time_that_an_input_is_made_again_in_does_not_count(execution, monkeypatch):
    """Neither for the next attempt, nor by what is heard late of the one that is over."""
    item = execution.nodes["total"]
    item.node = replace(
        item.node, resources=item.node.resources.model_copy(update={"timeout_seconds": 5})
    )
    execution.channel.drain = lambda told=[[("started", "total")]]: told.pop() if told else []
    execution._handle("total", damage(execution, "number/b"))
    assert item.state == progress.QUEUED
    monkeypatch.setattr(cluster, "submit", lambda *arguments: "reference")
    execution.claims.room.all = Amount(cpus=1)
    execution.lacks["total"] = 0
    assert execution._submit("total")
    assert (execution.running, item.deadline) == ({"reference": "total"}, None)


def test_what_becomes_ready_while_another_waits_for_the_only_gpu(tmp_path, monkeypatch):
    """The more urgent newcomer is offered first, and must not wait for the room kept behind it."""
    gpus = ("resources.number.gpus=1", "resources.apply.gpus=1")
    store = Store(tmp_path / "store")
    plan = planning.make(CATALOG, store, Request("chain", overrides=gpus))
    view = SimpleNamespace(update=lambda *a, **k: None, message=print)
    one = Execution(plan, store, SimpleNamespace(view=view, tracker=None, on_change=None), ())
    one.rank |= {"number/a": 0, "apply/a": 1, "number/b": 2}
    handed = []
    monkeypatch.setattr(cluster, "capacity", lambda growth: Amount(4, 1))
    monkeypatch.setattr(cluster, "submit", lambda job, *rest: handed.append(job.node) or job.node)
    one.channel = SimpleNamespace(drain=list, reserve=lambda kinds: None)

    def end(name):
        one._submit_ready()
        assert handed[-1] == name
        assert list(one.running) == [name]
        del one.running[name]
        one.claims.running.clear()
        one.claims.room.leave(one.nodes[name].key)
        make(one, name)

    for name in ("number/a", "apply/a", "number/b", "total"):
        end(name)
    assert handed == ["number/a", "apply/a", "number/b", "total"]


def side_by_side(store, monkeypatch, *overrides):
    """Two executions of one plan that share what runs; nothing is really handed to Ray."""
    plan = planning.make(CATALOG, store, Request("chain", overrides=overrides))
    view = SimpleNamespace(update=lambda *a, **k: None, message=print)
    listener = SimpleNamespace(view=view, tracker=None, on_change=None)
    one = Execution(plan, store, listener, ())
    two = Execution(plan, store, listener, (), claims=one.claims)
    monkeypatch.setattr(cluster, "capacity", lambda growth: Amount(4, 1))
    monkeypatch.setattr(cluster, "submit", lambda job, *rest: job.node)
    for each in (one, two):
        each.channel = SimpleNamespace(drain=list, reserve=lambda kinds: None)
    return one, two


def test_room_that_another_execution_waits_for_is_kept(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    one, two = side_by_side(store, monkeypatch, "resources.number.gpus=1")
    one._submit_ready()
    (waits,) = one.claims.room.awaited
    for lines in (two.ready, two.later):
        lines.clear()
    two.later.append(two.named[waits])  # it may be offered by the other alone
    two.nodes[two.named[waits]].not_before = float("inf")
    two._submit_ready()
    assert set(one.claims.room.awaited) == {waits}


def test_what_waits_with_nothing_running_is_said(tmp_path, monkeypatch, capsys):
    one, _ = side_by_side(Store(tmp_path / "store"), monkeypatch, "resources.number.gpus=1")
    monkeypatch.setattr(cluster, "here", lambda: Amount(4, 1))
    one.claims.room.awaited["another command's"] = Amount(1, 1)
    one._submit_ready()
    assert not one.running
    one.stirred -= 1000
    one._say_what_is_awaited()
    assert "number/" in capsys.readouterr().out


def test_what_a_lost_training_held_is_freed_for_nodes_without_workers(tmp_path, monkeypatch):
    one, _ = side_by_side(Store(tmp_path / "store"), monkeypatch)
    freed = []
    monkeypatch.setattr(run.reservations, "free_orphans", lambda: freed.append(True))
    one._submit_ready()
    for has_groups, found in ((False, []), (True, [True])):
        one.has_groups, one.freed = has_groups, 0.0
        one._free_orphans()
        assert freed == found


def test_a_late_word_of_damage_leaves_the_new_artifact_alone(execution, store):
    found = damage(execution, "number/b")
    execution._handle("total", found)
    make(execution, "number/b")
    execution._handle("apply/a", found)
    assert store.open("number", found.damaged[1]).load() == 4
    assert len(aside(store)) == 1
    assert states(execution)["apply/a"] == progress.QUEUED


def test_what_another_command_makes_again_is_left_to_it(execution, store):
    found = damage(execution, "number/b")
    with store.lock(f"number-{found.damaged[1]}"):
        execution._handle("total", found)
    assert not aside(store)
    assert states(execution)["number/b"] == progress.QUEUED, "waits for the other"


def test_an_input_that_is_damaged_again_and_again_ends_the_node(execution, store):
    for _ in range(MOST_REMAKES):
        execution._handle("total", damage(execution, "number/b"))
        make(execution, "number/b")
    assert len(aside(store)) == MOST_REMAKES, "each in a folder of its own"
    assert states(execution)["total"] == progress.QUEUED
    execution._handle("total", damage(execution, "number/b"))
    assert states(execution)["total"] == progress.FAILED
