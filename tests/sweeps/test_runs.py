"""Whole sweeps on a real Ray: shared nodes once, failures, kills, early stopping, searches."""

import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from pipeline import plan as planning
from pipeline.commands import garbage
from pipeline.plan import Request
from pipeline.results import latest
from pipeline.store import Store
from sweeps import space
from sweeps.outcome import Outcome
from sweeps.record import TrialRecord, trial_name
from tests.sweeps.spaces import write
from tests.toy.table import CATALOG

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 300


def start(folder, *arguments, module="tests.toy"):
    (folder / "store").mkdir(exist_ok=True)
    words = [sys.executable, "-m", module, "sweep", *arguments, "--store", str(folder / "store")]
    with (folder / "out").open("a") as out:
        return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)


def run(folder, *arguments, code=0, module="tests.toy"):
    assert start(folder, *arguments, module=module).wait(LIMIT_SECONDS) == code, said(folder)
    return said(folder)


def said(folder):
    return (folder / "out").read_text()


def trials(folder):
    data = Store(folder / "store").runs()[0]
    return {t["name"]: TrialRecord(**t) for t in data["sweep"]["trials"]}


def wait_for(folder, ready, process):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, said(folder)
        assert process.poll() is None, said(folder)
        time.sleep(0.05)


def test_a_killed_sweep_goes_on_to_the_same_end(tmp_path):
    """Killed in its second trial; the third fails. Then everything that a sweep leaves behind."""
    marks, store = tmp_path / "marks", tmp_path / "store"
    points = [{"a.value": v, "a.fail": v == 2} for v in (4, 1, 2, 3)]
    settings = {"a.marks": str(marks), "b.marks": str(marks), "a.steps": 40, "a.seconds": 1.5}
    path = write(tmp_path, parameters=None, points=points, settings=settings, seeds=2)
    words = ("mine", "--space", path, "--jobs", "1")
    process = start(tmp_path, *words)

    def second_runs():
        done = len(list(store.glob("artifacts/total/*"))) == 2
        steps = list(store.glob("work/number/*/step"))
        return done and any(int(step.read_text() or 0) >= 10 for step in steps)

    wait_for(tmp_path, second_runs, process)
    process.kill()
    process.wait()
    out = run(tmp_path, *words, "--resume", code=1)
    assert len(list(store.glob("runs/*/run.json"))) == 1, "it goes on under its own name"

    # total = 2 a + b + seed, with b = 4.
    expected = [
        TrialRecord(
            trial_name(i), p, "finished", {"value": [2 * p["a.value"] + 4.0 + s for s in (0, 1)]}
        )
        for i, p in enumerate(points)
    ]
    error = "number/a: value 2 was told to fail"
    expected[2] = TrialRecord("trial-03", points[2], "failed", error=error)
    assert Outcome.of(space.read("mine", path), expected).text() in out
    assert "1 of 4 trials failed; after mending, try them again with --resume" in out

    # number/b is made with each seed's value, number/a once for both seeds, failing or not; the
    # interrupted one twice, the second time from where it was.
    assert marks.read_text().split().count("number/b") == 2
    assert marks.read_text().split().count("number/a") == 5
    logs = "".join(log.read_text() for log in store.glob("runs/*/logs/*number.a.log"))
    counted = sorted(int(line.rsplit(" ", 1)[1]) for line in logs.splitlines() if "counted" in line)
    assert counted[:2] == [0, 0]
    assert counted[2] >= 10
    _check_what_is_left(store)


def _check_what_is_left(store):
    best = next(store.glob("runs/*/best.yaml"))
    assert planning.make(CATALOG, Store(store), Request("chain", str(best))).todo == []
    shown = latest("sweep-mine", store)
    assert shown["trial-02/seed1/total"].metrics == {"value": 7.0}
    assert shown["number/b"].state in ("done", "cached")
    assert "trial-03" in next(store.glob("runs/*/report.html")).read_text()
    with sqlite3.connect(store / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        tags = database.execute(
            "select n.value, b.value, r.status from runs r "
            "join tags n on n.run_uuid = r.run_uuid and n.key = 'trial' "
            "left join tags b on b.run_uuid = r.run_uuid and b.key = 'best'"
        ).fetchall()
        params = database.execute(
            "select p.value from params p join tags t on t.run_uuid = p.run_uuid "
            "where p.key = 'a.value' and t.key = 'trial'"
        ).fetchall()
        parents = database.execute(
            "select count(distinct value) from tags where key = 'mlflow.parentRunId'"
        ).fetchone()
    assert sorted(tags) == [
        ("trial-01", "false", "FINISHED"),
        ("trial-02", "true", "FINISHED"),
        ("trial-03", "false", "FAILED"),
        ("trial-04", "false", "FINISHED"),
    ]
    assert sorted(value for (value,) in params) == ["1", "2", "3", "4"]
    assert parents == (1,), "one parent for all trials"


def test_lagging_trials_stop_without_artifacts_and_ctrl_c_keeps_the_rest(tmp_path):
    """Four trials with losses 0, 1, 2, 3 above the same curve, two at a time, best first."""
    parameters = {"a.level": {"grid": [0.0, 1.0, 2.0, 3.0]}}
    settings = {"a.steps": 120, "a.seconds": 4.0}
    halving = {"node": "number/a", "metric": "loss", "grace": 5, "reduction": 2}
    path = write(tmp_path, parameters=parameters, settings=settings, halving=halving)
    words = ("mine", "--space", path, "--jobs", "2")
    process = start(tmp_path, *words)
    wait_for(tmp_path, lambda: "trial-02 running" in said(tmp_path), process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "--resume" in said(tmp_path).splitlines()[-1]
    run(tmp_path, *words, "--resume")
    found = trials(tmp_path)
    assert found["trial-01"].state == "finished"
    stopped = [t for t in found.values() if t.state == "stopped"]
    assert stopped, "two better trials had passed the first rung"
    store = Store(tmp_path / "store")
    for one in stopped:
        plan = planning.make(
            CATALOG,
            store,
            Request("chain", overrides=(f"a.level={one.values['a.level']}", "a.steps=120")),
        )
        node = plan.nodes["number/a"]
        assert store.manifest("number", node.key) is None
        assert store.has_work("number", node.key), "it could go on"
        doomed, _ = garbage(store, keep=3)
        assert not [name for name in doomed if node.key in name], "gc leaves it"
        assert one.reports


def test_trainings_run_in_local_mode_and_with_workers_inside_trials(tmp_path):
    """Ray Train refuses its local mode inside a Tune trial, not in a node that a trial started.

    Its workers have a placement group of their own: the trial's must not hold their CPUs.
    """
    tree = {
        "recipe": "full",
        "metrics": {"loss/velocity": {"node": "train/sit", "direction": "min"}},
        "parameters": {"train.num_workers": {"grid": [0, 2]}},
        "settings": {"train.steps": 10, "train.warmup_steps": 2},
    }
    path = write(tmp_path, **tree)
    run(tmp_path, "workers", "--space", path, "--preset", "smoke", "--jobs", "2", module="pipeline")
    found = trials(tmp_path)
    alone, together = (found[f"trial-0{i}"].measured["loss/velocity"][0] for i in (1, 2))
    assert together == pytest.approx(alone, rel=1e-4)
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as database:
        curves = database.execute(
            "select count(*) from metrics m join tags t on t.run_uuid = m.run_uuid "
            "where m.key = 'loss/velocity' and t.key = 'trial' group by m.run_uuid"
        ).fetchall()
    assert curves == [(1,), (1,)], "one point each, of ten steps"
