"""What killed commands leave, folders on other disks, and what a record costs."""

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline import plan as planning
from pipeline.__main__ import main
from pipeline.locations import LocalLocation
from pipeline.plan import Request
from pipeline.record import Record
from pipeline.store import Store
from tests.inline import run_all
from tests.pipeline.test_store import KEY, put
from tests.toy.table import CATALOG

LEFT = (
    f"artifacts/number/.{KEY}.999999/payload",
    f"artifacts/number/.{KEY}.removed-999999-1/payload",
    "runs/RUN/.run.json.999999",
    "runs/RUN/mlflow.state.999999",
    "memory/number/.x.json.999999",
    "quarantine/.number-x.999999/payload",
    f"work/number/{KEY}/.state-0.safetensors.tmp",
    "tmp/number-999999-1/payload",
    ".probe.999999",
    ".mlflow.db.new",
)


def begun(store, stack, *overrides):
    plan = planning.make(CATALOG, store, Request("chain", overrides=overrides))
    return Record.open(store, plan, [], stack)


def gc(store, *more):
    return main(["gc", "--store", store.uri, *more], lambda: CATALOG)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    run_all(CATALOG, made, Request("chain"))
    return made


def test_gc_removes_every_temporary_kind_and_nothing_else(store, capsys):
    with contextlib.ExitStack() as stack:
        record = begun(store, stack)
        record.end("finished")
    node = next(iter(record.data["nodes"].values()))
    (store.work(node["stage"], node["key"]).path / "state").write_text("kept")
    for name in (".git/HEAD", ".Trash-0/x", "tmp/mine", "artifacts/number/.keep"):
        (store.local / name).parent.mkdir(parents=True, exist_ok=True)
        (store.local / name).write_text("somebody else's")
    kept = {path for path in store.local.rglob("*") if path.is_file() and "locks" not in path.parts}
    for name in LEFT:
        name = name.replace(KEY, node["key"]) if name.startswith("work/") else name
        path = store.local / name.replace("RUN", record.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    assert gc(store, "--dry-run") == 0
    assert "would remove" in capsys.readouterr().out
    assert gc(store) == 0
    assert {path for path in store.local.rglob("*") if path.is_file()} == kept
    assert not list((store.local / "locks").iterdir())


def test_a_lock_that_gc_removes_is_still_held_by_one(store):
    with store.lock("x") as held:
        assert held
        store.drop_locks()
        with store.lock("x") as second:
            assert not second
    store.drop_locks()
    assert not (store.local / "locks" / "x").exists()
    with store.lock("x") as held, store.lock("x") as second:
        assert (held, second) == (True, False)


@pytest.fixture
def linked(store, tmp_path_factory):
    """The store with the folder of a stage on another disk."""
    here = os.stat(store.local).st_dev
    disks = [Path("/dev/shm"), Path("/run"), Path.home()]
    other = next((d for d in disks if os.access(d, os.W_OK) and d.stat().st_dev != here), None)
    if other is None:
        pytest.skip("this machine has one disk")
    place = other / f"{tmp_path_factory.getbasetemp().name}-{os.getpid()}-number"
    folder = store.local / "artifacts" / "number"
    folder.rename(store.local / "elsewhere")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: shutil.rmtree(place, ignore_errors=True))
        shutil.copytree(store.local / "elsewhere", place)
        shutil.rmtree(store.local / "elsewhere")
        folder.symlink_to(place)
        yield store, place


def test_a_stage_s_folder_may_lie_on_another_disk(linked):
    store, place = linked
    assert len(list(store.artifacts())) == 4
    key = next(key for stage, key in store.artifacts() if stage == "number")
    aside = store.set_aside("number", key)
    assert (store.local / aside / "manifest.json").is_file()
    assert not (place / key).exists()
    put(store, 3)
    assert store.open("number", KEY).load() == 3
    assert (place / KEY).is_dir()
    assert gc(store, "--keep", "0") == 0
    assert list(store.artifacts()) == []
    assert list(place.iterdir()) == []
    assert (store.local / "artifacts" / "number").is_symlink()


def test_a_move_to_another_disk_that_is_cut_off_loses_nothing(tmp_path, monkeypatch):
    place = LocalLocation(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")

    def refused(source, target):
        raise OSError(errno.EXDEV, "other disk")

    def cut_off(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as other:
        other.setattr(Path, "rename", refused)
        other.setattr("pipeline.locations.shutil.copytree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            place.move("a", "quarantine/b")
    assert (tmp_path / "a" / "x").read_text() == "1"
    assert not (tmp_path / "quarantine" / "b").exists()


def test_the_end_of_a_node_costs_the_same_in_a_long_run(tmp_path):
    def cost(width):
        """Processor seconds and bytes written for each of a hundred nodes that end."""
        store = Store(tmp_path / str(width))
        plan = planning.make(CATALOG, store, Request("wide", overrides=(f"width={width}",)))
        with contextlib.ExitStack() as stack:
            record = Record.open(store, plan, [], stack)
            begin = time.process_time()
            for number in range(100):
                record.node(f"number/{number}", "done", 0.1, "", {})
            seconds = (time.process_time() - begin) / 100
            journal = record.folder / "nodes.jsonl"
            assert journal.stat().st_size < 100 * 120
            states = [n["state"] for n in store.read_run(record.id)["nodes"].values()]
            assert states.count("done") == 100
            record.end("finished")
            assert not journal.exists()
        assert store.read_run(record.id)["nodes"]["number/99"]["state"] == "done"
        return seconds

    assert cost(1000) < 5 * cost(100) + 0.001
