"""A run's record: what it keeps of the command, and who may go on with it."""

import contextlib
import shlex
import shutil
import sys
import time

import pytest

from pipeline import leases
from pipeline import plan as planning
from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.garbage import garbage
from pipeline.plan import Request
from pipeline.record import Record, command_line, resume_command
from pipeline.results import Run
from pipeline.session import ui_command
from pipeline.store import Store
from tests.toy.table import CATALOG

SECRET = "http://me:p4ss@host:5000"


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begun(store, stack):
    plan = planning.make(CATALOG, store, Request("chain"))
    return Record.open(store, plan, [], stack)


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Two machines that share nothing but an object store."""

    def machine(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Store(f"memory://bucket/{tmp_path.name}")

    return machine("a"), machine("b")


def test_on_an_object_store_a_run_is_running_for_other_machines_too(machines, monkeypatch):
    one, other = machines
    with contextlib.ExitStack() as stack:
        record = begun(one, stack)
        assert [Run(store, record.data).state for store in machines] == ["running"] * 2
        for store in machines:
            with pytest.raises(UsageError, match=f"{record.id} is going on"):
                garbage(store, 0)
        with contextlib.ExitStack() as second:
            assert begun(other, second).id != record.id
    assert [Run(store, record.data).state for store in machines] == ["interrupted"] * 2


def test_a_machine_that_died_leaves_its_run_to_others(machines, monkeypatch):
    one, other = machines
    with contextlib.ExitStack() as stack:
        record = begun(one, stack)
        left = one.location.read(f"locks/run-{record.id}.json")
    one.location.write(f"locks/run-{record.id}.json", left)
    assert Run(other, record.data).state == "running"
    later = time.time() + leases.FRESH_SECONDS + 1
    monkeypatch.setattr(leases.time, "time", lambda: later)
    assert Run(other, record.data).state == "interrupted"
    with contextlib.ExitStack() as stack:
        assert begun(other, stack).id == record.id


def test_a_long_run_renews_its_sign_of_life(machines, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    one, _ = machines
    with contextlib.ExitStack() as stack:
        record = begun(one, stack)
        first = one.location.read(f"locks/run-{record.id}.json")
        until(lambda: one.location.read(f"locks/run-{record.id}.json") != first)
    assert one.location.read(f"locks/run-{record.id}.json") is None


def test_the_state_of_a_killed_run_is_read_without_writing(tmp_path):
    store = Store(tmp_path / "store")
    with contextlib.ExitStack() as stack:
        record = begun(store, stack)
        assert Run(store, record.data).state == "running"
    shutil.rmtree(store.local / "locks")
    assert Run(store, record.data).state == "interrupted"
    assert not (store.local / "locks").exists()


@pytest.mark.parametrize("given", [["--tracking-uri", SECRET], [f"--tracking-uri={SECRET}"]])
def test_a_record_holds_no_password(given, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", "chain", "a.value=2", *given])
    with contextlib.ExitStack() as stack:
        record = begun(Store(tmp_path), stack)
    assert "p4ss" not in (record.folder / "run.json").read_text()
    assert record.data["command"].startswith("python -m pipeline run chain a.value=2")
    assert "http://me:***@host:5000" in command_line()
    assert "password in the place of ***" in resume_command()


def test_the_command_to_compare_names_where_the_run_is_tracked(tmp_path):
    store = Store(tmp_path / "my store")
    assert shlex.split(ui_command(store, None))[4:] == ["--store", store.uri]
    assert shlex.split(ui_command(store, SECRET))[4:] == [
        "--tracking-uri",
        "http://me:***@host:5000",
    ]
    assert ui_command(Store("store"), None) == "python -m pipeline ui"


def test_asking_for_a_log_makes_no_folder(tmp_path, capsys):
    store = Store(tmp_path / "store")
    with contextlib.ExitStack() as stack:
        record = begun(store, stack)
    assert main(["logs", record.id, "total", "--store", store.uri], root=lambda: CATALOG) == 0
    assert "printed nothing" in capsys.readouterr().out
    assert not (record.folder / "logs").exists()


def test_how_to_go_on_is_the_command_itself(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", "train", "--jobs", "2"])
    assert resume_command() == "python -m pipeline sweep train --jobs 2"
    assert resume_command("--resume") == "python -m pipeline sweep train --jobs 2 --resume"
    sys.argv.append("--resume")
    assert resume_command("--resume") == "python -m pipeline sweep train --jobs 2 --resume"
