"""A few rounds of faults, and that the harness sees what went wrong."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.faults import __main__ as faults
from tests.faults import kinds

ROUNDS = ("kill -9 of the child", "S3: kill -9 of everything", "a bit of a payload flips")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_loses_nothing(name):
    command = [sys.executable, "-m", "tests.faults", "--rounds", "1", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    # A damaged artifact is made again; nothing else that had finished is.
    again = "[01]" if "payload" in name else "0"
    assert re.search(rf"\| {re.escape(name)} \| 1 \| {again} \|", done.stdout), done.stdout


class Failing:
    """A command that fails, leaves somebody behind, and makes again what was finished."""

    def __init__(self, arguments, log, environment=None):
        self.made_of = arguments, log, environment
        store = Path(arguments[-1])
        store.mkdir(exist_ok=True)
        with (store.parent / "marks").open("a") as stream:
            stream.write("number/0\n")

    def again(self):
        return Failing(*self.made_of)

    def wait(self):
        return 7

    def wait_for(self, words, count):
        return False

    def wait_for_sender(self):
        pass

    def said(self):
        return "Traceback (most recent call last): no"

    def orphans(self):
        return ["python left"]

    def end(self):
        pass


def test_whatever_goes_wrong_is_told(tmp_path, monkeypatch):
    payloads = iter([{"number/0": "abc"}, {"number/0": "abc"}])
    monkeypatch.setattr(faults, "Command", Failing)
    monkeypatch.setattr(faults, "payloads", lambda store: next(payloads))
    monkeypatch.setattr(faults, "send_pending", lambda folder: (0, ["run-1"]))
    made = {"total": "abc", "number/0": "abc"}
    fault = kinds.Fault(lambda scene: None)
    tally = faults.play(fault, tmp_path / "0", random.Random(0), made)
    for problem in (
        "ended with [7]: Traceback (most recent call last): no",
        "1 finished nodes were made again",
        "says Traceback (most recent call last): no",
        "lost or other bytes: total",
        "MLflow lacks some of run-1",
        "left behind: ['python left']",
    ):
        assert problem in tally.problems
    text = faults.table({"x": tally})
    assert "| x | 1 | 1 |" in text
    assert text.endswith(f"1 rounds, {len(tally.problems)} problems")


def test_a_graph_that_is_not_whole_has_no_payloads(tmp_path):
    assert faults.payloads(Store(tmp_path / "store")) == {}


def test_every_fault_is_played_before_one_comes_again():
    assert len(kinds.FAULTS) > 30
    assert {fault.place for fault in kinds.FAULTS.values()} == {
        kinds.DISK,
        kinds.SMALL_DISK,
        kinds.S3,
    }


def test_a_clock_is_set_back(tmp_path):
    try:
        environment = kinds.wrong_clock(tmp_path, tmp_path / "clock")
    except kinds.NotHereError:
        pytest.skip("no compiler here")
    script = "import datetime, time; print(time.time(), datetime.datetime.now().timestamp())"
    for seconds in (None, -86_400):
        if seconds:
            (tmp_path / "clock").write_text(str(seconds))
        told = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for told_time in map(float, told):
            assert abs(told_time - time.time() - (seconds or 0)) < 60
