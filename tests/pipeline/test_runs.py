"""Whole runs on a real Ray: failures, kills at bad moments, two commands at once."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import plan as planning
from pipeline.plan import Request
from pipeline.results import find, latest
from pipeline.store import Store
from tests.inline import run_all
from tests.toy.table import CATALOG

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 240


def start(store, *arguments):
    """Start the toy command line in the background; its output goes to `store/out`."""
    store.mkdir(exist_ok=True, parents=True)
    with (store / "out").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.toy", "run", *arguments, "--store", str(store)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def run(store, *arguments, code=0):
    process = start(store, *arguments)
    assert process.wait(LIMIT_SECONDS) == code, said(store)
    return said(store)


def said(store):
    return (store / "out").read_text()


def wait_for(store, words, process):
    """Wait until the command has said something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while words not in said(store):
        assert time.monotonic() < deadline, said(store)
        assert process.poll() is None, said(store)
        time.sleep(0.05)


def wait_for_step(store, step, process):
    """Wait until some node has saved that step in its work area."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not any(int(p.read_text() or 0) >= step for p in store.glob("work/number/*/step")):
        assert time.monotonic() < deadline, said(store)
        assert process.poll() is None, said(store)
        time.sleep(0.02)


def payloads(store, *overrides, recipe="chain"):
    """Payload digests by node name."""
    opened = Store(store)
    plan = planning.make(CATALOG, opened, Request(recipe, overrides=overrides))
    assert plan.todo == []
    return {name: node.manifest.payload for name, node in plan.nodes.items()}


def descendants(process, name):
    family = psutil.Process(process.pid).children(recursive=True)
    return [p for p in family if name in (p.name(), *p.cmdline()[:1])]


@pytest.fixture
def reference(tmp_path):
    """Payloads of a run that nobody interrupted, made without Ray."""

    def make(*overrides, recipe="chain"):
        folder = tmp_path / "reference"
        run_all(CATALOG, Store(folder), Request(recipe, overrides=overrides))
        return payloads(folder, *overrides, recipe=recipe)

    return make


def test_a_run_its_records_and_the_second_time(tmp_path, reference):
    store = tmp_path / "store"
    out = run(store, "chain", "a.steps=3", "apply.shards=3", "--jobs", "2")
    assert "total" in out
    assert "value 10" in out
    found = latest("chain", store)
    assert found.state == "finished"
    assert found["total"].metrics == {"value": 10.0}
    assert found["apply/a"].load() == 6
    assert found["number/a"].curves() == {"loss": [(0, 1.0), (1, 0.5), (2, 1 / 3)]}
    assert list(found.table()["value"]) == [3, 4, 6, 10]
    log = (store / "runs" / found.id / "logs" / "apply.a.log").read_text()
    assert all(f"shard {i}" in log for i in range(3)), "output of shards is in the node's log"
    assert payloads(store, "a.steps=3") == reference("a.steps=3")

    again = run(store, "chain", "a.steps=3")
    assert f"nothing to do: run {found.id} holds these results" in again
    assert len(Store(store).runs()) == 1

    changed = run(store, "chain", "a.steps=3", "total.offset=5")
    assert "1 of 4 nodes to do" in changed
    assert latest("chain", store)["total"].metrics == {"value": 15.0}
    with sqlite3.connect(store / "mlflow.db") as database:
        rows = database.execute(
            "select r.run_uuid, count(*) from metrics m join runs r on r.run_uuid = m.run_uuid "
            "where m.key = 'loss' group by r.run_uuid"
        ).fetchall()
    assert [count for _, count in rows] == [3, 3], "both runs have the whole curve"


def test_a_failure_stops_only_what_needs_it(tmp_path):
    store = tmp_path / "store"
    out = run(store, "chain", "a.fail=true", code=1)
    assert "number/a failed: value 3 was told to fail" in out
    assert "not run because of that, 2 of 4: apply/a, total" in out
    assert "python -m pipeline run chain a.fail=true" in out
    found = latest("chain", store)
    assert found["number/b"].state == "done"
    assert found.state == "failed"
    assert "told to fail" in Path(out.split("log: ")[1].split("\n")[0]).read_text()


def test_a_killed_worker_is_replaced(tmp_path, reference):
    store, flag = tmp_path / "store", tmp_path / "died"
    run(store, "chain", "a.steps=2", f"a.die_once={flag}")
    assert flag.exists()
    assert payloads(store, "a.steps=2") == reference("a.steps=2")


def test_a_killed_command_goes_on_where_it_was(tmp_path, reference):
    store, marks = tmp_path / "store", tmp_path / "marks"
    arguments = ("chain", "a.steps=300", f"a.marks={marks}", f"b.marks={marks}")
    process = start(store, *arguments, "a.seconds=30")  # long enough for number/b beside it
    wait_for(store, "number/b done", process)
    wait_for_step(store, 10, process)
    process.kill()
    process.wait()
    run_id = Store(store).runs()[0]["id"]
    assert find(run_id, Store(store))["number/b"].state == "done"
    out = run(store, *arguments)
    assert out.count("number/b done") == 1, "no finished node is repeated"
    assert len(Store(store).runs()) == 1, "the run goes on under its own name"
    log = (store / "runs" / run_id / "logs" / "number.a.log").read_text()
    assert int(log.rsplit("counted from ", 1)[1]) >= 10
    assert marks.read_text().split().count("number/b") == 1
    assert payloads(store, "a.steps=300") == reference("a.steps=300")


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_ray_itself_may_die(tmp_path, name):
    store = tmp_path / "store"
    process = start(store, "chain", "a.steps=100", "a.seconds=4")
    wait_for_step(store, 5, process)
    victims = descendants(process, name)
    assert victims
    for victim in victims:
        victim.kill()
    assert process.wait(LIMIT_SECONDS) == 0, said(store)
    assert "starting Ray again" in said(store)
    assert latest("chain", store)["total"].metrics == {"value": 10.0}


def test_ctrl_c_ends_it_and_says_how_to_go_on(tmp_path):
    store = tmp_path / "store"
    process = start(store, "chain", "a.steps=1000", "a.seconds=100")
    wait_for_step(store, 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_SECONDS) == 130
    assert "Go on with:\n  python -m pipeline run chain a.steps=1000" in said(store)
    assert latest("chain", store).state == "interrupted"
    plan = planning.make(
        CATALOG, Store(store), Request("chain", overrides=("a.steps=1000", "a.seconds=100"))
    )
    assert plan.nodes["number/a"].state == "partial", "it was not waited for"


@pytest.mark.parametrize("everybody", [False, True])
def test_sigterm_ends_it_quietly_as_ctrl_c_does(everybody, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    with (store / "out").open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.toy", "run", "chain", "--store", str(store)),
                *("a.steps=300", "a.seconds=60"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for_step(store, 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    # Slurm, systemd and the like tell every process of a command.
    (os.killpg if everybody else os.kill)(process.pid, signal.SIGTERM)
    assert process.wait(20) == 130, said(store)
    assert "Traceback" not in said(store)
    assert "SIGTERM" not in said(store)
    assert "starting Ray again" not in said(store)
    assert find("latest", Store(store)).state == "interrupted"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_odd_surroundings_change_nothing(tmp_path, reference, monkeypatch):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    odd = {
        "CUDA_VISIBLE_DEVICES": "NoDevFiles",
        "TMPDIR": str(long),
        "PYTHONOPTIMIZE": "2",
        "PYTHONIOENCODING": "ascii",
        "HOME": str(home),
        "OMP_NUM_THREADS": "many",
        "http_proxy": "http://192.0.2.1:3128",
        "RAY_CLIENT_MODE": "1",
    }
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
    store = tmp_path / "a %41 #ü"
    out = run(store, "chain")
    assert f"note: TMPDIR ({long})" in out
    assert "Ray was lost" not in out
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert payloads(store) == reference()
    assert sorted(path.name for path in tmp_path.iterdir() if "%" in path.name) == [store.name]


def test_two_commands_share_the_work(tmp_path):
    store, marks = tmp_path / "store", tmp_path / "marks"
    arguments = ("wide", "width=3", "a.seconds=1", f"a.marks={marks}", "--jobs", "1")
    first, second = start(store, *arguments), start(store, *arguments)
    assert first.wait(LIMIT_SECONDS) == 0, said(store)
    assert second.wait(LIMIT_SECONDS) == 0, said(store)
    done = sorted(marks.read_text().split())
    assert done == ["number/0", "number/1", "number/2"], "each node is computed once"


def test_jobs_do_not_change_results_and_damage_is_mended(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, "chain", "apply.shards=4", "--jobs", "1")
    run(two, "chain", "apply.shards=2", "--jobs", "2")
    assert payloads(one) == payloads(two)
    artifact = latest("chain", two)["apply/a"].artifact
    (artifact.path / "number.json").write_text("7")
    before = payloads(one)
    out = run(two, "chain")
    assert "apply/a: damaged" in out
    assert "number.json does not match its SHA-256; set aside" in out
    assert payloads(two) == before
    assert os.listdir(two / "quarantine")


def test_a_node_that_takes_too_long_is_stopped(tmp_path):
    store = tmp_path / "store"
    out = run(store, "chain", "a.seconds=60", "resources.number.timeout_seconds=2", code=1)
    assert "number/a failed: ran longer than 2 s" in out


def test_many_nodes_cost_little(tmp_path):
    """Fifty nodes that do nothing: a bound far above the budget, against gross regressions."""
    store = tmp_path / "store"
    run(store, "wide", "width=50")
    assert latest("wide", store)["total"].metrics == {"value": sum(range(50))}
