"""What reaches MLflow, whatever dies or goes away in between.

Most tests run the sender in this process against a sqlite database; those marked slow start real
senders and a real server, and kill them.
"""

import base64
import http.server
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import track
from pipeline.errors import UsageError
from pipeline.locking import lock_file
from pipeline.track import _spawn, views
from pipeline.track.redaction import redact
from pipeline.track.spool import (
    LOCK,
    SPOOL,
    STATE,
    Spool,
    State,
    Steps,
    is_pending,
    read_events,
)
from pipeline.track.uri import check_uri, default_uri
from tests import serving


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One database for all tests (making one takes seconds); experiments keep them apart."""
    from pipeline.track.database import create_database

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path)
    return f"sqlite:///{path}"


@pytest.fixture
def client(database):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=database)


class NoProcess:
    """Stands for a sender's process where the test itself is the sender."""

    def __init__(self):
        read, write = os.pipe()
        os.close(write)
        self.stdout = os.fdopen(read)
        self.stdin = open(os.devnull, "w")  # noqa: SIM115

    def wait(self, timeout):
        return 0


@pytest.fixture
def make(database, tmp_path, monkeypatch):
    """Build started trackers that spawn nothing; each test has an experiment of its own."""
    monkeypatch.setattr(track, "_spawn", lambda *args, **kwargs: NoProcess())

    def build(run="run-1", uri=database, params=None, warnings=None, **more):
        tracker = track.Tracker(
            uri,
            tmp_path / "runs" / run,
            experiment=f"full/{tmp_path.name}",
            run_name=run,
            run_id=f"{tmp_path.name}-{run}",
            params=params or {"train": {"lr": 1e-3, "betas": [0.9, 0.99]}, "seed": 0},
            tags={"git.revision": "abc", "recipe": "full", "preset": "digits"},
            warn=(warnings if warnings is not None else []).append,
            system_metrics=False,
            **more,
        )
        tracker.start()
        return tracker

    return build


def send(run_dir, warn=print):
    """Send all that is spooled, as a sender does that starts now."""
    from pipeline.track.sender import Sender

    sender = Sender(run_dir, warn)
    while sender.step():
        pass
    return sender


def runs_of(client, name):
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def history(client, run, metric):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def test_round_trip(make, client, tmp_path):
    tracker = make()
    report = tmp_path / "report.html"
    report.write_text("<h1>report</h1>")
    tracker.dataset("prepare", "digits", "d1", "sklearn", {"images": ("float32", (-1, 1, 8, 8))})
    tracker.node_finished("prepare", metrics={"num_images": 1500})
    tracker.node_started("train/sit", {"artifact_key": "k1", "method": "sit"})
    tracker.points("train/sit", "training_step", [("loss/velocity", 10, 0.5)])
    tracker.node_finished(
        "train/sit",
        metrics={"tokens_per_second": 1e4},
        curves=[("loss/velocity", 10, 0.5), ("loss/velocity", 20, 0.25)],
        params={"train": {"steps": 20}},
        abscissa="training_step",
    )
    curve = [("fid", 50, 3.0), ("fid", 5, 9.0), ("fid", 10, 6.0)]
    tags = {"artifact_key": "k2"}
    tracker.node_finished("evaluate/nfe", curves=curve, abscissa="nfe", cached=True, tags=tags)
    tracker.artifact(report, "report")
    tracker.close("FINISHED")
    send(tmp_path / "runs" / "run-1")

    name = f"full/{tmp_path.name}"
    runs = runs_of(client, name)
    assert set(runs) == {"run-1", "train/sit · run-1", "evaluate/nfe · run-1"}
    parent, train, nfe = (runs[k] for k in ("run-1", "train/sit · run-1", "evaluate/nfe · run-1"))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.params == {"train.lr": "0.001", "train.betas": "[0.9, 0.99]", "seed": "0"}
    expected = {"recipe": "full", "preset": "digits", "git.revision": "abc"}
    assert expected.items() <= parent.data.tags.items()
    assert parent.data.metrics == {}, "the run has no copies of its children"
    assert [d.dataset.name for d in parent.inputs.dataset_inputs] == ["digits"]
    assert [a.path for a in client.list_artifacts(parent.info.run_id, "report")] == [
        "report/report.html"
    ]
    assert history(client, train, "loss/velocity") == [(10, 0.5), (20, 0.25)]
    assert history(client, train, "tokens_per_second") == [(0, 1e4)]
    assert train.data.params == {"train.steps": "20"}
    assert sorted(history(client, nfe, "fid")) == [(5, 9.0), (10, 6.0), (50, 3.0)]
    assert nfe.data.metrics["fid"] == 3.0, "the table shows the value at the largest step"
    ours = {"node": "evaluate/nfe", "cached": "true", "abscissa": "nfe", "artifact_key": "k2"}
    ours |= {
        "mlflow.parentRunId": parent.info.run_id,
        "pipeline.run_id": f"{tmp_path.name}-run-1",
    }
    assert ours.items() <= nfe.data.tags.items()
    assert "cached" not in train.data.tags
    experiment = client.get_experiment_by_name(name)
    saved = [views.view_of(tag, value) for tag, value in experiment.tags.items()]
    assert {"nfe", "training_step", views.RUNS_VIEW} <= set(saved)
    assert views.CHARTS_VIEW not in saved, "no charts were declared"
    assert not is_pending(tmp_path / "runs" / "run-1")


