"""What of an object store comes to a machine: once, in parts where these will do, in a bound."""

import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import blocks, cache, checks, doctor
from pipeline.artifact import Artifact, Manifest
from pipeline.errors import DamagedArtifactError, StoreFullError, UsageError
from pipeline.parts import rows
from pipeline.payload import Payload
from pipeline.store import Store
from pipeline.workarea import visiting
from stages.artifacts.storage import Latents
from tests import s3
from tests.pipeline.test_store import KEY

pytestmark = pytest.mark.xdist_group("s3")
MIB = 2**20
LARGE = int(os.environ.get("TEST_LARGE_MIB", "20")) * MIB


@pytest.fixture(scope="module")
def server():
    with s3.server() as running:
        yield running


@pytest.fixture
def machine(server, tmp_path, monkeypatch):
    """A machine of that name, which opens one and the same store."""
    monkeypatch.setattr(checks, "SETTLED_SECONDS", 0.0)
    uri = server.uri()

    def at(name):
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / name))
        return Store(uri)

    return at


def put(store, files, key=KEY):
    """An artifact of files with these bytes."""
    folder = store.scratch(key)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    plain = {"settings": {}, "inputs": {}, "sources": {}, "threads": 1, "version": 1}
    kind = Artifact.type_name()
    return store.commit(
        folder, lambda files: Manifest(key=key, stage="blob", type=kind, files=files, **plain)
    )


def cached(store):
    return sorted(p.name for p in (store.local / "artifacts").rglob("*") if p.is_file())


def read(arguments):
    begin, uri, folder = arguments
    os.environ["PIPELINE_CACHE"] = folder
    store = Store(uri)
    store.manifest("blob", KEY)
    while time.time() < begin:
        time.sleep(0.001)
    file = store.open("blob", KEY).path / "large.bin"
    return int(np.memmap(file, np.uint8, "r")[-1]), os.stat(file).st_ino


def test_eight_that_open_a_large_artifact_at_once_download_it_once(server, machine, tmp_path):
    size = LARGE
    put(machine("maker"), {"large.bin": bytes(size - 1) + b"\7", "small.json": b"{}"})
    store = machine("reader")
    server.way.pause, server.way.passed = 0.001, 0
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    with processes.Pool(8) as pool:
        task = (time.time() + 2.0, store.uri, str(tmp_path / "reader"))
        found = pool.map(read, [task] * 8, chunksize=1)
        assert {last for last, _ in found} == {7}
        assert len({inode for _, inode in found}) == 1
        assert size <= server.way.passed < 1.05 * size, "one download"
        assert cached(store) == ["large.bin"], "what nobody reads does not come, no part is left"
        server.way.passed = 0
        assert pool.map(read, [task] * 8, chunksize=1) == found
    assert server.way.passed < 200_000, "the second reads no payload"
    server.way.pause = 0.0


def test_what_was_made_here_is_not_fetched(server, machine):
    store = machine("maker")
    put(store, {"large.bin": bytes(2 * MIB)})
    server.way.passed = 0
    assert (store.open("blob", KEY).path / "large.bin").stat().st_size == 2 * MIB
    assert server.way.passed < 50_000


def test_a_kill_while_a_file_comes_leaves_nothing_that_is_taken_for_whole(
    server, machine, tmp_path
):
    data = os.urandom(8 * MIB)
    put(machine("maker"), {"large.bin": data})
    store = machine("reader")
    server.way.pause = 0.02
    process = multiprocessing.get_context("fork").Process(
        target=read, args=((0, store.uri, str(tmp_path / "reader")),)
    )
    process.start()
    place = store.local / f"artifacts/blob/{KEY}"
    while not any(p.stat().st_size > MIB for p in place.glob(".*.part")):
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.way.pause = 0.0
    assert [p.name for p in place.iterdir()] == [".large.bin.part"]
    assert store.leftovers() == [f"artifacts/blob/{KEY}/.large.bin.part"]
    assert (store.open("blob", KEY).path / "large.bin").read_bytes() == data
    assert [p.name for p in place.iterdir()] == ["large.bin"]


