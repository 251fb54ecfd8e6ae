"""How nodes ended, added to a run's record as it happens.

A record that were written whole each time would cost more and more with the number of nodes. On a
local disk a line is added at once; to an object store, what came within a second goes as one
object, from a thread: an outage of the store delays nobody.
"""

from __future__ import annotations

import threading
from typing import Any

from pipeline.store import Store

EVERY_SECONDS = 1.0


class Journal:
    """What is added to one run's record. `close` waits until the store has it all."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._waiting: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def add(self, name: str, noted: dict[str, Any]) -> None:
        """Note how a node ended. Raises what went wrong with notes before."""
        if not self._store.remote:
            self._store.append_run(self._run_id, {name: noted})
            return
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._waiting[name] = noted
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="journal")
            self._thread.start()

    def close(self) -> None:
        """Wait until all notes are kept."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._closing.wait(EVERY_SECONDS):
                self._flush()
            self._flush()
        except Exception as error:
            self._failure = error

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        if waiting:
            self._store.append_run(self._run_id, waiting)