CHARTS = [
    {"section": "Samples", "metric": "fid", "abscissa": "nfe"},
    {"section": "Samples", "metric": "fid", "abscissa": "training_step"},
    {"section": "ICR", "metric": "icr", "abscissa": "sigma_1000"},
    {"section": "Losses", "metric": "loss", "abscissa": "training_step"},
]


def state_of(experiment, view):
    """A saved view as MLflow's page reads it."""
    stored = json.loads(experiment.tags[f"mlflow.sharedViewState.{views.key(view)}"])
    kind, _, packed = stored["state"].partition(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_declared_charts_keep_abscissas_apart(make, client, tmp_path):
    tracker = make(charts=CHARTS, names={"evaluate/sit-euler": "sit euler"}, short="b6b0")
    curve = [("fid", 5, 9.0), ("fid", 10, 6.0), ("kid", 5, 0.1)]
    tracker.node_finished("evaluate/sit-euler", curves=curve, abscissa="nfe")
    tracker.node_finished("evaluate/sit", curves=[("fid", 400, 7.0)], abscissa="training_step")
    rows = [("icr", 0, 0.7), ("icr", 100, 0.6), ("icr", 10_000, 0.5)]
    tracker.node_finished("scan/sit", curves=rows, abscissa="sigma_1000")
    tracker.points("train/sit", "training_step", [("loss", 1, 2.0), ("loss", 2, 1.0)])
    tracker.node_finished("risk/sit", curves=[("mse", 100, 1.0)], abscissa="sigma_1000")
    tracker.summary(
        {"Paper: better in pct": -3.5}, {"Paper: better in pct": "holds: -3.5 %"}, "- said"
    )
    tracker.close("FINISHED")
    send(tmp_path / "runs" / "run-1")

    name = f"full/{tmp_path.name}"
    runs = runs_of(client, name)
    shown = {run.info.run_name for run in runs.values() if run.data.tags.get("shows") == "curves"}
    assert shown == {f"{n} · b6b0" for n in ("sit euler", "evaluate/sit", "scan/sit", "train/sit")}
    assert history(client, runs["sit euler · b6b0"], "nfe") == [(5, 5.0), (10, 10.0)]
    assert history(client, runs["evaluate/sit · b6b0"], "training_step") == [(400, 400.0)]
    assert history(client, runs["scan/sit · b6b0"], "log10 sigma") == [(100, -1.0), (10_000, 1.0)]
    assert set(runs["train/sit · b6b0"].data.metrics) == {"loss"}, "steps are its axis already"
    assert runs["run-1"].data.metrics == {"Paper: better in pct": -3.5}
    assert runs["run-1"].data.tags["Paper: better in pct"] == "holds: -3.5 %"
    assert runs["run-1"].data.tags["mlflow.note.content"] == "- said"
    assert runs["run-1"].data.tags["shows"] == "run"

    experiment = client.get_experiment_by_name(name)
    charts = state_of(experiment, views.CHARTS_VIEW)
    assert [(c["metricKey"], c["selectedXAxisMetricKey"]) for c in charts["compareRunCharts"]] == [
        ("fid", "nfe"),
        ("fid", "training_step"),
        ("icr", "log10 sigma"),
        ("loss", ""),
    ]
    open_sections = [s["name"] for s in charts["compareRunSections"] if s["display"]]
    assert open_sections == ["Samples", "ICR", "Losses"]
    ids = {section["uuid"] for section in charts["compareRunSections"]}
    assert {card["metricSectionId"] for card in charts["compareRunCharts"]} <= ids
    found = client.search_runs([experiment.experiment_id], charts["searchFilter"])
    assert {run.info.run_name for run in found} == shown
    whole = state_of(experiment, views.RUNS_VIEW)
    (parent,) = client.search_runs([experiment.experiment_id], whole["searchFilter"])
    assert parent.info.run_name == "run-1"
    nfe = state_of(experiment, "nfe")["compareRunCharts"]
    assert [card["metricKey"] for card in nfe] == ["fid"]


def test_a_model_is_logged_once_with_its_run_and_its_data(make, client, tmp_path):
    tracker = make(names={"train/sit": "sit train"}, short="b6b0")
    tracker.node_finished("train/sit", curves=[("loss", 1, 0.5)], abscissa="training_step")
    config = {"answer": "no:where", "settings": {}, "params": {"nfe": 5}, "shape": [1, 8, 8]}
    config |= {"columns": [{"name": "seed", "type": "long", "many": False, "required": True}]}
    config |= {"store": str(tmp_path), "stage": "train", "key": "k1"}
    data = {"name": "digits", "digest": "d1", "source": "sklearn", "profile": {"num_train": 9}}
    for _ in range(2):
        tracker.model("train/sit", config, [("prepare", data)])
    tracker.close("FINISHED")
    send(tmp_path / "runs" / "run-1")

    run = runs_of(client, f"full/{tmp_path.name}")["sit train · b6b0"]
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["digits"]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.name, model.source_run_id) == ("sit train b6b0", run.info.run_id)
    assert model.status == "READY"
    assert model.tags["dataset"] == "digits d1"
    assert model.tags["node"] == "train/sit"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_a_view_that_a_person_changed_is_left_alone():
    (_, first), (_, other) = views.tag(views.CHARTS_VIEW, CHARTS), views.tag(views.CHARTS_VIEW)
    assert views.is_current(first, first)
    assert not views.is_current(first, other), "an older version's view is replaced"
    assert not views.is_current(None, first)
    theirs = json.dumps(json.loads(first) | {"updatedAt": 9e15})
    assert views.is_current(theirs, other)


