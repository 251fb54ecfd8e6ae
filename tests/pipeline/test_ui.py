"""The command that serves MLflow's UI: what it refuses, and that it leaves nothing behind."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request

import pytest

from pipeline.errors import UsageError
from pipeline.track import ui, views


def make_store(path, with_runs=True):
    """The few columns of MLflow's database that the command reads."""
    with sqlite3.connect(path) as database:
        database.executescript("""
            CREATE TABLE experiments (experiment_id INTEGER, name TEXT, lifecycle_stage TEXT);
            CREATE TABLE runs (experiment_id INTEGER, start_time INTEGER, lifecycle_stage TEXT);
            CREATE TABLE experiment_tags (experiment_id INTEGER, key TEXT, value TEXT);
            INSERT INTO experiments VALUES
                (0, 'Default', 'active'), (1, 'full/digits', 'active'), (2, 'icr/digits', 'active');
        """)
        if with_runs:
            database.execute("INSERT INTO runs VALUES (1, 10, 'active'), (2, 20, 'active')")
            for view in (views.CHARTS_VIEW, views.RUNS_VIEW, "training_step"):
                tag = (1, *views.tag(view))
                database.execute("INSERT INTO experiment_tags VALUES (?, ?, ?)", tag)
            database.execute(
                "INSERT INTO experiment_tags VALUES (1, 'mlflow.sharedViewState.x', '')"
            )
    database.close()
    return f"sqlite:///{path}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_store_without_runs_says_how_to_begin(tmp_path):
    with pytest.raises(UsageError, match="no runs yet; begin with"):
        ui.serve(f"sqlite:///{tmp_path}/mlflow.db", free_port())
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(UsageError, match="no runs yet"):
        ui.serve(make_store(tmp_path / "empty.db", with_runs=False), free_port())


def test_a_taken_port_is_named(tmp_path):
    uri = make_store(tmp_path / "mlflow.db")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} .*choose another with --port"):
            ui.serve(uri, port)


def test_a_tracking_server_has_its_own_ui(capsys):
    assert ui.serve("https://me:secret@mlflow.example.org") == 0
    out = capsys.readouterr().out
    assert "mlflow.example.org" in out
    assert "secret" not in out


def test_the_latest_experiment_comes_first_with_its_views(tmp_path):
    pages = ui.addresses(5000, ui._experiments(make_store(tmp_path / "mlflow.db")))
    assert [name.strip() for name, _ in pages] == [
        "icr/digits",
        "full/digits  charts",
        "full/digits  runs compared",
    ]
    assert all(url.startswith("http://127.0.0.1:5000/#/experiments/") for _, url in pages)
    assert "viewStateShareKey=charts" in pages[1][1]
    assert "viewStateShareKey=runs" in pages[2][1]


def test_the_server_is_bound_to_this_machine_only():
    command = ui._command("sqlite:////store/mlflow.db", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--default-artifact-root") + 1] == "/store/mlartifacts"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_stops_without_leaving_a_process(tmp_path, how):
    import mlflow

    from pipeline.track.database import create_database

    path = tmp_path / "mlflow.db"
    create_database(path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    client.create_run(client.create_experiment("full/digits"))
    port = free_port()
    code = f"from pipeline.track import ui; raise SystemExit(ui.serve('sqlite:///{path}', {port}))"
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        lines = iter(command.stdout.readline, "")
        assert any(f"http://127.0.0.1:{port}" in line for line in lines)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
        assert b"MLflow" in page
        os.kill(command.pid, how)
        assert command.wait(120) == 0
    finally:
        command.kill()
    with socket.socket() as probe:  # nobody listens any more
        assert probe.connect_ex(("127.0.0.1", port)) != 0
