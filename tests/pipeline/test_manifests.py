"""A store that others wrote to: what its manifests and records say is believed no further than
needed, and damage is named by every command."""

import json
import os
import random

import pytest

from pipeline import plan as planning
from pipeline import session
from pipeline.__main__ import main
from pipeline.artifact import Manifest, _checksum
from pipeline.errors import DamagedArtifactError, DamagedRecordError, printable
from pipeline.plan import Request
from pipeline.store import Store
from tests.inline import run_all
from tests.pipeline.test_store import record, rewrite
from tests.toy.table import CATALOG

COMMANDS = (
    "plan chain",
    "run chain --dry-run",
    "runs",
    "show",
    "report",
    "compare r1 r2",
    "doctor --verify",
    "gc --dry-run",
)


@pytest.fixture
def store(tmp_path):
    """A store in which `chain` was run."""
    made = Store(tmp_path / "store")
    run_all(CATALOG, made, Request("chain"))
    plan = planning.make(CATALOG, made, Request("chain"))
    nodes = {
        name: {
            "stage": item.node.stage.name,
            "key": item.key,
            "upstream": list(item.node.upstream),
            "tags": {},
            "state": "done",
            "seconds": 1.0,
            "error": "",
        }
        for name, item in plan.nodes.items()
    }
    settings = plan.resolved.settings.model_dump(mode="json")
    for run in ("r1", "r2"):
        made.write_run(run, record(run, state="finished", nodes=nodes, settings=settings))
    return made


def file_of(store, stage="total"):
    (file,) = (store.local / "artifacts" / stage).glob("*/manifest.json")
    return file


def said(store, words, capfd):
    code = main([*words.split(), "--store", store.uri], lambda: CATALOG)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return code, out + err


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize(
    "kind", ["torch.hub:_load_local", "os:system", "builtins:exec", "pathlib:Path", "hubconf:run"]
)
def test_no_command_makes_what_is_no_artifact(store, kind, words, capfd, monkeypatch):
    monkeypatch.chdir(store.local)
    (store.local / "hubconf.py").write_text("raise SystemExit('CODE FROM THE STORE RUNS')")
    monkeypatch.syspath_prepend(str(store.local))
    ran = []
    monkeypatch.setattr(os, "system", lambda *arguments: ran.append(arguments))
    rewrite(file_of(store), type=kind)
    _, text = said(store, words, capfd)
    assert "CODE FROM" not in text
    assert not ran
    if words in ("plan chain", "doctor --verify"):
        assert "of a kind that this version does not have" in text or "another version" in text


DAMAGE = {
    "bytes": lambda data: random.Random(0).randbytes(2000),
    "empty": lambda data: b"",
    "list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "digits": lambda data: b'{"schema": ' + b"9" * 10_000 + b"}",
    "digit": lambda data: data.replace(b'"value": 10.0', b'"value": 11.0'),
    "type": lambda data: data.replace(b"stages:Number", b"stages:Numbfr"),
    "key": lambda data: data.replace(b'"metrics"', b'"mftrics"'),
}


def test_a_damaged_artifact_keeps_no_others_from_being_compared(store, capfd):
    file_of(store).write_bytes(b"")
    code, text = said(store, "compare r1 r2", capfd)
    assert code == 0, text
    assert "number/a" in text or "one and the same" in text


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("words", ["plan chain", "doctor --verify", "show", "report"])
def test_a_damaged_manifest_is_named_by_every_command(store, damage, words, capfd):
    file = file_of(store)
    before = file.read_bytes()
    file.write_bytes(DAMAGE[damage](before))
    assert file.read_bytes() != before
    code, text = said(store, words, capfd)
    assert code in (0, 1, 2)
    if words != "report":  # the toy has none
        assert "total/" in text
        assert "manifest cannot be read" in text


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_set_aside_and_made_anew(store, damage, capsys):
    file = file_of(store)
    before = Manifest.parse(file.read_bytes())
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    session.set_aside(planning.make(CATALOG, store, Request("chain")), store)
    assert "set aside as quarantine/total-" in capsys.readouterr().out
    assert run_all(CATALOG, store, Request("chain"))["total"].manifest.payload == before.payload


def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(store, capfd):
    file = file_of(store)
    file.unlink()
    os.mkfifo(file)
    assert "is no ordinary file" in said(store, "plan chain", capfd)[1]


