"""A command that was called inside a process which cannot be forked, run in one of its own.

Notebooks call `main([...])` where Ray may be running already: a fork would carry its threads' locks
along, and two Rays do not fit into one process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

FORKING = ("run", "sweep")  # commands that start a process by fork


def is_wanted(command: str) -> bool:
    """Whether such a command must not run in this process."""
    if command not in FORKING:
        return False
    ray = sys.modules.get("ray")
    running = ray is not None and ray.is_initialized()
    return running or threading.current_thread() is not threading.main_thread()


def run(arguments: Sequence[str]) -> int:
    """Run the command, its output going where this process prints; its exit code."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipeline", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"},
        start_new_session=True,  # an interrupt is passed on below, once
    )
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
    except BaseException:
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            print(line, end="", flush=True)
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise
    return process.wait()
