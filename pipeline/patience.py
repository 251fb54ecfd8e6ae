"""Outages of a server: which errors are one, and waiting until it is over."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StoreAwayError

Given = TypeVar("Given")

PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
_ERRNOS = {
    errno.EBUSY,  # S3's 503, SlowDown
    errno.EREMOTEIO,  # S3's 500
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
}
# By package and class: none of these packages is imported where it is not in use.
_KINDS = {
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "botocore.ResponseParserError",
    "aiohttp.ClientError",
    "requests.ConnectionError",
    "requests.Timeout",
    "google.RefreshError",
    "google.TransportError",
    "socket.gaierror",
}
_HTTP_CODES = {"408", "429", "500", "502", "503", "504"}


def is_outage(error: BaseException) -> bool:
    """Whether the same request may work later: nobody answered, or only to say "not now"."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & _KINDS:
        return True
    return "gcsfs.HttpError" in kinds and str(getattr(error, "code", "")) in _HTTP_CODES


def patiently(
    call: Callable[[], Given], what: str, seconds: float, say: Callable[[str], object]
) -> Given:
    """What `call()` gives, tried again with growing pauses while `what` is away.

    Args:
        what: the server as a sentence begins with it.
        seconds: how long an outage is waited out; 0 raises what the first try raised.
        say: hears when waiting begins, and when it is over.

    Raises:
        StoreAwayError: it stayed away for longer.
    """
    begun, pause, told = time.monotonic(), FIRST_PAUSE_SECONDS, False
    while True:
        try:
            given = call()
        except Exception as error:
            if not seconds or not is_outage(error):
                raise
            away = time.monotonic() - begun
            reason = str(error).strip().splitlines()[0][:200] if str(error) else ""
            reason = f"{type(error).__name__}: {reason}"
            if away > seconds:
                raise StoreAwayError(
                    f"{what} has been away for {away:.0f} s ({reason}); what is finished is kept: "
                    "run the same command when it is back"
                ) from error
            if not told:
                say(f"{what} is away ({reason}); waiting for it, at most {seconds:.0f} s")
            told = True
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            if told:
                say(f"{what} is back after {time.monotonic() - begun:.0f} s")
            return given