def test_every_byte_is_hashed_once_and_again_where_a_file_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "SETTLED_SECONDS", 0.0)
    hashed = []
    real = checks.sha256
    monkeypatch.setattr(checks, "sha256", lambda file: hashed.append(file.name) or real(file))
    store = Store(tmp_path / "store")
    put(store, {"large.bin": bytes(2 * MIB), "small.bin": b"1"})
    store.open("blob", KEY)
    assert "large.bin" not in hashed, "it was as it was written"
    (store.local / f"artifacts/blob/{KEY}/large.bin").touch()
    for _ in range(3):
        store.open("blob", KEY)
    assert hashed.count("large.bin") == 1
    file = store.local / f"artifacts/blob/{KEY}/large.bin"
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"\1")
    with pytest.raises(DamagedArtifactError, match=f"artifacts/blob/{KEY}: large.bin does not"):
        store.open("blob", KEY)
    # Damage that a disk does changes no time: asked for, it is found, and known from then on.
    with file.open("r+b") as stream:
        stream.write(b"\0")
    store.open("blob", KEY)
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.open("blob", KEY)
    (good, text), *_ = list(doctor._verified(store))
    assert not good
    assert f"blob/{KEY}: large.bin does not match its SHA-256" in text
    with pytest.raises(DamagedArtifactError):
        store.open("blob", KEY)
    assert store.set_aside_damaged("blob", KEY)
    assert list(store.artifacts()) == []


def test_damage_in_an_object_store_is_found_by_who_reads_and_set_aside(server, machine):
    store = machine("maker")
    put(store, {"a.bin": bytes(2 * MIB), "b.bin": b"1"})
    store.verify("blob", KEY)
    store.location.write(f"artifacts/blob/{KEY}/a.bin", b"\1" + bytes(2 * MIB - 1))
    (store.open("blob", KEY).path / "a.bin").read_bytes()  # a copy that is whole stands for it
    other = machine("other")
    payload = other.open("blob", KEY).path
    assert (payload / "b.bin").read_bytes() == b"1"
    with pytest.raises(DamagedArtifactError, match=r"a.bin does not match") as error:
        payload / "a.bin"
    assert error.value.where == ("blob", KEY)
    assert cached(other) == ["b.bin"]
    assert pickle.loads(pickle.dumps(error.value)).where == ("blob", KEY)
    with pytest.raises(DamagedArtifactError, match=r"a.bin does not match"):
        other.verify("blob", KEY)
    assert other.set_aside_damaged("blob", KEY).startswith("quarantine/blob-")
    assert other.manifest("blob", KEY) is None


def test_a_damaged_copy_is_fetched_again(machine, capsys):
    store = machine("maker")
    put(store, {"a.bin": bytes(2 * MIB)})
    copy = store.local / f"artifacts/blob/{KEY}/a.bin"
    copy.write_bytes(b"\1" * 2 * MIB)
    assert (store.open("blob", KEY).path / "a.bin").read_bytes() == bytes(2 * MIB)
    status = copy.stat()
    with copy.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.verify("blob", KEY)
    assert "was damaged and is removed" in capsys.readouterr().out
    assert not copy.exists()


def test_few_rows_come_without_the_rest(server, machine, tmp_path):
    values = np.arange(4 * MIB, dtype=np.float64).reshape(-1, 1024)
    np.save(tmp_path / "x.npy", values)
    store = machine("maker")
    put(store, {"x.npy": (tmp_path / "x.npy").read_bytes()})
    store = machine("reader")
    sent = pickle.dumps(store.open("blob", KEY))
    payload = pickle.loads(sent).path
    assert isinstance(payload, Payload)
    assert payload == store.open("blob", KEY).path
    server.way.passed = 0
    assert np.array_equal(rows(payload, "x.npy", slice(7, 9)), values[7:9])
    assert rows(payload, "x.npy", slice(0)).shape == (0, 1024)
    assert server.way.passed < 0.01 * values.nbytes
    assert cached(store) == []
    # Who goes on asking for parts gets the file.
    for start in range(0, 4096, 64):
        assert np.array_equal(rows(payload, "x.npy", slice(start, start + 64)), values[start:][:64])
    assert cached(store) == ["x.npy"]
    assert server.way.passed < 1.1 * values.nbytes
    whole = rows(payload, "x.npy")
    assert isinstance(whole, np.memmap)


