"""Whole sweeps on a real Ray: shared nodes once, failures, kills, early stopping, searches."""

import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import stages.catalog
from pipeline import plan as planning
from pipeline.garbage import garbage
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


def test_lagging_trainings_stop_without_artifacts_and_ctrl_c_keeps_the_rest(tmp_path):
    """Four trainings, two at a time, the later two with a learning rate that teaches nothing.

    They run in Ray Train's local mode, which a Tune trial itself would refuse, and want all CPUs.
    """
    rates = (0.005, 0.004, 1e-6, 2e-6)
    tree = {
        "recipe": "full",
        "metrics": {"loss/velocity": {"node": "train/sit", "direction": "min"}},
        "parameters": {"train.lr": {"grid": list(rates)}},
        "settings": {"train.save_every": 10},
        "halving": {"node": "train/sit", "metric": "loss/velocity", "grace": 20, "reduction": 2},
    }
    path, store = write(tmp_path, **tree), Store(tmp_path / "store")
    words = ("lr", "--space", path, "--preset", "smoke", "--jobs", "2")
    process = start(tmp_path, *words, module="pipeline")
    wait_for(tmp_path, lambda: list(store.local.glob("work/train/*/*")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_SECONDS) == 130
    assert said(tmp_path).rstrip().endswith("--resume")

    run(tmp_path, *words, "--resume", module="pipeline")
    found = trials(tmp_path)
    # Of the two that learn, whichever is behind when it reports second may be stopped as well.
    states = [found[f"trial-0{i}"].state for i in (1, 2, 3, 4)]
    assert "finished" in states[:2]
    assert states[2:] == ["stopped"] * 2
    for trial, rate in zip(found.values(), rates, strict=True):
        request = Request("full", "smoke", (f"train.lr={rate}", "train.save_every=10"))
        plan = planning.make(stages.catalog.CATALOG, store, replace(request, only=("train/sit",)))
        node = plan.nodes["train/sit"]
        if trial.state == "finished":
            assert node.manifest.metrics["loss/velocity"] == trial.measured["loss/velocity"][0]
        else:
            # It ends at a rung: at the first, unless none that was better had come there before.
            # States may be saved, and their points untold, when Ctrl-C comes: one gap at the most.
            told = [step for step, _ in trial.reports]
            missing = sorted(set(range(10, told[-1] + 1, 10)) - set(told))
            # Where the rung itself is in the gap, it is judged by the first point behind it.
            rung = 40 if told[-1] >= 40 else 20
            assert set(range(rung, told[-1], 10)) <= set(missing)
            assert missing == list(range(missing[0], missing[-1] + 1, 10)) if missing else True
            assert len(told) + len(missing) == told[-1] // 10
            assert node.manifest is None
            assert store.has_work("train", node.key), "it could go on"
            doomed, _ = garbage(store, keep=3)
            # A save may have been under way when it was stopped; gc takes what is half written.
            whole = [name for name in doomed if node.key in name and not name.endswith(".tmp")]
            kept = [name for name in whole if not name.startswith("tmp/")]
            assert not kept, "gc leaves it"
    with sqlite3.connect(store.local / "mlflow.db") as database:
        curves = database.execute(
            "select n.value, count(*), max(m.step) from metrics m "
            "join tags n on n.run_uuid = m.run_uuid and n.key = 'trial' "
            "where m.key = 'loss/velocity' group by m.run_uuid order by n.value"
        ).fetchall()
    assert [name for name, _, _ in curves] == [f"trial-0{i}" for i in (1, 2, 3, 4)]
    whole = [("finished", 6, 60) if state == "finished" else None for state in states]
    for state, curve, expected in zip(states, curves, whole, strict=True):
        assert expected is None or (state, *curve[1:]) == expected


def test_trials_train_on_several_workers(tmp_path):
    """Two workers a trial on two CPUs, so that one trial waits for the other."""
    tree = {
        "recipe": "full",
        "metrics": {"loss/velocity": {"node": "train/sit", "direction": "min"}},
        "parameters": {"train.lr": {"grid": [0.005, 1e-6]}},
        "settings": {"train.steps": 10, "train.num_workers": 2, "train.num_checkpoints": 1},
    }
    words = ("workers", "--space", write(tmp_path, **tree), "--preset", "smoke", "--jobs", "2")
    run(tmp_path, *words, module="pipeline")
    found = trials(tmp_path)
    assert [trial.state for trial in found.values()] == ["finished", "finished"]
    first, second = (trial.measured["loss/velocity"][0] for trial in found.values())
    assert first < second
