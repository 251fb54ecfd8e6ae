"""A sample of hostile inputs of each kind; `python -m tests.fuzz` gives as many as wanted."""

import subprocess
import sys

import pytest

from tests.fuzz.guard import Guard


@pytest.mark.slow
def test_a_sample_of_hostile_inputs_finds_no_fault():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "2700", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2700 inputs, 0 faults" in done.stdout


def test_the_guard_hears_what_escapes(tmp_path):
    """In a process of its own: Python's hooks stay for its whole life."""
    script = (
        "import os, subprocess, sys; from pathlib import Path\n"
        f"from {Guard.__module__} import Guard\n"
        f"inside, outside = Path({str(tmp_path / 'in')!r}), Path({str(tmp_path / 'out')!r})\n"
        "inside.mkdir(); guard = Guard(inside); guard.on = True\n"
        "(inside / 'x').write_text(''); (inside / 'd').mkdir(); (inside / 'x').unlink()\n"
        "assert not guard.escapes, guard.escapes\n"
        "(inside / '../out').write_text(''); outside.unlink(); os.system('true')\n"
        "subprocess.run(['true'])\n"
        "guard.on = False; print(*(e.split()[0] for e in guard.escapes))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == ["open", "os.remove", "os.system", "subprocess.Popen"]
