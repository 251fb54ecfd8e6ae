"""Reading ahead: threads read what comes next while the caller computes with what it has.

What is read, and in which order it is handed out, does not depend on how many threads there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

T, S = TypeVar("T"), TypeVar("S")

QUEUE = 4  # results kept ready at the least
MOST_READERS = 8


class Ahead(Generic[T]):
    """A pure function of 0, 1, 2, ..., called by threads before its results are asked for.

    read: the function, safe in several threads at once. readers: the threads; with 0 a result is
    made where it is asked for. end: no number from this one on is called. Asking for a number lets
    the threads begin those behind it: QUEUE of them, or one for every reader if these are more.

    An exception is raised where the result that it stands in the way of is asked for. To be closed,
    or used in a with-statement: the threads then end, on errors and interrupts too.
    """

    def __init__(self, read: Callable[[int], T], readers: int, end: int | None = None) -> None:
        self.waited = 0.0  # seconds in which the caller had nothing to compute with
        self._read, self._end = read, end
        self._depth = max(QUEUE, readers)
        self._pool = ThreadPoolExecutor(readers, "reader") if readers else None
        self._begun: dict[int, Future[T]] = {}

    def __call__(self, number: int, busy: Callable[[], bool] = lambda: False) -> T:
        """The result for a number. busy: whether a device still has work, which then does not wait
        for this."""
        began = time.perf_counter()
        if self._pool is None:
            result = self._read(number)
            self.waited += time.perf_counter() - began
            return result
        last = number + self._depth
        numbers = range(number, (last if self._end is None else min(last, self._end - 1)) + 1)
        for other in self._begun.keys() - numbers:
            self._begun.pop(other).cancel()
        for one in numbers:
            if one not in self._begun:
                self._begun[one] = self._pool.submit(self._read, one)
        future = self._begun.pop(number)
        while not future.done() and busy():
            wait([future], timeout=0.001)
            began = time.perf_counter()
        result = future.result()
        self.waited += time.perf_counter() - began
        return result

    def close(self) -> None:
        """End the threads. What has not begun is not read any more."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def in_order(read: Callable[[S], T], items: Sequence[S], readers: int) -> Iterator[T]:
    """`read(item)` of every item, in order, read ahead by so many threads."""
    with Ahead(lambda number: read(items[number]), readers, len(items)) as results:
        for number in range(len(items)):
            yield results(number)


def sensible(asked: int | None, device: str, small: bool) -> int:
    """How many readers serve: those asked for, or one for each core; none where a CPU computes and
    the data are small, so that a read is a copy and threads would only be in the way."""
    if asked is not None:
        return asked
    return 0 if device == "cpu" and small else min(MOST_READERS, cores())


def cores() -> int:
    """The cores of this machine for each of the training processes on it, at least 1."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (found or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
