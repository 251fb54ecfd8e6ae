"""Many writers to an MLflow server that goes away: what arrives, and how long that takes.

    python -m tests.bench.tracking [--writers 8] [--points 600] [--away 60]

`mlflow server` on a PostgreSQL of its own (Debian's package `postgresql`) is down when the writers
begin, and is killed in the middle. Each writer has two runs, one with a curve, and a sender of its
own, as a command has. Nothing may be lost, and nothing be there twice.
"""

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline import track
from pipeline.track.spool import is_pending
from pipeline.track.uri import check_uri, with_driver
from tests import serving

WAIT_SECONDS = 300


def measure(database, folder, writers, points, away_seconds, serving_processes=2):
    """Runs by name, each its status and how often each step of its curve is there; and the seconds
    from the server's return until all was sent.

    Args:
        database: URI of an empty database.
        points: of each writer's curve; a third while the server is down at the start, a third while
            it serves and is killed, a third while it is away.
    """
    with serving.held_port() as port:
        uri = f"http://127.0.0.1:{port}"
        trackers = [_tracker(uri, folder, f"run-{i}") for i in range(writers)]
        for step in range(points // 3):
            _write(trackers, step)
        server = serving.mlflow(database, port, folder, serving_processes)
        try:
            _until(lambda: check_uri(uri) is None)
            for step in range(points // 3, 2 * points // 3):
                _write(trackers, step)
                time.sleep(2 * 3 / points)  # it is in the midst of it when it dies
            _kill(server)
            for step in range(2 * points // 3, points):
                _write(trackers, step)
            time.sleep(away_seconds)
            server = serving.mlflow(database, port, folder, serving_processes)
            _until(lambda: check_uri(uri) is None)
            back = time.monotonic()
            for tracker in trackers:
                tracker.close("FINISHED", timeout=WAIT_SECONDS)
            while any(map(is_pending, folder.glob("runs/*"))):
                track.send_pending(folder)
                assert time.monotonic() - back < WAIT_SECONDS
            ended = time.monotonic()
        finally:
            _kill(server)
    return _found(database), ended - back


def _tracker(uri, folder, run):
    tracker = track.Tracker(
        uri,
        folder / "runs" / run,
        experiment="bench/tracking",
        run_name=run,
        run_id=run,
        params={"seed": 0},
        tags={},
        warn=lambda text: None,
        system_metrics=False,
    )
    tracker.start()
    return tracker


def _write(trackers, step):
    for tracker in trackers:
        tracker.points("train", "training_step", [("loss", step, 1 / (step + 1))])


def _kill(server):
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def _found(database):
    """What the database itself holds: MLflow would show a step that is there twice once."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(with_driver(database))
    with engine.connect() as connection:
        runs = connection.execute(sqlalchemy.text("select run_uuid, name, status from runs")).all()
        rows = connection.execute(
            sqlalchemy.text("select run_uuid, step from metrics where key = 'loss'")
        ).all()
    engine.dispose()
    steps = {run: Counter(step for of, step in rows if of == run) for run, *_ in runs}
    names = Counter(name for _, name, _ in runs)
    assert max(names.values(), default=0) <= 1, f"runs that are there twice: {names}"
    return {name: (status, steps[run]) for run, name, status in runs}


def check(found, writers, points):
    """Raise AssertionError unless all is there, once."""
    whole, none = Counter(range(points)), Counter()
    expected = {f"run-{i}": ("FINISHED", none) for i in range(writers)}
    expected |= {f"train · run-{i}": ("FINISHED", whole) for i in range(writers)}
    wrong = {name: found.get(name) for name in expected if found.get(name) != expected[name]}
    assert found.keys() == expected.keys()
    assert not wrong, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--points", type=int, default=600, help="of each writer's curve")
    parser.add_argument("--away", type=float, default=60, help="seconds without a server")
    options = parser.parse_args()
    if not serving.PROGRAMS:
        raise SystemExit(serving.ABSENT)
    with tempfile.TemporaryDirectory() as folder, serving.postgres() as port:
        database = f"postgresql://{serving.USER}:{serving.WORD}@127.0.0.1:{port}/postgres"
        found, seconds = measure(
            database, Path(folder), options.writers, options.points, options.away
        )
    check(found, options.writers, options.points)
    total = options.writers * options.points
    print(f"{options.writers} writers, {total} points, the server away for {options.away:g} s")
    print("nothing lost, nothing twice")
    print(f"from its return until all was there: {seconds:.1f} s")


if __name__ == "__main__":
    main()