def test_a_flipped_bit_is_always_damage(store):
    file, draws = file_of(store), random.Random(1)
    whole = file.read_bytes()
    parsed = Manifest.parse(whole)
    for _ in range(400):
        data = bytearray(whole)
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        file.write_bytes(data)
        try:
            found = store.manifest("total", parsed.key)
        except DamagedArtifactError:
            continue
        assert found == parsed, "only white space may differ"


BLOCKED = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../x": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"x": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"x": {"size": "1", "sha256": "0" * 64}}},
        {"files": {"x": {"size": 1}}},
        {"files": {"x": BLOCKED | {"blocks": {"bytes": 1, "crc32": "0" * 16}}}},
        {"files": {"x": BLOCKED | {"blocks": {"bytes": 0, "crc32": "0" * 8}}}},
        {"files": {"x": BLOCKED | {"blocks": {"bytes": 2, "crc32": "x" * 8}}}},
        {"files": {"x": 1}},
        {"files": ["x"]},
        {"metrics": {"value": "10"}},
        {"metrics": {"\x1b]0;title\x07": 1.0}},
        {"timings": {"t": [[1, 2, 3]]}},
        {"timings": {"t": [["a", 2]]}},
        {"stage": "../x"},
        {"key": ".."},
        {"seconds": None},
        {"version": True},
        {"more": 1},
    ],
)
def test_fields_of_a_wrong_kind_are_damage_whatever_the_checksum_says(store, changes):
    file = file_of(store)
    rewrite(file, **changes)
    with pytest.raises(DamagedArtifactError):
        store.open("total", file.parent.name)


def test_a_manifest_of_another_artifact_is_damage(store):
    file = file_of(store)
    file.write_bytes(file_of(store, "apply").read_bytes())
    with pytest.raises(DamagedArtifactError, match="is of another one"):
        store.open("total", file.parent.name)


def test_a_checksum_covers_all_fields(store):
    fields = dict(Manifest.parse(file_of(store).read_bytes()).__dict__)
    whole = _checksum(fields)
    for name in fields:
        assert _checksum({k: v for k, v in fields.items() if k != name}) != whole
        assert _checksum(fields | {name: "other"}) != whole


RECORDS = {
    "bytes": b"\xff\xfe",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "elsewhere": json.dumps(record("../../escaped")).encode(),
    "another": json.dumps(record("r2")).encode(),
    "nodes": json.dumps(record("r1", nodes={"a": {"stage": "../..", "key": "x"}})).encode(),
    "state": json.dumps(record("r1", state=7)).encode(),
    "nothing": json.dumps({"id": "r1"}).encode(),
}


@pytest.mark.parametrize("data", RECORDS)
@pytest.mark.parametrize("words", COMMANDS)
def test_a_damaged_record_is_named_and_harms_nothing(store, data, words, tmp_path, capfd):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    (store.local / "runs" / "r1" / "run.json").write_bytes(RECORDS[data])
    code, text = said(store, words, capfd)
    if words == "runs":
        assert "the record of run r1 cannot be read" in text
    if words.startswith("gc"):
        assert code == 2, "what it used is not known"
        assert "move runs/r1 out of the store" in text
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert before <= left
    assert not (tmp_path / "escaped").exists()
    with pytest.raises(DamagedRecordError):
        store.read_run("r1")


def test_a_torn_line_of_a_record_is_passed_over(store):
    store.write_run("r1", store.read_run("r1") | {"state": "running"})
    store.append_run("r1", {"total": {"state": "failed", "error": "x"}})
    with (store.local / "runs" / "r1" / "nodes.jsonl").open("ab") as stream:
        stream.write(b'{"total": {"sta')
    assert store.read_run("r1")["nodes"]["total"]["state"] == "failed"


def test_control_characters_are_shown_and_not_sent(store, capfd):
    data = store.read_run("r1")
    data["nodes"]["total"] |= {"state": "failed", "error": "\x1b[2Jboo\x07"}
    data["nodes"]["total"]["key"] = "0" * 32
    store.write_run("r1", data | {"command": "x \x1b]0;owned\x07"})
    text = said(store, "show r1", capfd)[1]
    assert "\x1b" not in text
    assert r"\x1b[2Jboo\x07" in text
    assert printable("a\tb\nc\r\u202e") == "a\tb\nc\\u202e"
    assert printable("\udcff\udc9b\x9b") == "\udcff\\udc9b\\x9b", (
        "0x9b begins what a terminal obeys"
    )