def test_tables_are_laid_out_by_mlflow(make, client, tmp_path, monkeypatch):
    table = {"columns": ["claim", "verdict"], "data": [["a", "holds"]]}
    for name in ("claims.json", "scores.json"):
        (tmp_path / name).write_text(json.dumps(table))
    tracker = make()
    for name in ("claims.json", "scores.json", "claims.json"):
        tracker.artifact(tmp_path / name, "report", table=True)
    tracker.close("FINISHED")
    send(tmp_path / "runs" / "run-1")

    (run,) = runs_of(client, f"full/{tmp_path.name}").values()
    tables = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in tables] == ["report/claims.json", "report/scores.json"]
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)  # load_table asks no client
    mlflow.set_tracking_uri(None)
    read = client.load_table(run.info.experiment_id, "report/claims.json", [run.info.run_id])
    assert read.to_dict("list") == {"claim": ["a"], "verdict": ["holds"]}


def test_a_resumed_run_continues_its_own_and_repeats_no_point(make, client, tmp_path):
    run_dir = tmp_path / "runs" / "run-1"
    first = make()
    first.points("train/sit", "training_step", [("loss", s, 1 / s) for s in range(1, 8)])
    first.close("KILLED")
    send(run_dir)
    second = make()  # from the checkpoint at step 5: steps 6 and 7 are computed again
    second.points("train/sit", "training_step", [("loss", s, 1 / s) for s in range(6, 11)])
    curve = [("loss", s, 1 / s) for s in range(1, 11)]
    second.node_finished("train/sit", curves=curve, abscissa="training_step")
    send(run_dir)
    runs = runs_of(client, f"full/{tmp_path.name}")
    assert set(runs) == {"run-1", "train/sit · run-1"}
    assert runs["run-1"].info.status == "RUNNING"
    steps = [step for step, _ in history(client, runs["train/sit · run-1"], "loss")]
    assert sorted(steps) == list(range(1, 11))
    second.close("FINISHED")
    send(run_dir)
    assert runs_of(client, f"full/{tmp_path.name}")["run-1"].info.status == "FINISHED"


