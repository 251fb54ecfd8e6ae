"""The address of a Ray cluster: read, and asked for a sign of life, before Ray is.

Ray itself tries an address where nobody answers for minutes, and prints its own log meanwhile.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.errors import UsageError

VARIABLE = "RAY_ADDRESS"
WAIT_SECONDS = 5.0  # a cluster that is just starting may still come
ANSWER_SECONDS = 7.0  # of which importing Ray takes some
LATE = "it did not answer in time"
NO_TOKEN = "it asks for a token"
_ADDRESS = re.compile(r"(ray://)?([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})")
_CLIENT = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
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


def show_token() -> bool:
    """Let Ray show its token where there is one; Ray reads the mode when it is imported."""
    kept = Path.home() / ".ray" / "auth_token"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    known = bool(named or os.environ.get("RAY_AUTH_TOKEN")) or os.access(kept, os.R_OK)
    if known:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return known


def check_alive(address: str, wait_seconds: float = WAIT_SECONDS) -> None:
    """Raise `UsageError` where nothing like Ray answers; "auto" is for Ray to find."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return
    show_token()
    host, port = match[2].strip("[]"), int(match[3])
    said = [LATE]
    # Looking up a name has no limit of its own.
    asking = threading.Thread(target=_ask, args=(host, port, wait_seconds, said), daemon=True)
    asking.start()
    asking.join(wait_seconds)
    reason = said[-1]
    if not reason:
        reason = _hello(host, port) if match[1] else _greeted(address)
    if reason == NO_TOKEN:
        raise UsageError(
            f"the Ray cluster at '{address}' asks for a token, and "
            f"{'another' if show_token() else 'none'} is known here; put the one that it was "
            "started with into RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
        )
    if reason:
        raise unanswered(address, reason)


def unanswered(address: str, reason: str) -> UsageError:
    """What to say of an address where no cluster is."""
    return UsageError(
        f"no Ray cluster answers at '{address}' ({reason.rstrip('.')}); start it, correct "
        f"--address or {VARIABLE}, or leave these out (unset {VARIABLE}) for a Ray of our own"
    )


def _ask(host: str, port: int, wait_seconds: float, said: list[str]) -> None:
    """Append why nobody listens, again with every attempt; "" once somebody does."""
    deadline = time.monotonic() + wait_seconds
    while said[-1] and (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
            said.append("")
        except TimeoutError:
            said.append(LATE)
        except (OSError, OverflowError, UnicodeError) as error:
            said.append(getattr(error, "strerror", None) or str(error))
            time.sleep(0.3)


def _greeted(address: str) -> str:
    """What is wrong with the head there; shows a token only where one is asked for.

    A process with a token and a cluster without do connect, and then lose their actors.
    """
    reason = _client(address, "disabled")
    if not reason:
        os.environ["RAY_AUTH_MODE"] = "disabled"
    elif reason == NO_TOKEN and show_token():
        os.environ["RAY_AUTH_MODE"] = "token"
        reason = _client(address, "token")
    return reason


def _client(address: str, mode: str) -> str:
    """What Ray's own client says against the head there, in a process that can be ended."""
    try:
        process = subprocess.run(
            [sys.executable, "-c", _CLIENT, address],
            env=os.environ | {"RAY_AUTH_MODE": mode},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return LATE
    if process.returncode == 0:
        return ""
    if "uthenticat" in process.stderr or "AuthToken" in process.stderr:
        return NO_TOKEN
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    return f"what answers there is no head of a Ray cluster: {lines[-1].partition(': ')[2]}"


def _hello(host: str, port: int) -> str:
    """Why what listens there cannot be the server of `ray://`, which speaks HTTP/2; "" if it can.

    Ray's own client of it tries for half a minute.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except TimeoutError:
        return LATE
    except OSError as error:
        return error.strerror or str(error)
    return "" if answer[3:4] == bytes((_SETTINGS,)) else "what answers there is not Ray"
