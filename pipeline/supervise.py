"""A light parent process around a run, so that losing Ray never loses the run.

Ray's driver is aborted from C++ when its raylet or control store dies. The work therefore happens
in a forked child; the parent holds nothing that can break, starts the child again when Ray was
lost, and sees to it that Ctrl-C ends everything in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from pipeline import worker
from pipeline.environment import Unheard, sentence
from pipeline.errors import BAD_USAGE, INTERRUPTED, NODE_FAILED, PipelineError, UsageError

RAY_LOST = 75
ATTEMPTS = 4
GRACE_SECONDS = 4.0


def supervise(body: Callable[[int], int], say: Callable[[str], None]) -> int:
    """Run `body(attempt)` in a child process and return its exit code.

    All of a command belongs there that opens an object store: no client of one survives a fork.
    A child that dies without an exit code of its own, or returns `RAY_LOST`, is started again,
    up to `ATTEMPTS` times in all; one that had `decided` is not.

    Raises:
        PipelineError: what the body raised.
    """
    for attempt in range(1, ATTEMPTS + 1):
        said = _child(body, attempt)
        if said.get("error"):
            raise _error(said)
        code = said.get("code")
        if code is not None and code != RAY_LOST:
            if not said.get("last"):
                say("the command died when its last node had ended; what it made is kept")
            return code
        if attempt < ATTEMPTS:
            say("starting Ray again; finished nodes and checkpoints stay")
    say(f"Ray was lost {ATTEMPTS} times; nothing finished is lost, run the same command to go on")
    return NODE_FAILED


def decided(code: int) -> None:
    """Tell the parent how the command ends, whatever becomes of this process: its work is done."""
    if _to_parent is not None:
        _tell(_to_parent, {"code": code})


_to_parent: int | None = None  # the child's end of the pipe


def _child(body: Callable[[int], int], attempt: int) -> dict[str, Any]:
    """What a child said last of how it ended: `code`, `error`, and whether it was its last word."""
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
    said: list[bytes] = []

    def listen() -> None:
        with os.fdopen(reader, "rb") as stream:
            said.extend(stream.read().splitlines())

    # All along: who has more to say than a pipe holds would wait for us, and we for its end.
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        _wait(pid, interrupted)
        listener.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    heard = json.loads(said[-1]) if said else {}
    # A signal to all of our processes ends Ray too: that is no Ray that was lost.
    # One that takes too long to leave Ray is killed, and said before how it ended.
    if interrupted and heard.get("code") in (None, RAY_LOST, INTERRUPTED):
        return {"code": INTERRUPTED, "last": True}
    return heard


def _error(said: dict[str, Any]) -> PipelineError:
    """The error that the child told, its traceback beside it for `--debug`."""
    error = (UsageError if said["code"] == BAD_USAGE else PipelineError)(said["error"])
    error.add_note(said["traceback"])
    return error


def _tell(writer: int, said: dict[str, Any]) -> None:
    data = json.dumps(said).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):  # a parent that was killed hears nothing
        while data:
            data = data[os.write(writer, data) :]


def _run_child(body: Callable[[int], int], attempt: int, writer: int) -> None:
    global _to_parent
    _to_parent = writer
    worker.watch_parent()
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.signal(signal.SIGTERM, _interrupt_once)
    # A reader who has had enough (head, less) does not end the run.
    sys.stdout, sys.stderr = Unheard(sys.stdout), Unheard(sys.stderr)
    said: dict[str, Any] = {"code": NODE_FAILED}
    try:
        said = {"code": body(attempt)}
    except KeyboardInterrupt:
        said = {"code": INTERRUPTED}
    except PipelineError as error:
        text = traceback.format_exc()
        said = {"code": error.exit_code, "error": str(error), "traceback": text}
    except BaseException as error:
        text = sentence(error) if isinstance(error, OSError) else None
        if text is None:
            traceback.print_exc()
        else:
            said |= {"error": text, "traceback": traceback.format_exc()}
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            _tell(writer, said | {"last": True})
        finally:
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
