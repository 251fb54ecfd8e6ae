"""Nobody on the network reaches what a local run starts."""

import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow


def listening(process):
    """Addresses on which a process and its family listen."""
    found = []
    for member in (process, *process.children(recursive=True)):
        try:
            connections = member.net_connections(kind="inet")
        except psutil.Error:
            continue
        found += [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
    return found


def test_a_local_run_listens_on_the_loopback_alone(tmp_path):
    command = [sys.executable, "-m", "tests.toy", "run", "chain", "a.seconds=3", "a.steps=10"]
    with (tmp_path / "out").open("w") as out:
        run = subprocess.Popen([*command, "--store", str(tmp_path / "store")], stdout=out)
    deadline = time.monotonic() + 120
    while "number/b done" not in (tmp_path / "out").read_text():
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.1)
    addresses = listening(psutil.Process(run.pid))
    assert run.wait(120) == 0
    assert len(addresses) >= 2, "the control store and the raylet listen"
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
