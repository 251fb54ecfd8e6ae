"""Locks among processes that share a disk, on file systems with and without locks of their own.

Where they work, a lock is the kernel's, which dies with its holder. Some file systems that
machines share have none (Lustre without `flock`), or grant one on each machine (NFS with
`local_lock`): there a lock is a file that is created where there is none, and touched while its
holder lives. One that was not touched for long is of a machine that died, and is taken over. The
first command that finds out leaves a mark for all others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import secrets
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UsageError

BEAT_SECONDS = 20.0
FRESH_SECONDS = 120.0
POLL_SECONDS = 0.05
MARK = ".by-creation"  # in a folder of locks whose disk has none of its own
# What opening a folder, a pipe, or something below a file says.
NO_FILE = {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO}
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
# Options of mounts where a lock counts on one machine only.
LOCAL_ONLY = {"nolock", "local_lock=flock", "local_lock=all", "localflock"}


@contextlib.contextmanager
def lock_file(path: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Try to hold a lock; yields whether it is held, within `wait_seconds`.

    Raises:
        UsageError: something else is at that place.
        OSError: the disk refuses what locks are made of.
    """
    make_folder(path.parent)
    kind = _created if by_creation(path.parent) else _flocked
    deadline = time.monotonic() + wait_seconds
    while True:
        with kind(path) as held:
            if held or time.monotonic() >= deadline:
                yield held
                return
        time.sleep(POLL_SECONDS)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock at this moment. Writes nothing."""
    if (path.parent / MARK).exists():
        return _lives(_sign_of(path), _read(_sign_of(path)), time.time())
    try:
        with _opened(path, os.O_RDONLY) as stream:
            return not _try(stream, fcntl.LOCK_SH)
    except (FileNotFoundError, UsageError):
        return False


def drop(path: Path) -> None:
    """Remove what is left of a lock that nobody holds."""
    if path.name.startswith("."):  # the mark, and probes of others
        return
    if (path.parent / MARK).exists():
        if not _lives(path, _read(path), time.time()):
            path.unlink(missing_ok=True)
        return
    with _opened(path, os.O_WRONLY | os.O_CREAT) as stream:
        if _try(stream, fcntl.LOCK_EX):
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder for locks, unless it is there; UsageError where something else is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _in_the_way(folder) from error


def _opened(path: Path, flags: int) -> IO[bytes]:
    """The file of a lock. Others may have put a folder or a pipe there: nobody waits for it."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise _in_the_way(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path)
    return open(descriptor, "rb" if flags == os.O_RDONLY else "ab")


def _in_the_way(path: Path) -> UsageError:
    return UsageError(f"{path} is in the way of a lock; move it elsewhere")


def by_creation(folder: Path) -> bool:
    """Whether locks in a folder are files that are created, since its disk has none; found out
    once by each process, and marked."""
    return (folder / MARK).exists() or _probed(folder)


@functools.cache
def _probed(folder: Path) -> bool:
    if works(folder):
        return False
    (folder / MARK).touch()
    return True


def works(folder: Path) -> bool:
    """Whether the disk under a folder grants a lock to one and refuses it to another."""
    if _options(folder) & LOCAL_ONLY:
        return False
    with (
        tempfile.NamedTemporaryFile("w", dir=folder, prefix=".probe-") as one,
        open(one.name, "w", encoding="utf-8") as other,
    ):
        try:
            return _try(one, fcntl.LOCK_EX) and not _try(other, fcntl.LOCK_EX)
        except OSError:
            return False


def _options(folder: Path, mounts: str = "/proc/self/mounts") -> set[str]:
    """The options with which the disk under a folder is mounted."""
    place, found, longest = folder.resolve(), set(), -1
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return found
    for line in lines:
        _, where, _, options, *_ = line.split(" ")
        root = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
        if place.is_relative_to(root) and len(root.parts) >= longest:
            found, longest = set(options.split(",")), len(root.parts)
    return found


def _try(stream: IO[Any], kind: int) -> bool:
    """Whether a lock was granted; OSError where the disk has none."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


@contextlib.contextmanager
def _flocked(path: Path) -> Iterator[bool]:
    while True:
        with _opened(path, os.O_WRONLY | os.O_CREAT) as stream:
            held = _try(stream, fcntl.LOCK_EX)
            if held and not _is_at(stream, path):  # `drop` has removed it meanwhile
                continue
            yield held
            return


def _is_at(stream: IO[Any], path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _created(path: Path) -> Iterator[bool]:
    sign = _sign_of(path)
    token = _take(sign)
    if not token:
        yield False
        return
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(sign, token, ended), daemon=True, name="lock")
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join(BEAT_SECONDS)
        if _read(sign).get("token") == token:
            sign.unlink(missing_ok=True)


def _sign_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _take(sign: Path) -> str:
    """The token of a lock that was free, or whose holder is dead; "" where it is held."""
    token = secrets.token_hex(8)
    if _create(sign, token):
        return token
    if _lives(sign, _read(sign), _now(sign.parent)):
        return ""
    # One at a time looks again and takes over; a taker that died is taken over as well.
    taking = sign.with_name(f"{sign.name}.taking")
    if not _create(taking, token):
        if not _lives(taking, _read(taking), _now(sign.parent)):
            taking.unlink(missing_ok=True)
        return ""
    try:
        if not _lives(sign, _read(sign), _now(sign.parent)):
            sign.unlink(missing_ok=True)
            return token if _create(sign, token) else ""
        return ""
    finally:
        taking.unlink(missing_ok=True)


def _create(sign: Path, token: str) -> bool:
    """Create a sign where there is none, at once with what it says."""
    temporary = sign.with_name(f"{sign.name}.{token}")
    try:
        temporary.write_text(json.dumps({"token": token, **_me()}), encoding="utf-8")
        os.link(temporary, sign)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        return _create_plainly(sign, temporary)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_plainly(sign: Path, text: Path) -> bool:
    """As `_create`, on a disk without links: for a moment the sign is empty, and lives."""
    try:
        with sign.open("x", encoding="utf-8") as stream:
            stream.write(text.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    return True


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "space": _space()}


def _born(pid: int) -> str:
    """When a process of that number began, in ticks of this boot's clock; "" if there is none, or
    it is hidden (`hidepid`)."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return said.rpartition(")")[2].split()[19]  # its name may have spaces, and brackets
    except (OSError, IndexError):
        return ""


@functools.cache
def _space() -> str:
    """Where process ids mean the same: this boot of this machine, or of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _read(sign: Path) -> dict[str, Any]:
    try:
        if not sign.is_file():  # a pipe would be waited for
            return {}
        found = json.loads(sign.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(sign: Path, said: dict[str, Any], now: float) -> bool:
    """Whether the holder of a sign lives: it was touched lately, and its process is not gone."""
    try:
        beaten = sign.stat().st_mtime
    except FileNotFoundError:
        return False
    pid = said.get("pid")
    if said.get("space") == _space() != "" and isinstance(pid, int) and pid > 0:
        if born := _born(pid):  # another may have its number meanwhile
            return (said.get("born") or born) == born
        if _is_gone(pid):
            return False
    return abs(now - beaten) < FRESH_SECONDS


def _is_gone(pid: int) -> bool:
    """Whether no process has that number, neither one that is hidden."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _now(folder: Path) -> float:
    """The time by the clock of a folder's disk."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as stream:
        return os.fstat(stream.fileno()).st_mtime


def _beat(sign: Path, token: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # the disk may be away for a while
            if _read(sign).get("token") == token:
                os.utime(sign)
