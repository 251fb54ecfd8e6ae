"""What ends a node or a command for good, in one sentence."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from pipeline import outcomes, supervise
from pipeline.errors import PipelineError, UsageError

SAID = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "127.0.0.1, ID: 45) was 4.90GB used / 23.54GB limit (0.208221)\nSelected to kill: (Task: name="
    "number/a, actual memory used=0.04GB, worker ID=1)"
)


def test_what_the_memory_monitor_says_becomes_one_sentence():
    said = outcomes.out_of_memory(SAID)
    assert "killed 3 times" in said
    assert "(4.90 of 23.54 GB were in use, its own process 0.04 GB)" in said
    assert "\n" not in outcomes.out_of_memory("something else\nover lines")


@pytest.mark.slow
def test_a_node_that_never_fits_into_memory_fails_after_three_tries(tmp_path):
    environment = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    command = [sys.executable, "-m", "tests.toy", "run", "chain", "a.seconds=600", "--only"]
    done = subprocess.run(
        [*command, "number/a", "--store", str(tmp_path / "store")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "number/a failed: killed 3 times because the machine ran out of memory" in done.stdout
    assert "Eviction Stats" not in done.stdout + done.stderr


def attempts_of(body):
    """How often a body runs under `supervise`, with its exit code and what was said."""
    reader, writer = os.pipe()
    said = []

    def counted(attempt):
        os.write(writer, b"x")
        return body(attempt)

    try:
        code = supervise.supervise(counted, said.append)
    finally:
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            count = len(stream.read())
    return code, count, said


def test_a_driver_that_dies_after_its_last_node_is_not_started_again():
    def body(attempt):
        supervise.decided(0)
        os.kill(os.getpid(), 9)

    code, count, said = attempts_of(body)
    assert (code, count) == (0, 1)
    assert said == ["the command died when its last node had ended; what it made is kept"]


def test_an_interrupted_command_that_is_slow_to_leave_is_no_command_that_died(monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.2)

    def body(attempt):
        supervise.decided(supervise.INTERRUPTED)
        os.kill(os.getppid(), signal.SIGTERM)
        while True:  # through the interrupt, as a library that ends slowly
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()

    code, count, said = attempts_of(body)
    assert (code, count, said) == (supervise.INTERRUPTED, 1, [])


def test_a_driver_that_dies_before_is_started_again():
    def body(attempt):
        if attempt < 3:
            os.kill(os.getpid(), 9)
        return 0

    code, count, said = attempts_of(body)
    assert (code, count, len(said)) == (0, 3, 2)


@pytest.mark.parametrize(("error", "kind"), [(UsageError, UsageError), (PipelineError, None)])
def test_what_the_child_refuses_the_parent_says(error, kind):
    def body(attempt):
        raise error("set it otherwise")

    with pytest.raises(kind or PipelineError, match="set it otherwise") as found:
        attempts_of(body)
    assert str(found.value) == "set it otherwise"
    assert found.value.exit_code == error.exit_code
    assert "in body" in found.value.__notes__[0], "--debug shows where"


@pytest.mark.slow
def test_an_error_longer_than_a_pipe_is_said_whole():
    """In a process of its own: where parent and child wait for each other neither ends."""
    program = (
        "import sys\n"
        "from pipeline import supervise\n"
        "from pipeline.errors import UsageError\n"
        "def body(attempt):\n"
        "    raise UsageError('x' * 200_000)\n"
        "try:\n"
        "    supervise.supervise(body, print)\n"
        "except UsageError as error:\n"
        "    print(len(str(error)))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "200000", done.stderr


def test_a_command_whose_parent_was_killed_says_its_end_to_nobody(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(supervise, "_to_parent", writer)
    supervise.decided(0)
    os.close(writer)
