"""MLflow's database deleted, locked or refusing: what was spooled is sent again, and said."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy

from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.track import _spawn, flush_pending
from pipeline.track.database import create_database, identity
from pipeline.track.sender import Sender
from pipeline.track.server import Away
from pipeline.track.spool import Spool, State, is_pending
from pipeline.track.uri import check_uri, default_uri, with_driver
from tests import serving
from tests.bench import tracking
from tests.toy.table import CATALOG


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An empty database, to be copied: making one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    create_database(path)
    return path


def spooled(store, run="run-1", points=3):
    """A run's spool, whole."""
    run_dir = store / "runs" / run
    spool = Spool(run_dir)
    spool.append(
        "begin",
        uri=default_uri(store),
        experiment="chain/plain",
        run_name=run,
        run_id=run,
        params={},
        tags={},
        system_metrics=False,
    )
    for step in range(points):
        spool.append("points", node="a", abscissa="step", rows=[["loss", step, 1.0]])
    spool.append("end", status="FINISHED")
    spool.close()
    return run_dir


def in_mlflow(store):
    """Runs, and points of curves, that a store's database holds."""
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        runs = database.execute("select count(*) from runs").fetchone()[0]
        points = database.execute("select count(*) from metrics where key = 'loss'").fetchone()[0]
    return runs, points


def removed(store):
    for path in store.glob("mlflow.db*"):
        path.unlink()


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def impatient(connection, cursor, statement, parameters, context, many):
    """MLflow has each of its sessions wait for a lock for 20 s."""
    if statement.startswith("PRAGMA busy_timeout"):
        statement = "PRAGMA busy_timeout = 50"
    return statement, parameters


def drain(sender):
    while sender.step():
        pass


def test_a_database_that_is_removed_while_a_run_writes_is_noticed(tmp_path, made):
    shutil.copyfile(made, tmp_path / "mlflow.db")
    said, run_dir = [], spooled(tmp_path)
    sender = Sender(run_dir, said.append)
    drain(sender)
    assert in_mlflow(tmp_path) == (2, 3)
    removed(tmp_path)
    assert is_pending(run_dir)
    drain(sender)
    assert in_mlflow(tmp_path) == (2, 3), "all of it is sent again, to a new database"
    assert len(said) == 1
    assert "was removed or replaced: all of this run's records are sent again" in said[0]
    assert not is_pending(run_dir)
    assert identity(tmp_path / "mlflow.db") == State.load(run_dir, default_uri(tmp_path)).database


