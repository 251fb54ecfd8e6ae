"""Stores on a server that speaks S3: outages, kills, hostile keys, several machines."""

import json
import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest

from pipeline import leases, objects
from pipeline import plan as planning
from pipeline.errors import DamagedArtifactError, StoreAwayError
from pipeline.garbage import garbage
from pipeline.plan import Request
from pipeline.results import latest
from pipeline.store import Store
from tests import s3
from tests.inline import run_all
from tests.pipeline.test_store import KEY, manifest, put, record
from tests.toy.table import CATALOG

pytestmark = pytest.mark.xdist_group("s3")
LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def server():
    with s3.server() as running:
        yield running


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store(server.uri())


def names(server, store):
    prefix = store.uri.removeprefix(f"s3://{s3.BUCKET}/")
    found = server.client().list_objects_v2(Bucket=s3.BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(f"{prefix}/") for entry in found}


def place(server, store, name, data):
    prefix = store.uri.removeprefix(f"s3://{s3.BUCKET}/")
    server.client().put_object(Bucket=s3.BUCKET, Key=f"{prefix}/{name}", Body=data)


def test_a_store_on_s3_works_as_one_on_a_disk(server, store):
    store.check_writable()
    assert names(server, store) == set(), "a check leaves nothing"
    put(store, 7)
    assert store.open("number", KEY).load() == 7
    assert list(store.artifacts()) == [("number", KEY)]
    area = store.work("number", KEY)
    (area.path / "state").write_text("5")
    (area.path / ".state.tmp").write_text("half")
    area.push()
    assert f"work/number/{KEY}/state" in names(server, store)
    assert f"work/number/{KEY}/.state.tmp" not in names(server, store)
    (area.path / "state").unlink()
    assert (store.work("number", KEY).path / "state").read_text() == "5"
    store.drop_work("number", KEY)
    assert not store.has_work("number", KEY)
    store.write_run("r1", record("r1", nodes={"a": node()}))
    store.append_run("r1", {"a": {"state": "done"}})
    store.append_run("r1", {"a": {"seconds": 2.0}})
    assert store.read_run("r1")["nodes"]["a"] == node(state="done", seconds=2.0)
    place(server, store, "runs/r2/run.json", b"")
    damaged = []
    assert [run["id"] for run in store.runs(damaged.append)] == ["r1"]
    assert "record of run r2 cannot be read" in damaged[0]
    store.set_aside("number", KEY)
    assert store.manifest("number", KEY) is None
    assert len([n for n in names(server, store) if n.startswith("quarantine/")]) == 2


def node(**changes):
    return {
        "stage": "number",
        "key": KEY,
        "upstream": [],
        "tags": {},
        "state": "queued",
        "seconds": None,
        "error": "",
    } | changes


@pytest.mark.parametrize(
    "name", ["../../../../../escaped", "../number.json", "/escaped", "a//b", "a/./b"]
)
def test_keys_that_lead_out_of_a_folder_are_never_followed(server, store, tmp_path, name):
    put(store, 7)
    place(server, store, f"artifacts/number/{KEY}/{name}", b"owned")
    assert store.open("number", KEY).load() == 7, "what its manifest does not name is not read"
    place(server, store, f"work/number/{KEY}/{name}", b"owned")
    with pytest.raises(DamagedArtifactError, match="leads elsewhere"):
        store.work("number", KEY).pull()
    entry = {"size": 5, "sha256": "0" * 64}
    hostile = manifest({name: entry}).dump().encode()
    place(server, store, f"artifacts/number/{KEY}/manifest.json", hostile)
    with pytest.raises(DamagedArtifactError, match="leads out of its folder"):
        store.open("number", KEY)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"owned"]
    place(server, store, "artifacts/../x", b"owned")
    assert store.location.children("artifacts") == ["number"]


def test_what_a_killed_check_left_in_the_bucket_can_go(server, store, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.location.fs, "rm_file", killed)
        with pytest.raises(KeyboardInterrupt):
            store.check_writable()
    (probe,) = names(server, store)
    assert store.location.children("locks") == []
    store.drop_locks()
    assert store.leftovers() == [], "it may be of somebody who is at it"
    monkeypatch.setattr(objects, "PROBE_SECONDS", 0)
    assert garbage(store, 0)[0] == [probe]
    store.remove(probe)
    assert names(server, store) == set()


def test_an_outage_is_waited_out_for_so_long_and_no_longer(server, store):
    said = []
    store.location.say = said.append
    put(store, 7)
    server.way.cut()
    store.location.patience_seconds = 0.1
    with pytest.raises(StoreAwayError, match=r"has been away for \d+ s .*run the same command"):
        store.manifest("number", KEY)
    store.location.patience_seconds = 60

    def hear(text):
        said.append(text)
        if len(said) == 1:
            server.way.mend()

    store.location.say = hear
    assert store.open("number", KEY).load() == 7
    assert len(said) == 2
    assert "waiting for it, at most 60 s" in said[0]
    assert "is back after" in said[1]