def test_damage_in_what_is_read_in_parts_is_noticed(machine, tmp_path):
    values = np.arange(2 * MIB, dtype=np.float64).reshape(-1, 1024)
    np.save(tmp_path / "x.npy", values)
    data = bytearray((tmp_path / "x.npy").read_bytes())
    store = machine("maker")
    found = put(store, {"x.npy": bytes(data), "s.npy": b""}).files
    assert "blocks" not in found["s.npy"]
    sums, step = found["x.npy"]["blocks"]["crc32"], found["x.npy"]["blocks"]["bytes"]
    assert len(sums) == 8 * (len(data) // step + 1)
    data[-1000] ^= 1  # in the last row, and the last, short block
    store.location.write(f"artifacts/blob/{KEY}/x.npy", bytes(data))
    payload = machine("reader").open("blob", KEY).path
    assert np.array_equal(rows(payload, "x.npy", slice(7, 9)), values[7:9])
    with pytest.raises(DamagedArtifactError, match=r"x.npy does not match its checksums") as error:
        rows(payload, "x.npy", slice(2046, 2048))
    assert error.value.where == ("blob", KEY)
    store.location.write(f"artifacts/blob/{KEY}/x.npy", bytes(data[:-8]))
    with pytest.raises(DamagedArtifactError, match=f"x.npy ends before byte {len(data)}"):
        rows(payload, "x.npy", slice(2046, 2048))


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1, 2**23, 2**25 + 7])
def test_blocks_cover_a_file_and_notice_every_flipped_byte(tmp_path, size):
    file, data = tmp_path / "x", random.Random(size).randbytes(size)
    file.write_bytes(data)
    found = blocks.described(file)
    assert (found["size"], found["sha256"]) == (size, hashlib.sha256(data).hexdigest())
    for place in (0, size // 3, size - 1):
        begin, end = blocks.bounds(found, place, 1)
        assert begin <= place < end <= size
        part = bytearray(data[begin:end])
        assert blocks.is_whole(found, begin, bytes(part))
        part[place - begin] ^= 4
        assert not blocks.is_whole(found, begin, bytes(part))
    assert blocks.is_whole(found, 0, data)
    assert blocks.bounds({"size": size}, 3, 5) == (3, 8)
    assert blocks.is_whole({"size": size}, 3, b"any")


def test_the_cache_keeps_within_its_bound_what_is_held(machine, monkeypatch):
    maker = machine("maker")
    keys = [f"{i:032d}" for i in range(4)]
    for key in keys:
        put(maker, {"a.bin": os.urandom(MIB)}, key)
    store = machine("reader")
    monkeypatch.setenv("PIPELINE_CACHE_GIB", str(2.5 / 1024))

    def files():
        return sorted(p.parent.name for p in store.local.glob("artifacts/*/*/a.bin"))

    held = store.open("blob", keys[0]).path
    held / "a.bin"
    for key in keys[1:]:
        path = store.open("blob", key).path / "a.bin"
        assert path.stat().st_size == MIB
    assert files() == [keys[0], keys[3]], "the first is held, the others were used longer ago"
    del held
    path = store.open("blob", keys[1]).path / "a.bin"
    assert files() == [keys[1], keys[3]]
    # What all is held is above the bound, and works.
    said, held = [], []
    store.location.say = said.append
    for key in keys:
        held.append(store.open("blob", key).path)
        assert (held[-1] / "a.bin").stat().st_size == MIB
    assert "above its bound of 0.00244 GiB (--cache-gib)" in said[0]
    monkeypatch.setattr(cache, "free_bytes", lambda: 1000)
    with pytest.raises(StoreFullError, match=r"has no room for artifacts/blob/0.*--cache"):
        machine("third").open("blob", keys[0]).path / "a.bin"


def test_what_was_just_made_goes_last_and_not_while_it_is_kept(machine, monkeypatch):
    store = machine("maker")
    monkeypatch.setenv("PIPELINE_CACHE_GIB", str(2.5 / 1024))
    keys = [f"{i:032d}" for i in (7, 3, 5, 1)]
    for key in keys[:3]:
        put(store, {"a.bin": os.urandom(MIB)}, key)
        time.sleep(0.01)
    entries = store.local.glob("artifacts/*/*/a.bin")
    assert {path.parent.name for path in entries} == set(keys[1:3])
    note, tried = checks.note, []

    def look(place, found):
        tried.append(cache._removed(place.parent))
        note(place, found)

    monkeypatch.setattr(checks, "note", look)
    put(store, {"a.bin": os.urandom(MIB)}, keys[3])
    assert tried == [False], "another command that makes room at this moment leaves it"
    assert cache._removed(store.local / f"artifacts/blob/{keys[3]}"), "and may have it then"


def test_nothing_goes_for_what_cannot_have_room(machine, monkeypatch):
    maker = machine("maker")
    small, held, large = (f"{i:032d}" for i in range(3))
    for key, size in ((small, MIB), (held, MIB), (large, 9 * MIB)):
        put(maker, {"a.bin": os.urandom(size)}, key)
    store = machine("reader")
    monkeypatch.setenv("PIPELINE_CACHE_GIB", str(8 / 1024))
    used = store.open("blob", held).path
    for path in (used, store.open("blob", small).path):
        path / "a.bin"
    del path
    looked, real = [], cache._looked
    monkeypatch.setattr(cache, "_looked", lambda *asked: looked.append(asked) or real(*asked))
    payload = store.open("blob", large).path
    for start in range(0, 9 * MIB, MIB):
        assert len(payload.part("a.bin", start, 1000)) == 1000
    assert len(looked) == 1, "a refusal is remembered"
    payload._refused["a.bin"] = 0.0
    payload.part("a.bin", 0, 1000)
    assert len(looked) == 2, "for a while"

    def kept():
        return sorted(p.parent.name for p in store.local.glob("artifacts/*/*/a.bin"))

    assert kept() == [small, held]
    monkeypatch.setattr(cache, "free_bytes", lambda: 7 * MIB)
    with pytest.raises(StoreFullError):
        payload / "a.bin"
    assert kept() == [small, held], "not even all of them are room enough on the disk"
    # What comes even so has the room that there is.
    monkeypatch.setattr(cache, "free_bytes", lambda: 9 * MIB if kept() == [held] else 8 * MIB)
    said = []
    store.location.say = said.append
    payload / "a.bin"
    assert "above its bound" in said[0]
    assert kept() == [held, large]


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "many"])
def test_a_bound_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv("PIPELINE_CACHE_GIB", said)
    with pytest.raises(UsageError, match="--cache-gib"):
        cache.bound()


