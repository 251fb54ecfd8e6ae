"""Servers for tests and benchmarks: a PostgreSQL of their own, and MLflow's behind one port."""

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

USER, WORD = "ada", "lo%2Fve"  # as an address has it
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's package `postgresql`
ABSENT = "PostgreSQL is not installed: apt-get install -y postgresql"


@contextlib.contextmanager
def postgres():
    """The port of a PostgreSQL with user ada, password lo/ve, gone at the end with all it holds."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as place:  # sockets have short names
        folder, user = Path(place), None
        (folder / "word").write_text("lo/ve")
        if os.getuid() == 0:  # it refuses to run as root
            entry = pwd.getpwnam("postgres")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            os.chown(folder / "word", entry.pw_uid, entry.pw_gid)
            user = "postgres"
        with held_port() as port:
            pass

        def call(name, *arguments):
            command = [str(PROGRAMS[-1] / name), *arguments]
            subprocess.run(
                command, check=True, capture_output=True, user=user, cwd="/", timeout=120
            )

        data, word = str(folder / "data"), f"--pwfile={folder / 'word'}"
        call("initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", word, "--no-sync")
        log, options = str(folder / "log"), f"-p {port} -h 127.0.0.1 -k {folder} -F"
        call("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        try:
            yield port
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def held_port():
    """A port that is bound but does not listen: a server may take it, nobody is given it by
    chance."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def mlflow(backend, port, folder, workers=1):
    """An MLflow server in a session of its own, whose files and log are in a folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    command += ["--artifacts-destination", str(folder / "files")]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": backend,
    }
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
