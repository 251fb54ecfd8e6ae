"""Locks on disks with and without locks of their own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline import locking
from pipeline.errors import UsageError
from pipeline.store import Store


@pytest.fixture(params=["kernel", "files"])
def folder(request, tmp_path):
    if request.param == "files":
        (tmp_path / locking.MARK).touch()
    return tmp_path


def other(path, then="print('held', flush=True); input()"):
    """Another process that tries to hold a lock."""
    code = f"""
from pathlib import Path
from pipeline import locking
with locking.lock_file(Path({str(path)!r})) as held:
    {then if then else "print(held, flush=True)"}
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def test_one_holds_it_at_a_time(folder):
    path = folder / "a"
    assert not locking.is_locked(path)
    with locking.lock_file(path) as held:
        assert held
        assert locking.is_locked(path)
        with locking.lock_file(path) as again:
            assert not again
        assert other(path, "").communicate()[0] == "False\n"
        with locking.lock_file(folder / "b") as another:
            assert another
    assert not locking.is_locked(path)
    with locking.lock_file(path) as held:
        assert held


def test_it_is_waited_for(folder):
    process = other(folder / "a", "print('held', flush=True); __import__('time').sleep(0.5)")
    assert process.stdout.readline() == "held\n"
    begun = time.monotonic()
    with locking.lock_file(folder / "a", wait_seconds=20) as held:
        assert held
    assert time.monotonic() - begun < 20
    process.wait()


def test_a_killed_process_lets_go_of_it(folder):
    process = other(folder / "a")
    assert process.stdout.readline() == "held\n"
    assert locking.is_locked(folder / "a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not locking.is_locked(folder / "a")
    with locking.lock_file(folder / "a") as held:
        assert held


def test_a_process_that_has_the_number_of_the_holder_holds_nothing(tmp_path):
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")
    with locking.lock_file(tmp_path / "a"):
        kept = sign.read_text()
    born = locking._born(os.getpid())
    assert f'"born": "{born}"' in kept
    assert float(born) / os.sysconf("SC_CLK_TCK") <= time.clock_gettime(time.CLOCK_BOOTTIME)
    sign.write_text(kept)
    assert locking.is_locked(tmp_path / "a")
    sign.write_text(kept.replace(born, str(int(born) - 1)))
    assert not locking.is_locked(tmp_path / "a")
    with locking.lock_file(tmp_path / "a") as held:
        assert held


@pytest.mark.parametrize(
    ("answer", "lives"),
    [(None, True), (PermissionError, True), (ProcessLookupError, False), (OverflowError, False)],
)
def test_a_holder_that_is_hidden_lives_while_its_number_does(tmp_path, monkeypatch, answer, lives):
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")

    def kill(pid, number):
        assert (pid, number) == (os.getpid(), 0)
        if answer:
            raise answer

    with locking.lock_file(tmp_path / "a"):
        monkeypatch.setattr(locking, "_born", lambda pid: "")
        monkeypatch.setattr(locking.os, "kill", kill)
        assert locking.is_locked(tmp_path / "a") is lives
        old = time.time() - locking.FRESH_SECONDS - 5
        os.utime(sign, (old, old))
        assert not locking.is_locked(tmp_path / "a"), "it was not touched for long"


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_group_is_taken_for_a_holder(tmp_path, pid):
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")
    with locking.lock_file(tmp_path / "a"):
        sign.write_text(json.dumps(locking._me() | {"pid": pid}))
        old = time.time() - locking.FRESH_SECONDS - 5
        os.utime(sign, (old, old))
        assert not locking.is_locked(tmp_path / "a")


def test_a_file_where_locks_go_is_named(tmp_path):
    (tmp_path / "locks").write_text("")
    with pytest.raises(UsageError, match="locks is in the way of a lock"):
        Store(tmp_path).has_no_locks()


def test_of_another_machine_it_is_believed_while_it_is_fresh(tmp_path, monkeypatch):
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")
    with locking.lock_file(tmp_path / "a"):
        there = sign.read_text().replace(locking._space(), "elsewhere")
        sign.write_text(there)
        with locking.lock_file(tmp_path / "a") as held:
            assert not held
    sign.write_text(there)
    old = time.time() - locking.FRESH_SECONDS - 5
    os.utime(sign, (old, old))
    with locking.lock_file(tmp_path / "a") as held:
        assert held, "its machine died"
    assert not sign.exists()


def test_a_lock_that_lives_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.05)
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")
    with locking.lock_file(tmp_path / "a"):
        os.utime(sign, (0, 0))
        deadline = time.monotonic() + 20
        while sign.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_many_that_take_over_are_one(tmp_path):
    (tmp_path / locking.MARK).touch()
    sign = locking._sign_of(tmp_path / "a")
    sign.write_text("{}")
    os.utime(sign, (0, 0))
    tokens = [locking._take(sign) for _ in range(5)]
    assert [bool(token) for token in tokens] == [True] + [False] * 4
    assert [path.name for path in tmp_path.iterdir() if path != sign] == [locking.MARK]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_locks_is_noticed(tmp_path, monkeypatch, code):
    def refuse(stream, kind):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    assert not locking.works(tmp_path)
    store = Store(tmp_path / "store")
    store.check_writable()
    assert store.has_no_locks()
    with store.lock("a") as held:
        assert held, "not held by anybody"
        assert store.holder("a")
        with store.lock("a") as again:
            assert not again
    monkeypatch.undo()
    assert Store(tmp_path / "store").has_no_locks(), "what one machine has found counts for all"


def test_a_disk_whose_locks_exclude_nobody_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(locking.fcntl, "flock", lambda stream, kind: None)
    assert not locking.works(tmp_path)


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ("rw,vers=4.2", True),
        ("rw,local_lock=none", True),
        ("rw,vers=3,nolock", False),
        ("rw,local_lock=flock", False),
        ("rw,localflock", False),
    ],
)
def test_a_mount_whose_locks_are_of_one_machine_is_noticed(tmp_path, options, shared):
    table = tmp_path / "mounts"
    table.write_text(f"root / ext4 rw 0 0\nserver:/x {tmp_path} nfs {options} 0 0\n")
    found = locking._options(tmp_path / "store", str(table))
    assert found == set(options.split(","))
    assert bool(found & locking.LOCAL_ONLY) is not shared


def test_mounts_of_any_name_are_read(tmp_path):
    table, place = tmp_path / "mounts", tmp_path / "caf\u00e9 1"
    row = f"server:/x {place} nfs rw,nolock 0 0\n".replace("\u00e9 1", "\u00e9\\0401")
    table.write_bytes(b"usb /mnt/caf\xe9 vfat rw 0 0\n" + row.encode())
    assert locking._options(place / "store", str(table)) == {"rw", "nolock"}


def test_this_disk_has_locks(tmp_path):
    assert locking.works(tmp_path)
