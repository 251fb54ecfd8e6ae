"""Commands under test: started in the background, watched, and found again by a mark."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

MARK = "DIFFUSION_BENCH_FAULTS"
LIMIT_SECONDS = 300.0


class Command:
    """One command line, all of whose processes carry a mark.

    Args:
        log: what it says is written to this file's sibling, `LOG.NUMBER`.
        environment: variables that its processes have beside ours.
    """

    _count = itertools.count()

    def __init__(
        self, arguments: tuple[str, ...], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.mark, self._made_of = secrets.token_hex(8), (arguments, log, environment)
        self.log = log.with_name(f"{log.name}.{next(self._count)}")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}) | {MARK: self.mark},
            )

    def again(self) -> Command:
        """The same command, begun once more."""
        return Command(*self._made_of)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int | None:
        """Its exit code; None if it does not end."""
        try:
            return self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def wait_for(self, words: str, count: int = 1) -> bool:
        """Wait until it has said something so often; False if it ended before."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.said().count(words) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def family(self) -> list[psutil.Process]:
        """Every process that it started, whoever is its parent now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def named(self, *words: str) -> list[psutil.Process]:
        """Those of its processes whose command line holds one of the words."""
        found = []
        for process in self.family():
            try:
                line = " ".join((process.name(), *process.cmdline()))
            except psutil.Error:
                continue
            if any(word in line for word in words):
                found.append(process)
        return found

    def child(self) -> psutil.Process | None:
        """The process that does the work, below the one that was started."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.Error:
            return None
        return children[0] if children else None

    def orphans(self, patience_seconds: float = 20.0) -> list[str]:
        """What of it still lives when it has ended; its sender may take its time."""
        deadline = time.monotonic() + patience_seconds
        while True:
            left = [p for p in self.family() if p.is_running() and not _is_sender(p)]
            if not left or time.monotonic() > deadline:
                return [_line(process) for process in left]
            time.sleep(0.2)

    def wait_for_sender(self, patience_seconds: float = 90.0) -> None:
        """Wait until nobody sends its records to MLflow any more."""
        deadline = time.monotonic() + patience_seconds
        while any(map(_is_sender, self.family())) and time.monotonic() < deadline:
            time.sleep(0.2)

    def end(self) -> None:
        """Kill whatever is left of it."""
        for process in self.family():
            try:
                process.kill()
            except psutil.Error:
                continue


def _is_sender(process: psutil.Process) -> bool:
    return "pipeline.track" in _line(process)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100] or process.name()
    except psutil.Error:
        return ""
