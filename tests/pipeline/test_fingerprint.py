"""What outside files are known by: their contents, which are read once."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import fingerprint as module
from pipeline import plan, remembered
from pipeline.artifact import Manifest
from pipeline.errors import UsageError
from pipeline.fingerprint import fingerprint
from pipeline.graph import Graph, Node
from tests.toy import stages


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_unsaved", {})
    yield tmp_path / "cache" / "diffusion-bench" / remembered.FILE
    fingerprint.cache_clear()


@pytest.fixture
def reads(monkeypatch):
    """The paths of files that are read; those of this moment count as settled."""
    found, plain = [], os.open

    def opened(path, *rest, **more):
        found.append(str(path))
        return plain(path, *rest, **more)

    monkeypatch.setattr(module, "SETTLED_NS", 0)
    monkeypatch.setattr(module.os, "open", opened)
    return found


def fresh(path):
    """As another command finds it."""
    fingerprint.cache_clear()
    remembered.save()
    remembered._unsaved.clear()
    return fingerprint(path)


def pictures(folder: Path, fill: int = 0) -> Path:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() + bytes([fill]))
    return folder


# --- what counts --------------------------------------------------------------------------------


def test_other_bytes_of_the_same_size_and_times_are_seen(tmp_path):
    """Also at once, where a time of change has no time to be another: trouble 12."""
    for fill in range(1, 20):
        folder = pictures(tmp_path / "data", fill=0)
        file = folder / "a" / "0.png"
        status, first = file.stat(), fresh(folder)
        file.write_bytes(b"a/0.png" + bytes([fill]))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert file.stat().st_size == status.st_size
        assert fresh(folder) != first


def test_a_rewritten_file_is_seen_though_all_its_marks_are_the_same(tmp_path, monkeypatch):
    """The clock of a file system may stand still for milliseconds: young files are not trusted."""
    file = tmp_path / "x.npz"
    file.write_bytes(b"one")
    status = file.stat()
    monkeypatch.setattr(module, "_state", lambda of: b"12345678" + b"the same")
    first = fresh(file)
    file.write_bytes(b"two")
    assert fresh(file) != first
    monkeypatch.setattr(module.time, "time_ns", lambda: status.st_mtime_ns + 10 * 10**9)
    second = fresh(file)
    file.write_bytes(b"six")
    assert fresh(file) == second  # only because the test hides the marks, ten seconds later


def test_names_places_and_dates_change_nothing(tmp_path):
    """Trouble 33: moved, renamed, copied without times, touched."""
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    (tmp_path / "deep").mkdir()
    folder.rename(tmp_path / "deep" / "renamed.1")
    assert fresh(tmp_path / "copy") == fresh(tmp_path / "deep" / "renamed.1") == first


def test_hidden_and_foreign_files_change_nothing(tmp_path):
    """Trouble 15 and 30, as the readers have it."""
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    for name in (
        *(".DS_Store", "Thumbs.db", "desktop.ini", "a/._0.png", "a/.hidden", "lock.mdb"),
        *("__pycache__/x.pyc", "lost+found/1", "System Volume Information/x"),
        *("a/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/0.png", ".git/config"),
        *("a/Icon\r", "a/@eaDir/0.png"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    assert fresh(folder) == first
    (folder / ".hidden-root").mkdir()
    shutil.copytree(folder / "a", folder / ".hidden-root" / "a")
    assert fresh(folder / ".hidden-root" / "a") == fresh(folder / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a" / "2.png").write_bytes(b"more"),
        lambda folder: (folder / "a" / "1.png").unlink(),
        lambda folder: (folder / "a" / "1.png").rename(folder / "b" / "1.png"),
        lambda folder: (folder / "a").rename(folder / "c"),
        lambda folder: (folder / "labels.csv").write_text("0"),
    ],
)
def test_what_lies_in_a_folder_and_its_names_there_count(tmp_path, change):
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    change(folder)
    assert fresh(folder) != first


def test_names_and_bytes_cannot_be_taken_for_each_other(tmp_path):
    found = set()
    for i, files in enumerate(({"a": b"", "b": b""}, {"a": b"b"}, {"ab": b""}, {"a": b""}, {})):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        found.add(fresh(folder))
    assert len(found) == 5


def test_files_behind_links_are_seen_and_links_that_go_round_end(tmp_path):
    data, disk = tmp_path / "data", tmp_path / "disk"
    data.mkdir()
    disk.mkdir()
    (disk / "a.png").write_bytes(b"a")
    (data / "class").symlink_to(disk)
    (data / "again").symlink_to(disk)
    (disk / "up").symlink_to(data)
    (data / "self").symlink_to(data / "self")
    (data / "nothing.png").symlink_to(tmp_path / "gone.png")
    first = fresh(data)
    assert fresh(data) == first
    (disk / "a.png").write_bytes(b"b")
    second = fresh(data)
    (tmp_path / "gone.png").write_bytes(b"back")
    assert len({first, second, fresh(data)}) == 3


# --- what is refused ----------------------------------------------------------------------------


def _socket(path: Path) -> None:
    held = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        held.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "named pipe"), (_socket, "socket")])
def test_pipes_and_sockets_are_refused_at_once(tmp_path, make, kind):
    folder = pictures(tmp_path / "data")
    make(folder / "odd.png")
    began = time.monotonic()
    for place in (folder, folder / "odd.png"):
        with pytest.raises(UsageError, match=rf"odd\.png is a {kind}, not a file; move it else"):
            fresh(place)
    (folder / "odd.png").rename(folder / ".odd.png")
    fresh(folder)
    assert time.monotonic() - began < 1


def test_devices_are_refused_and_absent_files_named(tmp_path):
    with pytest.raises(UsageError, match=r"/dev/zero is a device, not a file"):
        fresh(Path("/dev/zero"))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("no.npz", "link"):
        with pytest.raises(UsageError, match=f"{name} does not exist; set the path"):
            fresh(tmp_path / name)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, monkeypatch):
    def refused(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    folder = pictures(tmp_path / "data")
    monkeypatch.setattr(module.os, "open", refused)
    with pytest.raises(UsageError, match=r"a/0\.png cannot be read: Permission denied"):
        fresh(folder)


# --- what is read again -------------------------------------------------------------------------


def test_files_are_read_once_across_commands_and_names(tmp_path, reads):
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    assert len(reads) == 3
    folder.rename(tmp_path / "renamed")
    assert fresh(tmp_path / "renamed") == first
    assert len(reads) == 3
    assert fresh(tmp_path / "renamed" / "a") != first
    (tmp_path / "renamed" / "a" / "2.png").write_bytes(b"new")
    (tmp_path / "renamed" / "b" / "0.png").write_bytes(b"b/0.png\1")
    assert fresh(tmp_path / "renamed") != first
    assert sorted(Path(path).name for path in reads[3:]) == ["0.png", "2.png"]


def test_young_files_are_read_again(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(module, "SETTLED_NS", 2 * 10**9)
    folder = pictures(tmp_path / "data")
    assert fresh(folder) == fresh(folder)
    assert len(reads) == 6
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now + 3 * 10**9)
    assert fresh(folder) == fresh(folder)
    assert len(reads) == 9


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, reads, monkeypatch):
    file = tmp_path / "x.npz"
    file.write_bytes(b"one")
    plain, states = module._state, iter([b"12345678before", b"12345678after"])
    monkeypatch.setattr(module, "_state", lambda status: next(states, None) or plain(status))
    fresh(file)
    fresh(file)
    assert len(reads) == 2


def test_another_process_knows_what_one_has_read(tmp_path, cache):
    folder = pictures(tmp_path / "data")
    past = time.time_ns() + 5 * 10**9
    code = (
        "import sys, time; from pathlib import Path; from pipeline import fingerprint as f\n"
        f"time.time_ns = lambda: {past}\n"
        "read = []; plain = f._read\n"
        "f._read = lambda files, stop: read.extend(files) or plain(files, stop)\n"
        "print(f.fingerprint(Path(sys.argv[1])), len(read))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    said = [subprocess.check_output(command, text=True).split() for _ in range(2)]
    assert [number for _, number in said] == ["3", "0"]
    assert {digest for digest, _ in said} == {fresh(folder)}


def test_commands_at_the_same_time_lose_nothing(tmp_path, cache):
    code = (
        "import sys; from pipeline import remembered as r\n"
        "for i in range(50):\n"
        "    r.keep({f'{sys.argv[1]}-{i}': ('state', 'found')}); r.save()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [one.wait(60) for one in running] == [0] * 4
    subjects = [f"{n}-{i}" for n in range(4) for i in range(50)]
    assert remembered.recall(subjects).keys() == set(subjects)


def test_the_oldest_findings_go(monkeypatch, cache):
    monkeypatch.setattr(remembered, "NEWEST", 10)
    for i in range(25):
        remembered.keep({f"{i}": ("state", "found")})
        remembered.save()
    known = remembered.recall([f"{i}" for i in range(25)])
    assert known.keys() == {f"{i}" for i in range(15, 25)}
    remembered.keep({"20": ("other", "found")})
    remembered.save()
    assert remembered.recall(["20"]) == {"20": ("other", "found")}


def test_a_cache_that_cannot_be_used_only_costs_time(tmp_path, monkeypatch, cache, reads):
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made there
    before = len(reads)
    assert fresh(folder) == first
    fingerprint.cache_clear()
    remembered._unsaved.clear()
    assert fingerprint(folder) == first
    assert len(reads) == before + 6


def test_a_damaged_cache_is_begun_anew(tmp_path, monkeypatch, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"no database" * 1000)
    folder = pictures(tmp_path / "data")
    first = fresh(folder)
    assert not cache.exists()
    monkeypatch.setattr(remembered, "_unusable", set())
    assert fresh(folder) == first
    remembered.keep({"x": ("state", "found")})
    remembered.save()
    rows = sqlite3.connect(cache).execute("SELECT subject FROM findings").fetchall()
    assert ("x",) in rows


def test_a_long_reading_is_said_in_a_line_and_a_short_one_is_not(tmp_path, monkeypatch, capsys):
    folder, plain = pictures(tmp_path / "data"), module._read
    fresh(folder)
    assert capsys.readouterr() == ("", "")

    def slow(files, stop):
        time.sleep(0.3)
        return plain(files, stop)

    monkeypatch.setattr(module, "_read", slow)
    monkeypatch.setattr(module, "SAID_SECONDS", 0.1)
    fresh(folder)
    said = capsys.readouterr()
    assert said == ("", f"reading 0.024 kB of {folder} once, to know it again\n")
    sizes = [150 * 10**9, 2_500_000, 999, 1_280_000_000_000]
    assert [module._in_words(n) for n in sizes] == ["150 GB", "2.5 MB", "0.999 kB", "1.28e+03 GB"]


def test_a_reading_that_is_stopped_goes_on(tmp_path, reads, monkeypatch):
    folder, plain = pictures(tmp_path / "data"), module._read
    monkeypatch.setattr(module, "TASK_FILES", 1)

    def stopped(files, stop):
        if files[0].name == "b/0.png":
            raise KeyboardInterrupt
        return plain(files, stop)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", stopped)
        with pytest.raises(KeyboardInterrupt):
            fresh(folder)
    del reads[:]
    fresh(folder)
    assert [Path(path).parent.name for path in reads] == ["b"]


# --- keys ---------------------------------------------------------------------------------------


def identity(*paths):
    fingerprint.cache_clear()
    reader = replace(stages.NUMBER, files=lambda settings: paths)
    return Graph([Node("x", reader, stages.NumberSettings())]).identities["x"]


def test_the_name_of_one_file_or_folder_is_not_in_the_key_and_its_suffix_is(tmp_path):
    for name in ("a.npz", "b.NPZ", "a.npy"):
        (tmp_path / name).write_bytes(b"same")
    keys = [identity(tmp_path / name).key for name in ("a.npz", "b.NPZ", "a.npy")]
    assert keys[0] == keys[1] != keys[2]
    one, two = pictures(tmp_path / "lr-0.001"), pictures(tmp_path / "lr-0.002")
    assert identity(one).key == identity(two).key
    assert list(identity(one).files) == ["lr-0.001"]  # what manifests say it was called


def test_of_several_files_the_names_are_in_the_key(tmp_path):
    for name in ("step-1", "step-2", "step-3"):
        (tmp_path / name).write_bytes(name[-1:].encode())
    (tmp_path / "step-4").write_bytes(b"2")
    first = identity(tmp_path / "step-1", tmp_path / "step-2")
    assert first.key != identity(tmp_path / "step-1", tmp_path / "step-4").key
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "step-1").write_bytes(b"another")
    both = identity(tmp_path / "step-1", tmp_path / "other" / "step-1")
    assert list(both.files) == ["step-1", "step-1/2"]
    assert len(set(both.files.values())) == 2


def test_why_a_node_runs_is_said_of_what_changed_alone(tmp_path, monkeypatch):
    def why(path):
        return plan._changes(manifest, identity(path), ())

    folder, renamed = pictures(tmp_path / "data"), tmp_path / "renamed"
    old = identity(folder)
    made = (old.stage, "", 1, old.settings, {}, dict(old.sources), 1, {})
    manifest = Manifest("", *made, external=dict(old.files))
    folder.rename(renamed)
    assert why(renamed) == "not finished before"
    (renamed / "a" / "0.png").write_bytes(b"other")
    for name in ("2", "3"):
        (renamed / "b" / f"{name}.png").write_bytes(b"more")
    assert why(renamed) == "files of renamed changed: 2 added, 1 changed"
    (renamed / "b" / "0.png").unlink()
    assert why(renamed) == "files of renamed changed: 2 added, 1 removed, 1 changed"
    monkeypatch.setattr(module, "LISTED", 2)
    (renamed / "b" / "4.png").write_bytes(b"more")
    assert why(renamed) == "renamed changed on disk"
    (tmp_path / "x.npz").write_bytes(b"x")
    assert why(tmp_path / "x.npz") == "x.npz changed on disk"
    several = replace(manifest, external={"x.npz": identity(tmp_path / "x.npz").files["x.npz"]})
    several.external["y.npz"] = "gone"
    assert plan._changes(several, identity(tmp_path / "x.npz"), ()) == "y.npz is gone"
