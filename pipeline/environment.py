"""What a command finds around it, put right before it begins: streams, home, proxies, limits."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UsageError

NOWHERE = "/nonexistent"  # the home of those who have none
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_FILES = 8192  # more than a run takes
FEWEST_OPEN_FILES = 256  # with less, Ray's processes do not come up
PROBE_BYTES, LEAST_FREE_BYTES = 1 << 20, 8 << 20
# What stands for signs that a terminal cannot show.
SIGNS = {
    **{"±": "+-", "×": "x", "·": "-", "✓": "+", "✗": "x", "▸": ">", "→": "->", "≤": "<="},
    **{"≥": ">=", "–": "-", "—": "-", "…": "...", "σ": "sigma", "γ": "gamma"},
}
# Of the machine, not of the code: what a person can mend, by the errors that tell of it.
REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place with --store",
    errno.EDQUOT: "free some of your quota, or choose another place with --store",
    errno.EROFS: "choose another place with --store",
    errno.EACCES: "choose another place with --store",
    errno.EPERM: "choose another place with --store",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "wait until other programs have ended",
    errno.ENOMEM: "free some memory",
}


def prepare() -> None:
    """Put right what can be. Idempotent, and harmless in a process that others share."""
    # Ray's own processes do not come up without their docstrings and assertions.
    os.environ.pop("PYTHONOPTIMIZE", None)
    _open_streams()
    _show_what_can_be_shown()
    _have_a_home()
    _reach_loopback_without_proxy()
    _raise_limit_of_files()


def speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where file names are not UTF-8, so that all agree on them.

    What the terminal shows stays in its own encoding.
    """
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8") or sys.flags.utf8_mode:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    modes = {"PYTHONUTF8": "1", "PYTHONIOENCODING": encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | modes)


def check() -> None:
    """Raise `UsageError` for what stands in the way of every command."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working folder cannot be used ({error.strerror}): it may have been removed; "
            "cd to one that exists and run the command again"
        ) from error


def check_limits() -> None:
    """Raise `UsageError` for what stands in the way of a run."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FEWEST_OPEN_FILES:
        raise UsageError(
            f"only {soft} files may be open at a time (ulimit -n), and Ray needs "
            f"{FEWEST_OPEN_FILES}; raise it: ulimit -n {OPEN_FILES}"
        )


def check_space(folder: Path) -> None:
    """Raise `UsageError` where a store's disk has no room for so much as a run's record."""
    free = shutil.disk_usage(folder).free
    text = f"the disk of store {folder} is full: {free / 2**20:.1f} MiB are free"
    remedy = "free some space, or choose another with --store"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:  # a quota may be less than the disk
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise UsageError(f"{text} ({error.strerror}); {remedy}") from error
    if free < LEAST_FREE_BYTES:
        raise UsageError(f"{text}, and a run needs {LEAST_FREE_BYTES / 2**20:.0f}; {remedy}")


def sentence(error: OSError) -> str | None:
    """What to say of an error of the machine; None for one that may be the code's own fault."""
    remedy = REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {remedy}"


class Unheard:
    """A stream whose reader may leave: from then on, what is written to it is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _readers_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _readers_gone():
            self._stream.flush()


@contextlib.contextmanager
def _readers_gone():
    try:
        yield
    except OSError as error:
        # EIO: the terminal was closed.
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def drop_output() -> None:
    """Let nothing more be said: Python would complain at its end of a reader that has left."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_streams() -> None:
    """Closed streams lead nowhere; else the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _show_what_can_be_shown() -> None:
    """Signs that the terminal's encoding lacks are replaced; bytes of file names stay as they are.

    Files are UTF-8 whatever the locale, and so is what processes of ours say among themselves.
    """
    codecs.register_error("shown", _shown)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="shown")
    os.environ.pop("PYTHONIOENCODING", None)  # processes that we start have pipes, not terminals
    if sys.getfilesystemencoding() == "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # and agree with us on file names


def _shown(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_replacement, text)), error.end


def _replacement(sign: str) -> bytes:
    if "\udc80" <= sign <= "\udcff":  # a byte of a file name that is no text
        return bytes((ord(sign) - 0xDC00,))
    return SIGNS.get(sign, "?").encode("ascii")


def _have_a_home() -> None:
    """Libraries look for settings at home, and fail where there is none at all."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = NOWHERE


def _reach_loopback_without_proxy() -> None:
    """No proxy leads to this machine's own servers."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    for name in ("no_proxy", "NO_PROXY"):
        known = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        more = [host for host in LOOPBACK if host not in known]
        os.environ[name] = ",".join([*known, *more])


def _raise_limit_of_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
