"""A run's record: what it keeps of the command, and who may go on with it."""

import contextlib
import sys

import pytest

from pipeline import plan as planning
from pipeline.plan import Request
from pipeline.record import Record, command_line, resume_command
from pipeline.store import Store
from tests.toy.table import CATALOG

SECRET = "http://me:p4ss@host:5000"


def begun(store, stack):
    plan = planning.make(CATALOG, store, Request("chain"))
    return Record.open(store, plan, [], stack)


@pytest.mark.parametrize("given", [["--tracking-uri", SECRET], [f"--tracking-uri={SECRET}"]])
def test_a_record_holds_no_password(given, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", "chain", "a.value=2", *given])
    with contextlib.ExitStack() as stack:
        record = begun(Store(tmp_path), stack)
    assert "p4ss" not in (record.folder / "run.json").read_text()
    assert record.data["command"].startswith("python -m pipeline run chain a.value=2")
    assert "http://me:***@host:5000" in command_line()
    assert "password in the place of ***" in resume_command()


def test_how_to_go_on_is_the_command_itself(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", "train", "--jobs", "2"])
    assert resume_command() == "python -m pipeline sweep train --jobs 2"
    assert resume_command("--resume") == "python -m pipeline sweep train --jobs 2 --resume"
    sys.argv.append("--resume")
    assert resume_command("--resume") == "python -m pipeline sweep train --jobs 2 --resume"
