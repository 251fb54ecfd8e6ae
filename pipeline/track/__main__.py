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
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.track.redaction import redact
from pipeline.track.sender import Sender
from pipeline.track.server import Away
from pipeline.track.spool import LOCK, last_begin, lock_file

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
    os.dup2(2, 1)  # what libraries print goes to the log

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
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the system monitor's threads must not hold us back
