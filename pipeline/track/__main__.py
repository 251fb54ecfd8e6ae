"""The sender's process: `python -m pipeline.track RUN_DIR...`, started by a `Tracker`.

A live sender serves one run and ends when the driver closes its input, or dies. Without a driver
it sends what several earlier runs have left. It tells the driver what a person should know, a
line each: a kind (away, back, warning) and a sentence.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from pipeline.locking import lock_file
from pipeline.track.redaction import redact
from pipeline.track.sender import Sender
from pipeline.track.server import Away
from pipeline.track.spool import LOCK, last_begin

POLL_SECONDS = 0.3
MAX_BACKOFF_SECONDS = 10.0
LAST_WORDS_SECONDS = 60.0  # how long a sender outlives a driver that was killed
AWAY = "MLflow at {} is away; the run goes on and its records are sent when it is back ({})"
BACK = "MLflow at {} is back; the kept records have been sent"


def serve(run_dir: Path, closing: threading.Event, tell: Callable[[str, str], None]) -> None:
    """Send a run's events as they come, until `closing` is set and all is sent or given up."""
    sender = Sender(run_dir, lambda message: tell("warning", message))
    backoff, away, deadline = POLL_SECONDS, False, None
    while True:
        closed = closing.is_set()
        if closed:
            deadline = deadline or time.monotonic() + LAST_WORDS_SECONDS
        try:
            busy = sender.step()
            if away and not busy:
                tell("back", BACK.format(redact(sender.uri)))
                backoff, away = POLL_SECONDS, False
        except Away as error:
            if closed:
                return
            if not away:
                tell("away", AWAY.format(redact(sender.uri), error))
            away = True
            closing.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            continue
        if closed and (not busy or time.monotonic() > deadline):
            break
        if not busy:
            closing.wait(POLL_SECONDS)
    with contextlib.suppress(Away):
        sender.abandon()


def _watch_driver(closing: threading.Event) -> None:
    """Set `closing` when the driver closes our input, or is gone."""
    sys.stdin.read()
    closing.set()


def main(run_dirs: Sequence[str]) -> int:
    """Serve one run for the driver at the other end of our input, or flush several runs."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    with _logged():
        try:
            _send(run_dirs, answers)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _send(run_dirs: Sequence[str], answers: IO[str]) -> None:
    def tell(kind: str, message: str) -> None:
        with contextlib.suppress(OSError):  # the driver is gone
            print(kind, message, file=answers)

    closing = threading.Event()
    live = not os.path.samestat(os.fstat(0), os.stat(os.devnull))
    if live:
        threading.Thread(target=_watch_driver, args=(closing,), daemon=True).start()
    else:
        closing.set()
    for run_dir in map(Path, run_dirs):
        # A live run may have to wait for the sender of its killed predecessor.
        with lock_file(run_dir / LOCK, wait_seconds=LAST_WORDS_SECONDS if live else 0) as held:
            if held and last_begin(run_dir) is not None:
                serve(run_dir, closing, tell)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """What libraries print goes to the log, our standard error, without the passwords of URIs."""
    log = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_copy, args=(reader, log), daemon=True, name="log")
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        thread.join(1.0)  # a process that was left behind may hold the pipe


def _copy(reader: int, log: int) -> None:
    with os.fdopen(reader, "rb") as stream:
        for line in stream:
            os.write(log, redact(line.decode(errors="replace")).encode(errors="replace"))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the system monitor's threads must not hold us back