def test_a_work_area_goes_from_machine_to_machine(server, machine):
    def state(area, step):
        (area.path / f"state-{step % 2}").write_text(str(step))
        (area.path / ".own").write_text("mine")

    def seen(area):
        return sorted(p.read_text() for p in area.path.glob("state-*"))

    one = machine("one").work("blob", KEY)
    state(one, 1)
    one.push()
    state(one, 2)
    one.push()
    machine("two")
    two = pickle.loads(pickle.dumps(one))
    assert seen(two) == ["1", "2"]
    state(two, 3)
    two.push()
    again = machine("one").work("blob", KEY)
    (again._folder / "state-0").write_text("4")  # by one that was killed before it was stored
    assert seen(again) == ["3", "4"], "what is stored elsewhere comes, what is newer here stays"
    assert not [n for n in again._location.versions(f"work/blob/{KEY}") if "own" in n]
    server.way.passed = 0
    again.pull()
    assert server.way.passed < 5_000, "nothing comes twice"
    again.tell("refused", "why")
    machine("two")
    assert pickle.loads(pickle.dumps(again)).told("refused") == "why"
    two.forget("refused")
    assert again.told("refused") is None
    path, filesystem = two.shared("ray")
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/x") as stream:
        stream.write(b"1")
    assert Store(one._location.uri).has_work("blob", KEY)
    Store(one._location.uri).drop_work("blob", KEY)
    assert one._location._found(f"work/blob/{KEY}") == []
    assert Path(path).parts[0] == s3.BUCKET


