"""A light parent process around a run, so that losing Ray never loses the run.

Ray's driver is aborted from C++ when its raylet or control store dies. The work therefore happens
in a forked child; the parent holds nothing that can break, starts the child again when Ray was
lost, and sees to it that Ctrl-C ends everything in time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from pipeline import worker
from pipeline.environment import Unheard, sentence
from pipeline.errors import INTERRUPTED, NODE_FAILED

RAY_LOST = 75
ATTEMPTS = 4
GRACE_SECONDS = 4.0


def supervise(body: Callable[[int], int], say: Callable[[str], None]) -> int:
    """Run `body(attempt)` in a child process and return its exit code.

    A child that dies without an exit code of its own, or returns `RAY_LOST`, is started again,
    up to `ATTEMPTS` times in all.
    """
    for attempt in range(1, ATTEMPTS + 1):
        code = _child(body, attempt)
        if code is not None and code != RAY_LOST:
            return code
        if attempt < ATTEMPTS:
            say("starting Ray again; finished nodes and checkpoints stay")
    say(f"Ray was lost {ATTEMPTS} times; nothing finished is lost, run the same command to go on")
    return NODE_FAILED


def _child(body: Callable[[int], int], attempt: int) -> int | None:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_child(body, attempt, writer)
    os.close(writer)
    interrupted: list[float] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not interrupted:
            os.kill(pid, signal.SIGINT)
        interrupted.append(time.monotonic())

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _wait(pid, interrupted)
        with os.fdopen(reader, "rb") as stream:
            said = stream.read()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = int(said) if said else None
    # A signal to all of our processes ends Ray too: that is no Ray that was lost.
    return INTERRUPTED if interrupted and code in (None, RAY_LOST) else code


def _run_child(body: Callable[[int], int], attempt: int, writer: int) -> None:
    worker.watch_parent()
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.signal(signal.SIGTERM, _interrupt_once)
    # A reader who has had enough (head, less) does not end the run.
    sys.stdout, sys.stderr = Unheard(sys.stdout), Unheard(sys.stderr)
    code: int | None = None
    try:
        code = body(attempt)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:
        text = sentence(error) if isinstance(error, OSError) else None
        if text is None:
            import traceback

            traceback.print_exc()
        else:
            print(f"error: {text}", file=sys.stderr)
        code = NODE_FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, str(NODE_FAILED if code is None else code).encode())
        os._exit(0)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """The terminal and the parent may both tell us: once is enough."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN: what comes at this very moment would be told as an error.
        signal.signal(signum, _unheard)
    raise KeyboardInterrupt


def _unheard(number: int, frame: FrameType | None) -> None:
    """A signal that says nothing new."""


def _wait(pid: int, interrupted: list[float]) -> None:
    while True:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return
        if interrupted and time.monotonic() - interrupted[0] > GRACE_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.02)
