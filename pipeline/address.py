"""The address of a Ray cluster: read, and asked for a sign of life, before Ray is.

Ray itself tries an address where nobody answers for minutes, and prints its own log meanwhile.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time

from pipeline.errors import UsageError

VARIABLE = "RAY_ADDRESS"
WAIT_SECONDS = 6.0  # a cluster that is just starting may still come
_ADDRESS = re.compile(r"(ray://)?([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})")
# A client of HTTP/2, on which Ray's gRPC stands, begins with these words and a frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4  # the kind of frame with which a server answers


def given(option: str | None) -> str | None:
    """The address of `--address`, or else of RAY_ADDRESS; None for a Ray of our own."""
    address = (option or os.environ.get(VARIABLE) or "").strip()
    return None if address in ("", "local") else address


def check_address(address: str) -> None:
    """Raise `UsageError` where Ray could not read the address of a cluster."""
    if address not in ("auto", "local") and not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--address '{address}' (or {VARIABLE}) is no address of a Ray cluster; give "
            "HOST:PORT, ray://HOST:PORT, or auto"
        )


def check_alive(address: str, wait_seconds: float = WAIT_SECONDS) -> None:
    """Raise `UsageError` where nothing like Ray answers; "auto" is for Ray to find."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return
    host, port = match[2].strip("[]"), int(match[3])
    said = ["it did not answer in time"]
    # Looking up a name has no limit of its own.
    asking = threading.Thread(target=_ask, args=(host, port, wait_seconds, said), daemon=True)
    asking.start()
    asking.join(wait_seconds + 1)
    if said[-1]:
        raise unanswered(address, said[-1])


def unanswered(address: str, reason: str) -> UsageError:
    """What to say of an address where no cluster is."""
    named = f"{VARIABLE} is" if given(None) == address else "--address is"
    remedy = f"unset {VARIABLE}" if given(None) == address else "leave --address out"
    return UsageError(
        f"no Ray cluster answers at '{address}' ({reason}); {named} to name a cluster that runs: "
        f"start it, correct the address, or {remedy} for a Ray of this machine's own"
    )


def _ask(host: str, port: int, wait_seconds: float, said: list[str]) -> None:
    """Append why there is no answer, again with every attempt; "" once there is one."""
    deadline = time.monotonic() + wait_seconds
    while (left := deadline - time.monotonic()) > 0:
        said.append(_refusal(host, port, left))
        if not said[-1]:
            return
        time.sleep(0.3)


def _refusal(host: str, port: int, seconds: float) -> str:
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except TimeoutError:
        return "it did not answer in time"
    except (OSError, OverflowError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if answer[3:4] == bytes((_SETTINGS,)) else "what answers there is not Ray"