def doubled(item, folder, factor):
    """A shard, which takes what is there already."""
    file = folder / f"shard-{item}"
    if not file.exists():
        (folder / f".shard-{item}.partial").write_text("half")
        file.write_text(str(factor * item))
    return file.name, sorted(path.name for path in folder.glob("shard-*"))


def test_a_shard_elsewhere_leaves_what_it_made_in_the_store(machine):
    area = machine("node").work("blob", KEY)
    sent = pickle.dumps(area.visit())
    machine("other")
    assert visiting(doubled, 4, (pickle.loads(sent), 2)) == ("shard-4", ["shard-4"])
    assert visiting(doubled, 5, (pickle.loads(sent), 2)) == ("shard-5", ["shard-4", "shard-5"])
    machine("third")
    _, seen = visiting(doubled, 6, (pickle.loads(sent), 2))
    assert seen == ["shard-6"], "others' fresh shards are not brought to every machine"
    machine("node")
    area.pull()
    assert [(area.path / f"shard-{i}").read_text() for i in (4, 5, 6)] == ["8", "10", "12"]
    assert not list(area.path.glob("*.partial"))
    # Another attempt, with the node and its shards on yet other machines.
    again = machine("fourth").work("blob", KEY)
    sent = pickle.dumps(again.visit())
    machine("fifth")
    assert visiting(doubled, 5, (pickle.loads(sent), 0)) == (
        "shard-5",
        ["shard-4", "shard-5", "shard-6"],
    )


def test_on_a_disk_a_shard_works_in_the_area_itself(tmp_path):
    area = Store(tmp_path).work("blob", KEY)
    assert visiting(doubled, 4, (area.visit(), 2)) == ("shard-4", ["shard-4"])
    assert (area.path / "shard-4").read_text() == "8"


def test_a_row_in_a_store_costs_a_small_block_that_serves_its_neighbours(
    machine, tmp_path, monkeypatch
):
    size, count = 2**13, 2048  # 16 MiB
    values = np.random.RandomState(0).randint(0, 99, (count, 2, size // 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    data = (tmp_path / "x.npy").read_bytes()
    store = machine("maker")
    found = put(store, {"train-00000.npy": data})
    assert found.files["train-00000.npy"]["blocks"]["bytes"] == blocks.SMALLEST
    payload = machine("reader").open("blob", KEY).path
    asked, real = [], payload._asked
    monkeypatch.setattr(payload, "_asked", lambda *bytes: asked.append(bytes) or real(*bytes))
    stored = Latents(payload, "train", (count,), values.shape[1:], "float32")
    which = np.array([405, 401, 1201, 403, 401, 1203])
    np.testing.assert_array_equal(stored.take(which), values[which])
    assert len(asked) == 3, "its head, and one block for each of two places"
    np.testing.assert_array_equal(stored.take(which[3:]), values[which[3:]])
    assert len(asked) == 5, "its head is known"
    assert not payload.has("train-00000.npy")


def test_files_of_a_gigabyte_have_blocks_of_a_quarter_of_a_mebibyte(tmp_path):
    for size, step in ((2**28, 2**16), (2**30, 2**18), (2**40, 2**22)):
        assert blocks.step(size) == step