def test_to_know_a_database_again_takes_no_locks_from_those_who_write(tmp_path):
    """Else whoever closes it next takes the log of writes away from under them."""
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA user_version=7")
        made.execute("PRAGMA journal_mode=WAL")
    assert identity(path) == 7
    with contextlib.closing(sqlite3.connect(path)) as ours:
        ours.execute("CREATE TABLE numbers (value)")
        ours.commit()
        assert identity(path) == 7
        look = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); print(d.execute('SELECT "
        look += "count(*) FROM numbers').fetchone()); d.close()"
        subprocess.run([sys.executable, "-c", look, str(path)], check=True)
        assert path.with_name("mlflow.db-wal").exists()
        ours.execute("INSERT INTO numbers VALUES (1)")
        ours.commit()


def test_another_database_in_its_place_is_noticed_too(tmp_path, made):
    shutil.copyfile(made, tmp_path / "mlflow.db")
    run_dir = spooled(tmp_path)
    drain(Sender(run_dir))
    removed(tmp_path)
    create_database(tmp_path / "mlflow.db")
    assert is_pending(run_dir)
    assert _spawn([str(run_dir)], tmp_path / "log", live=False).wait(120) == 0
    assert in_mlflow(tmp_path) == (2, 3)


def test_runs_removed_in_mlflow_and_stores_that_moved_are_left_alone(tmp_path, made):
    store = tmp_path / "store"
    run_dir = spooled(store)
    shutil.copyfile(made, store / "mlflow.db")
    drain(Sender(run_dir))
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        database.execute("delete from metrics")
        database.execute("update runs set lifecycle_stage = 'deleted'")
        database.commit()
    assert not is_pending(run_dir)
    store.rename(tmp_path / "moved")
    assert not is_pending(tmp_path / "moved" / "runs" / "run-1")


def test_a_locked_database_loses_nothing(tmp_path, made, monkeypatch):
    shutil.copyfile(made, tmp_path / "mlflow.db")
    said, run_dir = [], spooled(tmp_path)
    sender = Sender(run_dir, said.append)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", timeout=60)) as other:
        sender._connect()
        store = sender._server.client._tracking_client.store
        sqlalchemy.event.listen(store.engine, "before_cursor_execute", impatient, retval=True)
        monkeypatch.setattr("mlflow.store.db.utils._logger.exception", lambda *a, **k: None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(8):  # more often than what is taken for the record's own fault
            with pytest.raises(Away, match="locked"):
                sender.step()
        other.rollback()
    drain(sender)
    assert in_mlflow(tmp_path) == (2, 3)
    assert said == []


def test_what_could_not_be_sent_is_sent_by_a_command(tmp_path, made, capsys):
    shutil.copyfile(made, tmp_path / "mlflow.db")
    spooled(tmp_path), spooled(tmp_path, "run-2")
    send = ["send", "--store", str(tmp_path)]
    assert main(send, lambda: CATALOG) == 0
    assert capsys.readouterr().out == "2 runs sent\n"
    assert in_mlflow(tmp_path) == (4, 6)
    assert main(send, lambda: CATALOG) == 0
    assert "nothing to send" in capsys.readouterr().out


def test_a_command_that_cannot_send_says_so(tmp_path, capsys):
    spooled(tmp_path)
    (tmp_path / "mlflow.db").mkdir()
    assert main(["send", "--store", str(tmp_path)], lambda: CATALOG) == 1
    assert "MLflow still lacks some of run-1" in capsys.readouterr().out
    with pytest.raises(Away, match="names a folder"):
        Sender(tmp_path / "runs" / "run-1").step()


def test_a_finished_run_is_sent_again_in_the_background(tmp_path, made):
    shutil.copyfile(made, tmp_path / "mlflow.db")
    run_dir = spooled(tmp_path)
    assert _spawn([str(run_dir)], tmp_path / "log", live=False).wait(120) == 0
    removed(tmp_path)
    assert flush_pending(tmp_path) == 1
    until(lambda: not is_pending(run_dir))
    assert in_mlflow(tmp_path) == (2, 3)


@pytest.mark.slow
def test_a_run_with_nothing_to_do_sends_what_mlflow_lacks(tmp_path):
    command = [sys.executable, "-m", "tests.toy", "run", "chain", "a.steps=3"]
    command += ["--store", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    (run_dir,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    until(lambda: not is_pending(run_dir))
    removed(tmp_path)
    assert is_pending(run_dir)
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    assert "nothing to do" in said
    until(lambda: not is_pending(run_dir))
    assert in_mlflow(tmp_path)[1] == 3


@pytest.mark.parametrize(
    ("here", "uri", "used"),
    [
        ({"psycopg", "psycopg2"}, "postgresql://h/d", "postgresql+psycopg://h/d"),
        ({"psycopg2"}, "postgresql://h/d", "postgresql+psycopg2://h/d"),
        ({"psycopg2"}, "postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d"),
        ({"MySQLdb"}, "mysql://h/d", "mysql+mysqldb://h/d"),
        ({"pymysql"}, "mysql://h/d", "mysql+pymysql://h/d"),
        (set(), "http://h", "http://h"),
    ],
)
def test_whichever_driver_is_installed_is_used(monkeypatch, here, uri, used):
    monkeypatch.setattr(
        "pipeline.track.uri.importlib.util.find_spec", lambda name: name if name in here else None
    )
    assert with_driver(uri) == used


def test_a_driver_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("pipeline.track.uri.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the Python package psycopg or psycopg2"):
        check_uri("postgresql://me:p4ss@h/d")


@pytest.fixture(scope="module")
def postgres():
    """The port of a PostgreSQL with user ada, password lo/ve."""
    if not serving.PROGRAMS:
        pytest.skip(serving.ABSENT)
    with serving.postgres() as port:
        yield port


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["", "+psycopg", "+psycopg2"])
def test_what_a_postgresql_says_is_told(postgres, driver):
    at = f"127.0.0.1:{postgres}"
    assert check_uri(f"postgresql{driver}://ada:lo%2Fve@{at}/postgres") is None
    with pytest.raises(UsageError, match="refuses the user or the password") as refused:
        check_uri(f"postgresql{driver}://ada:h4te@{at}/postgres")
    assert "h4te" not in str(refused.value)
    with pytest.raises(UsageError, match="no database of that name"):
        check_uri(f"postgresql{driver}://ada:lo%2Fve@{at}/nothing")
    warning = check_uri(f"postgresql{driver}://ada:h4te@127.0.0.1:1/postgres")
    assert "cannot be reached" in warning
    assert "h4te" not in warning


@pytest.mark.slow
def test_a_server_on_postgresql_that_goes_away_loses_and_doubles_nothing(postgres, tmp_path):
    """It is down when the writers begin, and is killed in the midst of it."""
    database = f"postgresql://ada:lo%2Fve@127.0.0.1:{postgres}/postgres"
    found, _ = tracking.measure(database, tmp_path, 3, 60, away_seconds=0.2, serving_processes=1)
    tracking.check(found, writers=3, points=60)