def _open_at(arguments):
    begin, uri = arguments
    while time.time() < begin:
        time.sleep(0.001)
    return Store(uri).open("number", KEY).load()


def test_many_that_open_an_artifact_at_once_all_get_it(store, tmp_path):
    put(store, list(range(100_000)))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_open_at, [(0, store.uri)] * 4)
        for number in range(3):
            (store.local / "artifacts").rename(tmp_path / f"cached-{number}")
            begin = time.time() + 0.3
            found = pool.map(_open_at, [(begin, store.uri)] * 4, chunksize=1)
            assert all(value == list(range(100_000)) for value in found)
    assert not list(store.local.rglob("*.tmp"))


@pytest.fixture
def machines(server, tmp_path, monkeypatch):
    """Two machines that share nothing but an object store."""
    uri = server.uri()

    def machine(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Store(uri)

    return machine("a"), machine("b")


def test_machines_have_one_lock(machines):
    one, other = machines
    assert one.location.excludes()
    with one.lock("x") as first, other.lock("x") as second, other.lock("y") as third:
        assert (first, second, third) == (True, False, True)
        assert other.holder("x")
    assert not other.holder("x")
    with other.lock("x") as again:
        assert again


def test_a_lock_of_a_process_that_died_is_taken_over_at_once(machines, monkeypatch):
    one, other = machines
    sign = {"host": "h", "where": one._here, "token": "t", "time": time.time()}
    one.location.write("locks/x.json", json.dumps(sign).encode())
    with other.lock("x") as elsewhere:
        assert not elsewhere, "for others it may live"
    with one.lock("x") as held:
        assert held
    one.location.write("locks/x.json", json.dumps(sign).encode())
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.01)
    later = time.time() + leases.FRESH_SECONDS + 1
    monkeypatch.setattr(leases.time, "time", lambda: later)
    with other.lock("x") as held:
        assert held


@pytest.mark.parametrize("sign", [b"", b"[]", b"{", b'{"host": 3, "where": 4}', b"\xff"])
def test_a_lock_that_nobody_can_read_is_nobody_s(machines, sign, monkeypatch):
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.01)
    one, _ = machines
    one.location.write("locks/x.json", sign)
    assert not one.holder("x")
    with one.lock("x") as held:
        assert held


def test_a_server_without_conditional_writes_is_said(machines, monkeypatch):
    one, other = machines
    written = type(one.location).write

    def create(location, name, data):
        written(location, name, data)
        return True

    monkeypatch.setattr(type(one.location), "create", create)
    said = []
    one.location.say = said.append
    one.location.check_writable()
    assert len(said) == 1
    assert "no conditional writes" in said[0]
    with one.lock("x") as first, other.lock("x") as second:
        assert (first, second) == (True, False), "who began earlier is still seen"


# Whole runs


def start(log, *arguments):
    with log.open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.toy", "run", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def wait_for(log, words, process, count=1):
    deadline = time.monotonic() + LIMIT_SECONDS
    while log.read_text().count(words) < count:
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_on_s3_survives_kills_and_an_outage(server, store, tmp_path):
    arguments = ("wide", "width=8", "a.steps=20")
    run_all(
        CATALOG, Store(tmp_path / "reference"), Request(*arguments[:1], overrides=arguments[1:])
    )
    log, marks = tmp_path / "log", tmp_path / "marks"
    command = (*arguments, "a.seconds=1", f"a.marks={marks}", "--store", store.uri, "--jobs", "1")
    process = start(log, *command)
    wait_for(log, " done in ", process)
    process.kill()
    process.wait()
    time.sleep(1.0)
    process = start(log, *command)
    wait_for(log, " done in ", process, 3)
    server.way.cut()
    time.sleep(20)
    server.way.mend()
    wait_for(log, " done in ", process, 5)
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    assert process.wait(LIMIT_SECONDS) == 0, log.read_text()
    assert "starting Ray again" in log.read_text()

    def payloads(of):
        plan = planning.make(CATALOG, of, Request(arguments[0], overrides=arguments[1:]))
        assert plan.todo == []
        return {name: node.manifest.payload for name, node in plan.nodes.items()}

    assert payloads(store) == payloads(Store(tmp_path / "reference"))
    found = latest("wide", store)
    assert found.state == "finished"
    assert {found[name].state for name in found} <= {"done", "cached"}
    assert len(store.runs()) == 1, "it goes on under its own name"
    assert not [n for n in names(server, store) if n.startswith(("locks/", "work/"))]
    # What ran when something was killed runs again; nothing that had finished does.
    assert len(marks.read_text().split()) <= 8 + 2