def test_a_sender_killed_before_it_recorded_its_progress_writes_nothing_twice(
    make, client, tmp_path
):
    run_dir = tmp_path / "runs" / "run-1"
    tracker = make()
    send(run_dir)
    tracker.points("train/sit", "training_step", [("loss", s, 1.0) for s in range(100)])
    shutil.copy(run_dir / STATE, tmp_path / "before")
    send(run_dir)
    # All was sent and both runs were created, but the state says nothing of it, except that
    # the child was being created.
    state = json.loads((tmp_path / "before").read_text())
    state["creating"] = ["train/sit"]
    (run_dir / STATE).write_text(json.dumps(state))
    tracker.points("train/sit", "training_step", [("loss", 100, 1.0)])
    send(run_dir)
    runs = runs_of(client, f"full/{tmp_path.name}")
    experiment = client.get_experiment_by_name(f"full/{tmp_path.name}")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    steps = [step for step, _ in history(client, runs["train/sit · run-1"], "loss")]
    assert sorted(steps) == list(range(101))


def test_an_absent_server_loses_and_doubles_nothing(make, client, tmp_path):
    from pipeline.track.sender import Sender
    from pipeline.track.server import Away

    run_dir = tmp_path / "runs" / "run-1"
    tracker = make()
    sender = Sender(run_dir, print)
    sender.step()
    real, calls = sender._server.client.log_batch, []

    def log_batch(*args, **kwargs):
        calls.append(args)
        if len(calls) % 2:  # every other answer is lost, after the server has done its work
            real(*args, **kwargs)
        if len(calls) < 6:
            raise ConnectionError("gone")
        return real(*args, **kwargs)

    sender._server.client.log_batch = log_batch
    tracker.points("train/sit", "training_step", [("loss", s, 1.0) for s in range(1100)])
    outages = 0
    while True:
        try:
            if not sender.step():
                break
        except Away:
            outages += 1
    assert outages == 5
    child = runs_of(client, f"full/{tmp_path.name}")["train/sit · run-1"]
    assert sorted(s for s, _ in history(client, child, "loss")) == list(range(1100))


def test_one_refused_record_costs_only_itself(make, client, tmp_path):
    run_dir = tmp_path / "runs" / "run-1"
    first = make(params={"a": 1, "b": 2})
    first.close("FAILED")
    send(run_dir)
    second = make(params={"a": 1, "b": 3, **{f"p{i}": i for i in range(250)}})
    second.points("train", "training_step", [("loss (%)", 1, 0.5), ("../kid", 1, 0.5)])
    second.artifact(tmp_path / "absent.png")
    second.close("FINISHED")
    warnings = []
    send(run_dir, warnings.append)
    runs = runs_of(client, f"full/{tmp_path.name}")
    assert runs["run-1"].data.params["b"] == "2"
    assert len(runs["run-1"].data.params) == 252
    assert set(runs["train · run-1"].data.metrics) == {"loss ___", "kid"}
    assert runs["run-1"].info.status == "FINISHED"
    assert len(warnings) == 2
    assert all("skipped" in w for w in warnings)


