"""Artifacts are whole or absent, checked on read, and written once."""

import json
import pickle
import shutil

import pytest

from pipeline.artifact import MANIFEST, SCHEMA, Manifest, _checksum
from pipeline.errors import DamagedArtifactError, EarlierArtifactError, UsageError
from pipeline.store import Store
from tests.toy.stages import Number

KEY = "0" * 32


def manifest(files, key=KEY):
    return Manifest(
        key=key,
        stage="number",
        type=Number.type_name(),
        version=1,
        settings={},
        inputs={},
        sources={},
        threads=1,
        files=files,
    )


def record(run_id, **changes):
    return {
        "id": run_id,
        "recipe": "chain",
        "preset": "plain",
        "overrides": [],
        "command": "python -m pipeline run chain",
        "created": "2026",
        "state": "running",
        "settings": {},
        "git": {},
        "nodes": {},
    } | changes


def put(store, value=3, key=KEY):
    folder = store.scratch(key)
    (folder / "number.json").write_text(json.dumps(value))
    return store.commit(folder, lambda files: manifest(files, key))


def rewrite(file, **changes):
    """Change fields of a manifest as somebody would who knows how checksums are made."""
    fields = Manifest.parse(file.read_bytes()).__dict__ | changes
    file.write_text(json.dumps(fields | {"checksum": _checksum(fields)}))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_what_is_put_can_be_opened(store):
    written = put(store)
    artifact = store.open("number", KEY)
    assert artifact.load() == 3
    assert artifact.manifest == written
    assert type(artifact).__name__ == "Number"
    assert list(store.artifacts()) == [("number", KEY)]
    assert not list((store.local / "tmp").iterdir())


def test_the_first_of_two_writers_wins(store):
    put(store, 3)
    put(store, 3)
    assert store.open("number", KEY).load() == 3
    assert [p.name for p in (store.local / "artifacts/number").iterdir()] == [KEY]


def test_what_a_removal_left_without_manifest_is_no_obstacle(store):
    put(store, 3)
    (store.local / "artifacts/number" / KEY / MANIFEST).unlink()
    put(store, 4)
    assert store.open("number", KEY).load() == 4
    (aside,) = store.location.children("quarantine")
    assert (store.local / "quarantine" / aside / "number.json").read_text() == "3"


def test_a_removal_that_is_cut_off_leaves_nothing_under_the_name(store, monkeypatch):
    def cut_off(path, **options):
        raise KeyboardInterrupt

    put(store)
    with monkeypatch.context() as cut:
        cut.setattr("pipeline.locations.shutil.rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            store.location.remove(f"artifacts/number/{KEY}")
    assert list(store.artifacts()) == []
    assert put(store).key == KEY


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_found_on_read_and_set_aside(store, damage):
    put(store, 12345)
    folder = store.local / "artifacts/number" / KEY
    file = folder / "number.json"
    if damage == "flip":
        file.write_text("12346")
    elif damage == "truncate":
        file.write_text("1")
    elif damage == "remove":
        file.unlink()
    else:
        (folder / MANIFEST).write_text("{")
    with pytest.raises(DamagedArtifactError, match=f"number/{KEY}"):
        store.open("number", KEY)
    place = store.set_aside("number", KEY)
    assert (store.local / place).is_dir()
    assert store.manifest("number", KEY) is None


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("schema", SCHEMA - 1, "was made by an earlier version"),
        ("schema", SCHEMA + 1, "was made by a later version"),
        ("type", "stages.gone:Number", "is of a kind that this version does not have"),
        ("type", "tests.toy.stages:Gone", "is of a kind that this version does not have"),
    ],
)
def test_an_artifact_of_another_version_is_one_sentence(store, field, value, words):
    file = store.local / "artifacts/number" / put(store).key / MANIFEST
    rewrite(file, **{field: value})
    with pytest.raises(EarlierArtifactError, match=f"number/{KEY} {words}.*run its recipe ag"):
        store.open("number", KEY)


def test_payload_digest_ignores_times_and_host(store):
    first = put(store)
    data = first.__dict__ | {"seconds": 9.0, "host": {"name": "elsewhere"}}
    assert Manifest(**data).payload == first.payload


def test_half_written_work_is_invisible(store):
    folder = store.scratch(KEY)
    (folder / "number.json").write_text("3")
    assert store.manifest("number", KEY) is None
    assert list(store.artifacts()) == []


def test_a_lock_is_held_by_one(store):
    with store.lock("x") as first, store.lock("x") as second, store.lock("y") as other:
        assert (first, second, other) == (True, False, True)
    with store.lock("x") as again:
        assert again


def test_work_area_survives_until_dropped(store):
    assert not store.has_work("number", KEY)
    (store.work("number", KEY).path / "state").write_text("1")
    assert store.has_work("number", KEY)
    assert (store.work("number", KEY).path / "state").read_text() == "1"
    store.drop_work("number", KEY)
    assert not store.has_work("number", KEY)


def test_a_store_can_be_moved(store, tmp_path):
    put(store)
    moved = tmp_path / "elsewhere"
    store.local.rename(moved)
    assert Store(moved).open("number", KEY).load() == 3


def test_an_object_store_works_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote = Store("memory://bucket/prefix")
    remote.check_writable()
    put(remote, 7)
    assert remote.open("number", KEY).load() == 7
    assert list(remote.artifacts()) == [("number", KEY)]
    # Our copy is damaged, the stored one is not: it is fetched again.
    (remote.local / "artifacts/number" / KEY / "number.json").write_text("8")
    assert remote.open("number", KEY).load() == 7
    # Sent to a machine that lacks our copy, an artifact comes from the store.
    sent = pickle.dumps(remote.open("number", KEY))
    shutil.rmtree(remote.local / "artifacts")
    assert pickle.loads(sent).load() == 7
    area = remote.work("number", KEY)
    (area.path / "state").write_text("5")
    area.push()
    (area.path / "state").unlink()
    assert (remote.work("number", KEY).path / "state").read_text() == "5"
    remote.drop_work("number", KEY)
    assert not remote.has_work("number", KEY)
    remote.write_run("r1", record("r1"))
    assert [run["id"] for run in remote.runs()] == ["r1"]
    remote.set_aside("number", KEY)
    assert remote.manifest("number", KEY) is None


def test_an_unwritable_store_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"not writable.*--store"):
        Store(file / "store").check_writable()
    with pytest.raises(UsageError, match="nosuch"):
        Store("nosuch://bucket")


@pytest.mark.parametrize(
    ("typed", "meant"), [("s3:/bucket/x", "s3://bucket/x"), ("file:/tmp/x", "file:///tmp/x")]
)
def test_a_uri_with_one_slash_is_no_folder(typed, meant):
    with pytest.raises(UsageError, match=f"write {meant}, or ./{typed} for"):
        Store(typed)


def test_an_empty_cache_setting_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert Store("memory://bucket/x").local.parent == tmp_path / ".cache" / "diffusion-bench"
