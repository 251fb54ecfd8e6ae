"""A few rounds of faults, and that the harness sees what went wrong."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.faults import __main__ as faults

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


def test_other_bytes_and_what_never_ends_well_are_told(tmp_path, monkeypatch):
    class Failing:
        def __init__(self, arguments, log):
            Path(arguments[-1]).mkdir(exist_ok=True)
            (tmp_path / "0" / "marks").write_text("number/0\n")

        def wait(self):
            return 7

        def wait_for(self, words, count):
            return False

        def said(self):
            return "no"

        def orphans(self):
            return ["python left"]

        def end(self):
            pass

    monkeypatch.setattr(faults, "Command", Failing)
    made = {"total": "abc"}
    tally = faults.play(lambda scene: None, tmp_path / "0", random.Random(0), made)
    assert "ended with 7: no" in tally.problems
    assert "lost or other bytes: total" in tally.problems
    assert "left behind: ['python left']" in tally.problems
    assert "| x | 1 | 0 |" in faults.table({"x": tally})
    assert faults.payloads(Store(tmp_path / "0" / "store")) == {}