def test_a_run_removed_from_mlflow_is_sent_anew(make, client, tmp_path):
    run_dir = tmp_path / "runs" / "run-1"
    make().points("train", "training_step", [("loss", 1, 0.5)])
    send(run_dir)
    removed = runs_of(client, f"full/{tmp_path.name}")
    for run in removed.values():
        client.delete_run(run.info.run_id)
    make().points("train", "training_step", [("loss", 2, 0.25)])
    send(run_dir)
    runs = runs_of(client, f"full/{tmp_path.name}")
    assert runs["run-1"].info.run_id != removed["run-1"].info.run_id
    assert history(client, runs["train · run-1"], "loss") == [(1, 0.5), (2, 0.25)]


def test_values_that_are_not_finite_are_left_out_and_said(make, client, tmp_path):
    nan, infinity, said = float("nan"), float("inf"), []
    tracker = make(warnings=said)
    rows = [("loss", 1, 0.5), ("loss", 2, nan), ("loss", 3, infinity), ("loss", 4, -infinity)]
    tracker.points("train", "training_step", rows)
    tracker.node_finished("train", metrics={"fid": infinity, "kid": 0.1}, curves=rows)
    send(tmp_path / "runs" / "run-1")
    runs = runs_of(client, f"full/{tmp_path.name}")
    run = runs["train · run-1"]
    # A database would keep infinity as the largest float there is.
    assert history(client, run, "loss") == [(1, 0.5)]
    assert run.data.metrics == {"loss": 0.5, "kid": 0.1}
    assert run.data.tags["not_finite.loss"].endswith((" at step 2", " at step 3"))
    assert run.data.tags["not_finite.fid"] == "inf at step 0"
    assert said == [
        "train: loss is nan at step 2, which MLflow is not told",
        "train: fid is inf, which MLflow is not told",
    ]


def test_leftover_spools_are_sent_by_a_later_run(make, client, tmp_path, monkeypatch):
    from pipeline.track.__main__ import serve

    for run in ("died", "busy", "mine"):
        make(run).points("train", "training_step", [("loss", 1, 0.5)])
    make("done").close()
    send(tmp_path / "runs" / "done")
    spawned = []
    monkeypatch.setattr(track, "_spawn", lambda runs, **kwargs: spawned.extend(runs))
    with lock_file(tmp_path / "runs" / "busy" / LOCK, 0) as held:
        assert held
        assert track.flush_pending(tmp_path, exclude=tmp_path / "runs" / "mine") == 1
    assert spawned == [str(tmp_path / "runs" / "died")]
    closing = threading.Event()
    closing.set()
    serve(tmp_path / "runs" / "died", closing, lambda kind, message: None)
    runs = runs_of(client, f"full/{tmp_path.name}")
    assert runs["died"].info.status == "KILLED", "a run that never told its end was killed"
    assert runs["train · died"].info.status == "KILLED"
    assert not is_pending(tmp_path / "runs" / "died")


def test_an_absent_server_is_told_once_and_keeps_the_spool(make, tmp_path, monkeypatch):
    from pipeline.track.__main__ import serve
    from pipeline.track.sender import Sender

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
    warnings = []
    tracker = make(uri=uri, warnings=warnings)
    run_dir = tmp_path / "runs" / "run-1"
    assert (run_dir / SPOOL).stat().st_mode & 0o077 == 0, "the URI may hold a password"
    closing, said, attempts, step = threading.Event(), [], [], Sender.step
    monkeypatch.setattr(Sender, "step", lambda sender: attempts.append(1) or step(sender))
    server = threading.Thread(target=serve, args=(run_dir, closing, lambda *a: said.append(a)))
    server.daemon = True
    server.start()
    wait_for(lambda: len(attempts) >= 3)
    closing.set()
    server.join(60)
    assert not server.is_alive()
    assert [kind for kind, _ in said] == ["away"]
    assert "secret" not in said[0][1]
    assert is_pending(run_dir)
    tracker.close()
    assert "python -m pipeline send" in warnings[-1]
    assert "secret" not in warnings[-1]


