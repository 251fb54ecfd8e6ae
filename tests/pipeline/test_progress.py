"""What a person sees of a run: few lines in a pipe, a bar a phase on a terminal."""

import io
import math

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.capacity import Amount
from pipeline.progress import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    WAITING,
    LiveView,
    NodeView,
    PlainView,
)

NODES = {"prepare": 1.0, "train/sit": 5.0, "train/repa": 5.0, "sample/sit": 2.0}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_in_a_pipe_nodes_say_a_line_at_their_end_and_all_one_every_ten_seconds(clock, capsys):
    view = PlainView(NODES, there=Amount(2))
    view.update("prepare", state=RUNNING)
    clock(1)
    view.update("prepare", state=DONE, note="num_train 5")
    for name in ("train/sit", "train/repa"):
        view.update(name, state=RUNNING)
    for step in range(1, 21):
        clock(1)
        view.update("train/sit", done=step, total=40, unit="steps", note="loss 0.5")
    view.update("train/sit", state=FAILED, note="no memory")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[   1.0 s] prepare done in 1.0 s  num_train 5"
    assert lines[-1] == "[  21.0 s] train/sit failed  no memory"
    regular = lines[1:-1]
    assert [line[:10] for line in regular] == ["[  10.0 s]", "[  20.0 s]"]
    assert "1/4 nodes" in regular[0]
    assert "runs: train/sit 9/40 steps, about 31.0 s left, loss 0.5; train/repa about" in regular[0]


def test_in_a_pipe_a_silent_node_is_spoken_of(clock, capsys):
    view = PlainView(NODES, there=Amount(2))
    view.update("prepare", state=RUNNING)
    for _ in range(22):
        clock(1)
        view.tick()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines] == ["[  10.0 s]", "[  20.0 s]"]
    assert "runs: prepare" in lines[1]


def test_in_a_pipe_it_is_said_what_is_waited_for(clock, capsys):
    view = PlainView(NODES, there=Amount(2))
    clock(11)
    view.update("prepare", state=WAITING)
    assert "; prepare waits for another run" in capsys.readouterr().out


def test_a_terminal_shows_a_bar_for_phases_that_have_begun_and_not_ended(clock):
    view = LiveView(NODES, there=Amount(2))
    view.close()
    view.update("prepare", state=DONE)
    view.update("train/sit", state=DONE)
    view.update("train/repa", state=RUNNING, done=1, total=4, unit="steps")
    clock(2)
    stream = io.StringIO()
    Console(file=stream, width=100).print(view._table())
    rows = [line.strip() for line in stream.getvalue().splitlines()]
    assert rows[0].startswith("train")
    assert rows[0].endswith("1/2")
    assert rows[1].startswith("▸ train/repa")
    assert "1/4 steps" in rows[1]
    assert rows[2].startswith("2/4 nodes")
    assert len(rows) == 3


def test_nodes_that_share_a_gpu_wait_for_each_other():
    need = Amount(1, 0.5)
    views = {f"train/{i}": NodeView(f"train/{i}", expected=10.0, need=need) for i in range(6)}
    assert progress.time_left(views, Amount(16, 1), now=0) == (30, False)
    assert progress.time_left(views, Amount(16, 0), now=0) == (30, False)  # as it grows by one
    assert progress.time_left(views, Amount(16, 2), now=0) == (15, False)
    assert progress.time_left(views, Amount(1, 1), now=0) == (60, False)
    alone = {"train/a": NodeView("train/a", expected=10.0, need=Amount(0, 8))}
    assert progress.time_left(alone, Amount(16), now=0) == (10, False)
    wide = {f"fit/{i}": NodeView(f"fit/{i}", expected=10.0, need=Amount(4)) for i in range(4)}
    assert progress.time_left(wide, Amount(8), now=0) == (20, False)
    assert progress.time_left(wide, Amount(math.inf, math.inf), now=0) == (10, False)


def test_the_machines_that_ray_has_are_what_the_time_left_counts_on():
    needs = {"train/0": Amount(1, 1)}
    view = PlainView({f"train/{i}": 10.0 for i in range(8)}, Amount(2), needs=needs)
    assert view.nodes["train/0"].need == Amount(1, 1)
    assert view.summary().endswith("about 40.0 s left")
    view.there = Amount(8)
    assert view.summary().endswith("about 10.0 s left")


def test_another_attempt_of_a_node_is_timed_by_itself(clock):
    view = PlainView({"train/a": 500.0, "train/b": 500.0}, Amount(1))
    view.update("train/a", state=RUNNING)
    view.update("train/a", done=900, total=1000, unit="steps")
    assert view.nodes["train/a"].resumed
    clock(60)
    view.update("train/a", state=QUEUED)
    view.update("train/a", state=RUNNING)
    assert not view.nodes["train/a"].resumed
    view.update("train/a", done=0, total=1000, unit="steps")
    clock(20)
    view.update("train/a", done=100, total=1000, unit="steps")
    assert view.nodes["train/a"].remaining(progress.time.monotonic()) == pytest.approx(180)


