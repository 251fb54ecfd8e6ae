"""Finished nodes reach the tracker, however long their artifacts take to read."""

import threading
from types import SimpleNamespace

import pytest

from pipeline.track import relay

NODES = ["a", "b", "c"]


class Gated:
    """A store whose artifacts can be read once the gate is open."""

    def __init__(self):
        self.gate, self.asked = threading.Event(), threading.Event()

    def open(self, stage, key):
        self.asked.set()
        assert self.gate.wait(60)
        return SimpleNamespace(
            curves=lambda: [("loss", 1, 1.0)],
            datasets=list,
            tracked_files=list,
            table_files=list,
        )


@pytest.fixture
def gated():
    store = Gated()
    yield store
    store.gate.set()


@pytest.fixture
def told():
    return []


@pytest.fixture
def begun(gated, told):
    """A relay that has heard of three nodes and reads the first."""
    tracker = SimpleNamespace(node_finished=lambda name, **rest: told.append(name))
    made = relay.Relay(tracker, gated)
    manifest = SimpleNamespace(
        stage="s", key="k", timings={}, metrics={}, tags={}, abscissa=None, settings={}
    )
    for name in NODES:
        node = SimpleNamespace(tags={}, stage=SimpleNamespace(name="s"))
        made.ended(name, SimpleNamespace(node=node, manifest=manifest, state="done"))
    assert gated.asked.wait(60)
    return made


def test_a_slow_artifact_is_waited_for_and_the_wait_told(begun, gated, told, monkeypatch):
    monkeypatch.setattr(relay, "PATIENCE_SECONDS", 0.0)
    said = []

    def say(text):
        said.append(text)
        gated.gate.set()

    begun.close(say)
    assert told == NODES
    assert "3 nodes" in said[0]
    assert not begun.problems


def test_who_ends_the_wait_hears_what_mlflow_lacks(begun, gated, told, monkeypatch):
    monkeypatch.setattr(relay, "PATIENCE_SECONDS", 0.0)

    def impatient(text):
        raise KeyboardInterrupt

    begun.close(impatient)
    assert begun.problems == ["MLflow lacks a, b, c: nobody waited until they were read"]
    gated.gate.set()
    begun._thread.join(60)
    assert told == [], "the tracker is closed by then"


def test_an_interrupted_run_leaves_the_rest_to_its_continuation(begun):
    begun.stop(timeout_seconds=0)
    assert begun.problems == ["MLflow lacks a, b, c: they are told when the run goes on"]