def test_what_libraries_print_reaches_the_log_without_passwords(tmp_path):
    script = (
        "import os, sys; from pipeline.track.__main__ import _logged\n"
        "with _logged():\n"
        "    print('View run at http://me:p4ss@host')\n"
        "    os.system('echo postgresql://me:p4ss@db >&2')\n"
        "print('after', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert sorted(done.stderr.split("\n")) == [
        "",
        "View run at http://me:***@host",
        "after",
        "postgresql://me:***@db",
    ]


def test_the_sender_s_log_is_for_its_owner_and_names_no_address(make, tmp_path):
    log = tmp_path / "runs" / "run-1" / "mlflow.log"
    log.parent.mkdir(parents=True)
    log.touch(mode=0o644)
    make().close()
    assert _spawn([str(log.parent)], log, live=False).wait(120) == 0
    assert not is_pending(log.parent)
    assert log.stat().st_mode & 0o077 == 0
    assert "View run" not in log.read_text()


# The spool


def test_a_torn_line_is_no_event(tmp_path):
    Spool(tmp_path).append("node", node="a")
    with (tmp_path / SPOOL).open("a") as stream:
        stream.write('{"event":"node","no')
    events, offset = read_events(tmp_path, 0)
    assert [e["node"] for e in events] == ["a"]
    assert offset < (tmp_path / SPOOL).stat().st_size
    Spool(tmp_path).append("node", node="b")
    events, offset = read_events(tmp_path, offset)
    assert [e["node"] for e in events] == ["b"]
    assert offset == (tmp_path / SPOOL).stat().st_size


