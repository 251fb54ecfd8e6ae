"""A store that was handed on: whatever lies in it, nobody waits, nothing outside is read, written
or removed, and what a person is told is a sentence."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline import results
from pipeline.artifact import CURVES
from pipeline.errors import DamagedArtifactError, UsageError
from pipeline.garbage import garbage
from pipeline.locations import belongs, write_own
from pipeline.locking import drop, is_locked, lock_file
from pipeline.news import open_log
from pipeline.record import log_path
from pipeline.store import Store
from pipeline.track.sender import Sender
from pipeline.track.spool import SPOOL, Spool, State, Steps
from tests.pipeline.test_manifests import file_of, said, store
from tests.pipeline.test_store import record, rewrite

__all__ = ["store"]
COMMANDS = ("plan chain", "show r1", "compare r1 r2", "report r1", "doctor --verify", "gc")


def changed(store, **changes):
    store.write_run("r1", store.read_run("r1") | changes)


def replaced(path, make):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)


def of_nodes(store, **changes):
    nodes = store.read_run("r1")["nodes"]
    changed(store, nodes={name: node | changes for name, node in nodes.items()})


def locks(store, make):
    folder = store.local / "locks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for run in ("r1", "r2"):
        make(folder / f"run-{run}")
    for file in store.local.glob("artifacts/*/*"):
        make(folder / f"{file.parent.name}-{file.name}")


FILLINGS = {
    "a folder for a manifest": lambda s: replaced(file_of(s), Path.mkdir),
    "a pipe for a payload": lambda s: replaced(file_of(s).with_name("number.json"), os.mkfifo),
    "an endless manifest": lambda s: replaced(file_of(s), lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": lambda s: replaced(file_of(s), lambda p: p.symlink_to(p)),
    "a file for a stage": lambda s: replaced(file_of(s).parent.parent, Path.touch),
    "times without end": lambda s: rewrite(file_of(s), seconds=float("inf")),
    "times that add up to more": lambda s: rewrite(file_of(s), seconds=1e308),
    "numbers of any size": lambda s: rewrite(file_of(s), version=10**400, curves={"x": 10**300}),
    "values that are none": lambda s: rewrite(file_of(s), metrics={"value": float("nan")}),
    "a size that lies": lambda s: rewrite(
        file_of(s), files={"number.json": {"size": 2**70, "sha256": "0" * 64}}
    ),
    "a name with a line break": lambda s: rewrite(
        file_of(s), files={"a\nb": {"size": 2, "sha256": "0" * 64}}
    ),
    "escapes everywhere": lambda s: rewrite(
        file_of(s), packages={"\x1b[2J": "\x1b"}, settings={"\x1b": "\x1b[2J"}, host={"x": "\x1b"}
    ),
    "names of folders": lambda s: [
        (s.local / place / name).mkdir(parents=True)
        for place in ("artifacts", "artifacts/total", "runs", "work", "quarantine")
        for name in ("a\nb", "\x1b[2J", "-rf", "\udcff")
    ],
    "a pipe for a record": lambda s: replaced(s.local / "runs/r1/run.json", os.mkfifo),
    "a revision that is a number": lambda s: changed(s, git={"revision": 7}),
    "no revision": lambda s: changed(s, git={"revision": None}),
    "a preset that clears the screen": lambda s: changed(s, preset="\x1b[2J"),
    "settings that clear the screen": lambda s: changed(s, settings={"a": "\x1b[2J"}),
    "a recipe of nobody": lambda s: changed(s, recipe="../../x", settings={}),
    "nodes without end": lambda s: of_nodes(s, seconds=float("inf")),
    "nodes of strangers": lambda s: of_nodes(s, upstream=["nobody"]),
    "half a line": lambda s: [
        changed(s, state="running"),
        (s.local / "runs/r1/nodes.jsonl").write_text('7\n[]\n{"total": {"sec'),
    ],
    "a pipe of lines": lambda s: [
        changed(s, state="running"),
        os.mkfifo(s.local / "runs/r1/nodes.jsonl"),
    ],
    "folders for locks": lambda s: locks(s, Path.mkdir),
    "pipes for locks": lambda s: locks(s, os.mkfifo),
    "a file for all locks": lambda s: replaced(s.local / "locks", Path.touch),
    "a pipe for MLflow's database": lambda s: os.mkfifo(s.local / "mlflow.db"),
}


@pytest.fixture(autouse=True)
def _no_waiting():
    def late(*_):
        raise AssertionError("somebody waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FILLINGS)
def test_every_command_says_a_sentence(store, name, capfd):
    FILLINGS[name](store)
    for words in COMMANDS:
        code, text = said(store, words, capfd)
        assert code in (0, 1, 2), text
        assert not [c for c in text if not c.isprintable() and c not in "\n\t" and c < "\udc80"]


def test_what_links_lead_to_stays(store, tmp_path, capfd):
    """`gc`, `report` and `compare` are given a store whose names lead to files of a person."""
    person = tmp_path / "person"
    person.mkdir()
    (person / "precious").write_text("mine")
    (store.local / "artifacts" / "number" / "link").symlink_to(person)
    (store.local / "quarantine").mkdir()
    (store.local / "quarantine" / "link").symlink_to(person)
    (store.local / "memory").mkdir()
    (store.local / "memory" / "number").mkdir()
    (store.local / "memory" / "number" / "link").symlink_to(person)
    assert {"artifacts/number/link", "quarantine/link"} <= set(garbage(store, 1)[0])
    assert said(store, "gc", capfd)[0] == 0
    assert not (store.local / "quarantine" / "link").is_symlink()
    assert not (store.local / "artifacts" / "number" / "link").is_symlink()

    for name in ("report.html", "settings.yaml", "nodes.jsonl", SPOOL):
        (store.local / "runs" / "r1" / name).symlink_to(person / "precious")
    write_own(store.local / "runs" / "r1" / "settings.yaml", "a: 1")
    with pytest.raises(OSError, match="symbolic"):
        store.append_run("r1", {"total": {}})
    with pytest.raises(OSError, match="symbolic"):
        Spool(store.local / "runs" / "r1")
    log = log_path(store.local / "runs" / "r1", "total")
    log.parent.mkdir()
    log.symlink_to(person / "precious")
    with pytest.raises(OSError, match="symbolic"):
        open_log(store.local / "runs" / "r1", "total")
    assert (person / "precious").read_text() == "mine"
    assert [path.name for path in person.iterdir()] == ["precious"]


def test_only_a_store_s_own_files_are_shown_or_sent(store, tmp_path):
    key = file_of(store).parent.name
    secret = tmp_path / "person" / "id"
    secret.parent.mkdir()
    secret.write_text("secret")
    link = store.local / "runs" / "r1" / "link"
    link.symlink_to(secret)
    assert belongs(store.local / "runs" / "r1" / "run.json", store.local)
    assert not belongs(secret, store.local)
    assert not belongs(link, store.local)
    assert not belongs(store.local / ".." / "person" / "id", store.local)
    # A stage's folder on another disk is the store's; other links from there are not.
    away = tmp_path / "away"
    shutil.move(store.local / "artifacts" / "total", away)
    (store.local / "artifacts" / "total").symlink_to(away)
    place = store.local / "artifacts" / "total" / key
    assert belongs(place / "number.json", store.local)
    (place / "figure.svg").symlink_to(secret)
    assert not belongs(place / "figure.svg", store.local)
    (store.local / "artifacts" / "person").symlink_to(tmp_path)
    assert not belongs(store.local / "artifacts" / "person" / "person" / "id", store.local)

    artifact = store.open("total", key)
    artifact.tracked = ("*.svg", "*.json", CURVES)
    assert artifact.tracked_files() == [place / "number.json"], "what the manifest knows"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p)])
def test_a_lock_waits_for_no_pipe(tmp_path, make):
    make(tmp_path / "lock")
    with pytest.raises(UsageError, match="in the way of a lock"), lock_file(tmp_path / "lock"):
        pass
    with pytest.raises(UsageError, match="in the way of a lock"):
        drop(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")


@pytest.mark.parametrize("ranges", [[[0, 2**62, 1]], [[-(2**62), 0, 3]], [[0, 4 * 10**6, 1]] * 3])
def test_a_state_of_endless_steps_is_none(tmp_path, ranges):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="more than"):
        Steps(ranges)
    told = {"uri": "u", "offset": 9, "steps": {"": {"loss": ranges}}}
    (tmp_path / "mlflow.state.json").write_text(json.dumps(told))
    assert State.load(tmp_path, "u").offset == 0, "all is sent again, which changes nothing"
    assert time.monotonic() - begun < 2
    assert len(Steps([[0, 10, 2], [20, 20, 1]])) == 7


def test_a_manifest_is_read_once_of_a_node(store, monkeypatch):
    node = results.Run(store, store.read_run("r1"))["total"]
    read = []
    inner = Store.manifest
    monkeypatch.setattr(Store, "manifest", lambda *a: read.append(a) or inner(*a))
    assert node.damage == ""
    assert node.metrics == {"value": 10}
    assert node.manifest.stage == "total"
    assert len(read) == 1
    file_of(store).write_bytes(b"")
    damaged = results.Run(store, record("r1", nodes=store.read_run("r1")["nodes"]))["total"]
    assert "cannot be read" in damaged.damage
    assert damaged.metrics == {}
    with pytest.raises(DamagedArtifactError):
        damaged.manifest  # noqa: B018


@pytest.mark.parametrize("where", ["person/id", "store/runs/r1/link", "store/runs/r1/folder"])
def test_a_spool_of_others_sends_no_file_of_mine(store, tmp_path, where):
    secret = tmp_path / "person" / "id"
    secret.parent.mkdir()
    secret.write_text("secret")
    run_dir = store.local / "runs" / "r1"
    (run_dir / "link").symlink_to(secret)
    (run_dir / "folder").mkdir()
    (run_dir / "folder" / "id").symlink_to(secret)
    spool = Spool(run_dir)
    spool.append("begin", uri="sqlite:///x.db")
    spool.close()
    said = []
    sender = Sender(run_dir, said.append)
    event = {"path": str(tmp_path / where), "artifact_path": "", "node": ""}
    for action in sender._on_artifact(event):
        action()
    assert said == [f"{tmp_path / where} is not in the store, and is not sent to MLflow"]
