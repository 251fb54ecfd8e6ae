"""The data benchmark at its smallest: real processes, a real kill -9."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
SMALL = ("--images", "60", "--side", "32", "--shard-mib", "0.005")


def bench(folder, *more):
    """What it prints."""
    command = [sys.executable, "-m", "tests.bench.data", *more, *SMALL, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def test_a_conversion_killed_in_the_middle_ends_in_the_same_bytes(tmp_path):
    said = bench(tmp_path, "kill")
    assert int(re.search(r"killed with (\d+) finished", said)[1]) >= 1
    assert said.count("held") == 2, said


def test_passes_stay_within_their_memory(tmp_path):
    phases = ("--phases", "prepare", "read", "neighbours")
    said = bench(tmp_path, "memory", "--kinds", "folder", *phases)
    assert said.count("held") == 3, said