def test_events_from_many_threads_stay_whole(tmp_path):
    spool = Spool(tmp_path)
    rows = [("loss", step, 0.1) for step in range(200)]
    threads = [
        threading.Thread(target=lambda: [spool.append("points", rows=rows) for _ in range(20)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events, offset = [], 0
    while True:
        more, offset = read_events(tmp_path, offset)
        if not more:
            break
        events += more
    assert len(events) == 160
    assert all(len(e["rows"]) == 200 for e in events)


@pytest.mark.parametrize(
    ("steps", "most"),
    [(range(0, 100_000, 50), 1), ([5, 10, 20, 50, 100], 3), ([9, 3, 3, 7, 1], 4), ([-2, 0], 1)],
)
def test_sent_steps_are_remembered_exactly_and_compactly(steps, most):
    sent = Steps()
    for step in steps:
        sent.add(step)
    assert len(sent.ranges) <= most
    again = Steps(json.loads(json.dumps(sent.ranges)))
    low, high = min(steps), max(steps)
    assert {s for s in range(low - 5, high + 6) if s in again} == set(steps)


def test_state_of_another_server_is_not_used(tmp_path):
    state = State(tmp_path, "sqlite:///a.db")
    state.offset = 7
    state.steps("x", "loss").add(3)
    state.save()
    assert (tmp_path / STATE).stat().st_mode & 0o077 == 0, "the URI may hold a password"
    assert State.load(tmp_path, "sqlite:///a.db").offset == 7
    assert 3 in State.load(tmp_path, "sqlite:///a.db").steps("x", "loss")
    assert State.load(tmp_path, "http://b").offset == 0


def test_the_engine_imports_no_mlflow():
    code = "import sys, pipeline.track, pipeline.track.ui; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Tracking URIs


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mlflow.db", "no scheme"),
        ("", "no scheme"),
        ("htp://host:5000", "did you mean 'http'"),
        ("ftp://host", "unknown scheme"),
        ("http://", "no valid host"),
        ("http://host:port", "malformed"),
        ("http://user:secret@[::1", "malformed"),
        ("http://host:99999", "malformed"),
        ("http://two words:5000", "no valid host"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "keeps nothing"),
        ("sqlite:////proc/mlflow.db", "not writable"),
        ("sqlite:////nowhere/at/all/mlflow.db", "there is no folder /nowhere/at/all; make it"),
        ("sqlite:////etc/hostname/mlflow.db", "not a folder"),
        ("postgresql+nodriver://host/db", "needs the Python package nodriver"),
    ],
)
def test_a_bad_uri_is_refused_in_one_sentence(uri, words):
    with pytest.raises(UsageError, match=words) as error:
        check_uri(uri)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_database_is_checked(tmp_path):
    assert check_uri(default_uri(tmp_path)) is None
    with pytest.raises(UsageError, match="there is no folder"):
        check_uri(f"sqlite:///{tmp_path}/typo/mlflow.db")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "text.db").write_text("these are no tables, only words")
    with pytest.raises(UsageError, match="no sqlite database"):
        check_uri(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(UsageError, match="names a folder"):
        check_uri(f"sqlite:///{tmp_path}")


def test_passwords_stay_out_of_messages():
    assert redact("http://me:p4ss@host:5000/x") == "http://me:***@host:5000/x"
    assert redact("postgresql://me:p:4@host/db").count("4") == 0
    assert redact("http://host:5000") == "http://host:5000"
    assert redact("http://me:p@ss@host:5000/x@y") == "http://me:***@host:5000/x@y"
    assert redact("http://me:p/ss@host:5000/x") == "http://me:***@host:5000/x"
    assert redact("http://host:5000/x@y") == "http://host:5000/x@y"
    assert redact("at http://me:p4ss@host, or ftp://you:w0rd@there") == (
        "at http://me:***@host, or ftp://you:***@there"
    )
    assert redact("connect host=x password=p4ss user=me") == "connect host=x password=*** user=me"
    assert redact("mysql://host/db?user=me&password=p4ss&x=1").endswith("password=***&x=1")


@pytest.fixture
def stub():
    """A server that asks for user ada with password love, or gives the answer it is set to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answer: tuple[int, bytes] | None = None
        seen: list[str | None] = []  # noqa: RUF012

        def do_POST(self):
            self.seen.append(self.headers["Authorization"])
            granted = self.headers["Authorization"] in ("Basic YWRhOmxvdmU=", "Bearer t0ken")
            code, body = self.answer or ((200, b"{}") if granted else (401, b"who are you?"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    Handler.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.handler = Handler
    yield server
    server.shutdown()
    server.server_close()


def test_refused_credentials_end_the_command(stub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="refuses the credentials"):
        check_uri(stub.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert check_uri(stub.url) is None
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    assert check_uri(stub.url.replace("//", "//ada:love@")) is None
    (tmp_path / ".mlflow").mkdir()
    credentials = "[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = love\n"
    (tmp_path / ".mlflow" / "credentials").write_text(credentials)
    assert check_uri(stub.url) is None
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hate")
    with pytest.raises(UsageError, match="HTTP 401"):
        check_uri(stub.url)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, b"no"), "refuses the credentials"),
        ((403, b"Invalid Host header - possible DNS rebinding attack"), "--allowed-hosts"),
        ((404, b"not here"), "HTTP 404, not as an MLflow server"),
        ((200, b"<html>hello</html>"), "not as an MLflow server"),
    ],
)
def test_what_answers_but_does_not_serve_is_refused(stub, answer, words):
    stub.handler.answer = answer
    with pytest.raises(UsageError, match=words):
        check_uri(stub.url)


def test_a_server_that_is_away_is_only_a_warning(stub):
    stub.handler.answer = (503, b"later")
    assert "HTTP 503" in check_uri(stub.url)
    stub.shutdown()
    stub.server_close()
    assert "cannot be reached" in check_uri(stub.url)


# Real processes


def start_tracker(store, uri, run, **keywords):
    tracker = track.Tracker(
        uri,
        Path(store) / "runs" / run,
        experiment="full/digits",
        run_name=run,
        run_id=run,
        params={"seed": 0},
        tags={},
        **keywords,
    )
    tracker.start()
    return tracker


def one_command(store, run, die):
    tracker = start_tracker(store, default_uri(Path(store)), run)
    tracker.points("train", "training_step", [("loss", s, 1.0) for s in range(50)])
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.close("FINISHED", timeout=120)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_commands_started_at_once_share_a_new_store(tmp_path):
    import mlflow

    context = multiprocessing.get_context("spawn")
    commands = [
        context.Process(target=one_command, args=(str(tmp_path), f"run-{i}", False))
        for i in range(2)
    ]
    for command in commands:
        command.start()
    for command in commands:
        command.join(180)
        assert command.exitcode == 0
    client = mlflow.MlflowClient(tracking_uri=default_uri(tmp_path))
    runs = runs_of(client, "full/digits")
    assert set(runs) == {"run-0", "run-1", "train · run-0", "train · run-1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(len(history(client, runs[f"train · run-{i}"], "loss")) == 50 for i in range(2))
    logs = [path.read_text() for path in tmp_path.glob("runs/*/mlflow.log")]
    assert logs == ["", ""], "libraries' chatter is silenced, and nothing failed"


@pytest.mark.slow
def test_the_last_words_of_a_killed_command_arrive(tmp_path):
    import mlflow

    context = multiprocessing.get_context("spawn")
    command = context.Process(target=one_command, args=(str(tmp_path), "run-0", True))
    command.start()
    command.join(180)
    assert command.exitcode == -signal.SIGKILL
    wait_for(lambda: not is_pending(tmp_path / "runs" / "run-0"))
    client = mlflow.MlflowClient(tracking_uri=default_uri(tmp_path))
    runs = runs_of(client, "full/digits")
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert len(history(client, runs["train · run-0"], "loss")) == 50


@pytest.fixture
def port():
    with serving.held_port() as held:
        yield held


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(tmp_path, database, port):
    import mlflow

    path = tmp_path / "server.db"
    shutil.copy(database.removeprefix("sqlite:///"), path)

    def serve():
        return serving.mlflow(f"sqlite:///{path}", port, tmp_path)

    uri = f"http://127.0.0.1:{port}"
    said = []
    tracker = start_tracker(tmp_path, uri, "run-0", warn=said.append)
    tracker.points("train", "training_step", [("loss", s, 1.0) for s in range(10)])
    server = serve()
    try:
        wait_for(lambda: check_uri(uri) is None)
        wait_for(lambda: any("have been sent" in line for line in said))
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        tracker.points("train", "training_step", [("loss", s, 1.0) for s in range(10, 30)])
        wait_for(lambda: sum("is away" in line for line in said) == 2)
        waited = []
        wait = tracker._sender.wait
        tracker._sender.wait = lambda timeout: waited.append(timeout) or wait(timeout)
        tracker.close("FINISHED", timeout=60)
        assert waited == [1.0], "a server known to be away is not waited for"
        assert is_pending(tmp_path / "runs" / "run-0")
        server = serve()
        wait_for(lambda: check_uri(uri) is None)
        wait_for(lambda: track.flush_pending(tmp_path) == 1)
        wait_for(lambda: not is_pending(tmp_path / "runs" / "run-0"))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    runs = runs_of(client, "full/digits")
    assert runs["run-0"].info.status == "FINISHED"
    steps = [step for step, _ in history(client, runs["train · run-0"], "loss")]
    assert sorted(steps) == list(range(30))


def test_only_the_chosen_server_is_shown_credentials(tmp_path, monkeypatch):
    """A store from somebody else may say where its records are to be sent."""
    for name, uri in (("mine", "http://mine:1"), ("theirs", "http://theirs:1")):
        spool = Spool(tmp_path / "runs" / name)
        spool.append("begin", uri=uri, run_id=name)
        spool.close()
    started = {}

    def note(command, env, **options):
        secret = {key for key, value in env.items() if value == "secret"}
        started[Path(command[-1]).name] = secret
        assert secret or env | track.NOBODY == env
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(track.subprocess, "Popen", note)
    every = {*track.CREDENTIALS, *track.NOBODY}
    for key in every:
        monkeypatch.setenv(key, "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert track.flush_pending(tmp_path, uri="http://mine:1") == 2
    assert started == {"mine": every, "theirs": set()}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs:1")
    track.send_pending(tmp_path)
    assert started == {"mine": set(), "theirs": every}
