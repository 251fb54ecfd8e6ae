"""Locks among machines that share only an object store.

A lock is an object that is created where there is none, and renewed while its holder lives; one
that was not renewed for long is of a machine that died, and is taken over. Servers that cannot
refuse to create what exists (`ObjectLocation.excludes`) still show who is at work: only two that
begin at the very same moment may both do so. Their artifacts are identical.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipeline.objects import ObjectLocation

BEAT_SECONDS = 20.0
FRESH_SECONDS = 120.0  # a sign of this age is of a machine that died, or of a clock that is wrong
SETTLE_SECONDS = 1.0  # between taking over and looking whether others did so too


@contextlib.contextmanager
def lease(location: ObjectLocation, name: str, here: str) -> Iterator[bool]:
    """Try to hold a lock; yields whether it is held.

    Args:
        here: what on this machine has locks of its own, of which the caller holds this one.
    """
    sign = {"host": socket.gethostname(), "where": here, "token": secrets.token_hex(8)}
    if not _taken(location, name, sign):
        yield False
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_beat, args=(location.at_once(), name, sign, ended), daemon=True, name="lease"
    )
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join(BEAT_SECONDS)
        with contextlib.suppress(Exception):  # it grows old by itself
            if _token(_read(location.at_once(), name)) == sign["token"]:
                location.at_once().remove(_path(name))


def holder(location: ObjectLocation, name: str, here: str) -> str:
    """The host of another machine that holds a lock at this moment, or "". Writes nothing."""
    sign = _read(location, name)
    return sign["host"] if _lives(sign) and sign["where"] != here else ""


def is_stale(location: ObjectLocation, name: str) -> bool:
    """Whether the object of a lock is there and nobody renews it."""
    sign = _read(location, name)
    return sign is not None and not _lives(sign)


def _taken(location: ObjectLocation, name: str, sign: dict[str, Any]) -> bool:
    known = _read(location, name)
    if known is None:
        if location.create(_path(name), _dump(sign)):
            return True
        # An answer that was lost makes us meet our own sign.
        return _token(_read(location, name)) == sign["token"]
    if _lives(known) and known["where"] != sign["where"]:
        return False
    location.write(_path(name), _dump(sign))
    if known.get("where") != sign["where"]:
        time.sleep(SETTLE_SECONDS)
    return _token(_read(location, name)) == sign["token"]


def _beat(
    location: ObjectLocation, name: str, sign: dict[str, Any], ended: threading.Event
) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(Exception):  # the store may be away for a while
            location.write(_path(name), _dump(sign))


def _path(name: str) -> str:
    return f"locks/{name.replace('/', '-')}.json"


def _dump(sign: dict[str, Any]) -> bytes:
    return json.dumps(sign | {"time": time.time()}).encode()


def _read(location: ObjectLocation, name: str) -> dict[str, Any] | None:
    """A lock's sign of life, {} where it cannot be read, None where there is none."""
    data = location.read(_path(name))
    if data is None:
        return None
    try:
        sign = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return sign if isinstance(sign, dict) else {}


def _token(sign: dict[str, Any] | None) -> Any:
    return sign.get("token") if sign else None


def _lives(sign: dict[str, Any] | None) -> bool:
    if not sign or not all(isinstance(sign.get(key), str) for key in ("host", "where")):
        return False
    beaten = sign.get("time")
    return isinstance(beaten, int | float) and abs(time.time() - beaten) < FRESH_SECONDS