def test_of_what_nothing_is_expected_others_of_its_stage_tell(clock):
    view = PlainView(dict.fromkeys(("trial-01", "trial-02", "trial-13", "total")), there=Amount(1))
    assert "left" not in view.summary()
    view.update("trial-01", state=RUNNING)
    clock(20)
    view.update("trial-01", state=DONE)
    assert view.summary().endswith("at least 40.0 s left")
    view.update("trial-02", state=RUNNING)
    clock(5)
    view.update("total", state=progress.REUSED)
    assert view.summary().endswith("about 35.0 s left")


def test_what_nobody_knows_takes_at_least_what_is_known():
    view = PlainView({"train/a": 10.0, "total": None}, there=Amount(1))
    assert view.summary().endswith("at least 10.0 s left")
    assert "left" not in PlainView({"total": None}, there=Amount(1)).summary()


def test_time_left_is_what_the_longest_node_or_all_cores_need():
    views = {name: progress.NodeView(name, QUEUED, expected=s) for name, s in NODES.items()}
    assert progress.time_left(views, Amount(2), now=0)[0] == pytest.approx(6.5)
    assert progress.time_left(views, Amount(8), now=0)[0] == pytest.approx(5)
    views["prepare"] = progress.NodeView("prepare")
    assert progress.time_left(views, Amount(2), now=0)[0] == pytest.approx(
        6.5 - 0.5 * NODES["prepare"]
    )


def test_the_pace_of_a_stage_is_expected_of_its_other_nodes():
    """Twenty seconds in, 1 % is done of what was to take a minute: it takes 2,000 s, and so does
    the next of its kind."""
    slow = NodeView("train/a", RUNNING, done=1, total=100, expected=60.0, begun=100.0)
    queued = NodeView("train/b", expected=60.0)
    other = NodeView("sample/a", expected=5.0)
    assert slow.remaining(110.0) == 50.0  # too early to judge
    assert slow.remaining(120.0) == pytest.approx(1980)
    views = {node.name: node for node in (slow, queued, other)}
    assert progress.time_left(views, Amount(1), now=120.0)[0] == pytest.approx(1980 + 2000 + 5)
    quick = NodeView("train/c", DONE, expected=60.0, seconds=20.0)
    views = {node.name: node for node in (quick, queued, other)}
    assert progress.time_left(views, Amount(1), now=120.0)[0] == pytest.approx(20 + 5)
    cached = NodeView("train/c", progress.REUSED, expected=60.0)
    views = {node.name: node for node in (cached, queued)}
    assert progress.time_left(views, Amount(1), now=120.0)[0] == pytest.approx(60)


def test_a_node_that_counts_anew_is_timed_anew(clock):
    """A teacher is trained for 1,000 s, then looks at 10,000 images, 500 of them a second."""
    view = PlainView({"teach": 30.0}, there=Amount(1))
    view.update("teach", state=RUNNING)
    view.update("teach", done=25, total=2000, unit="steps")
    clock(1000)
    view.update("teach", done=2000, total=2000, unit="steps")
    view.update("teach", done=0, total=10_000, unit="images")
    clock(4)
    view.update("teach", done=2000, total=10_000, unit="images")
    left = view.nodes["teach"].remaining(progress.time.monotonic())
    assert left == pytest.approx(16)


def test_what_was_resumed_says_nothing_of_others_and_keeps_its_own_pace(clock):
    """Twenty steps in twenty seconds, from the 900th of a thousand on: eighty are left."""
    view = PlainView({"train/a": 500.0, "train/b": 500.0}, there=Amount(1))
    view.update("train/a", state=RUNNING)
    view.update("train/a", done=900, total=1000, unit="steps")
    clock(20)
    view.update("train/a", done=920, total=1000)
    now = progress.time.monotonic()
    assert view.nodes["train/a"].remaining(now) == pytest.approx(80)
    assert progress.time_left(view.nodes, Amount(1), now)[0] == pytest.approx(580)
    view.update("train/a", state=DONE)
    assert progress.time_left(view.nodes, Amount(1), now)[0] == pytest.approx(500)
    view.update("train/b", state=RUNNING)
    view.update("train/b", done=1, total=100)  # a first step is no resumption
    clock(20)
    view.update("train/b", done=2, total=100)
    now = progress.time.monotonic()
    assert view.nodes["train/b"].remaining(now) == pytest.approx(20 * 49)
