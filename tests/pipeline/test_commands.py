"""The command line: exit codes, light imports, and words a person can use."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import plan as planning
from pipeline import session
from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.plan import Request
from pipeline.store import Store
from tests.inline import run_all
from tests.toy.table import CATALOG

HEAVY = ("torch", "numpy", "ray", "mlflow", "pyarrow", "matplotlib", "timm", "sklearn")
SPY = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=False)
except SystemExit as end:
    code = end.code or 0
print("HEAVY", [m for m in {heavy!r} if m in sys.modules], "CODE", code)
"""


def command(*arguments, store, module="tests.toy", check=None):
    """Run the command line in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--store", str(store)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if check is not None:
        assert process.returncode == check, process.stdout + process.stderr
    return process


def spied(*arguments, module):
    script = SPY.format(argv=["pipeline", *arguments], module=module, heavy=HEAVY)
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    return process.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["sweep", "--help"],
        ["plan", "chain"],
        ["config", "chain"],
        ["runs"],
    ],
)
def test_light_commands_import_nothing_heavy(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path))
    assert spied(*arguments, module="tests.toy") == "HEAVY [] CODE 0"


def test_plan_and_config_write_nothing(tmp_path):
    store = tmp_path / "store"
    command("plan", "chain", store=store, check=0)
    command("config", "chain", store=store, check=0)
    assert not store.exists()


def test_plan_as_json_and_mermaid(tmp_path):
    data = json.loads(command("plan", "chain", "--json", store=tmp_path, check=0).stdout)
    assert data["nodes"]["total"]["state"] == "to do"
    assert data["nodes"]["apply/a"]["inputs"] == ["number/a"]
    assert "flowchart" in command("plan", "chain", "--mermaid", store=tmp_path, check=0).stdout


def test_config_says_where_values_come_from(tmp_path):
    lines = command("config", "chain", "a.value=9", store=tmp_path, check=0).stdout.splitlines()
    origins = {line.split()[0]: line.partition("# ")[2] for line in lines}
    assert origins["a.value"] == "command line"
    assert origins["b.value"] == "preset plain"
    assert origins["total.offset"] == "default"
    schema = json.loads(command("config", "chain", "--schema", store=tmp_path, check=0).stdout)
    assert "a" in schema["properties"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "chian"], "did you mean 'chain'"),
        (["run", "chain", "--preset", "plian"], "did you mean 'plain'"),
        (["run", "chain", "a.valu=3"], "did you mean 'a.value'"),
        (["run", "chain", "--only", "totl"], "did you mean 'total'"),
        (["run", "chain", "resources.number.cpus=4000"], "asks for 4000 CPUs"),
        (["run", "chain", "--jobs", "0"], "--jobs 0"),
        (["run", "chain", "--tracking-uri", "nonsense"], "tracking URI"),
        (["run", "chain", "--tracking-uri", ""], "has no scheme"),
        (["ui", "--tracking-uri", "foo://x"], "unknown scheme 'foo'"),
        (["run", "chain", "--address", "foo"], "--address 'foo'"),
        (["run", "chain", "--frobnicate"], "--frobnicate"),
        (["run"], "name a recipe, such as: python -m pipeline run chain (known: chain, "),
        (["sweep"], "name a sweep, such as: python -m pipeline sweep csflow (known: csflow, "),
        (["show", "nothing"], "unknown run 'nothing'"),
        (["logs", "nothing", "total"], "unknown run 'nothing'"),
        (["gc", "--keep", "-1"], "--keep -1"),
    ],
)
def test_bad_usage_ends_with_2_before_any_work(arguments, words, tmp_path):
    process = command(*arguments, store=tmp_path / "store", check=2)
    assert words in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "store" / "artifacts").exists()
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("auto", True),
        ("10.0.0.1:6379", True),
        ("ray://head.example.org:10001", True),
        ("[::1]:6379", True),
        ("head", False),
        ("head:", False),
        ("http://head:8265", False),
        ("head:6379 ", False),
    ],
)
def test_addresses_that_ray_cannot_read_are_refused(address, good):
    if good:
        session.check_address(address)
    else:
        with pytest.raises(UsageError, match="give HOST:PORT"):
            session.check_address(address)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "the store has an empty name"),
        ("FILE", "FILE is no folder that can be read (Not a directory)"),
        ("ftp://nowhere/x", "ftp://nowhere/x has the unknown scheme 'ftp'"),
        ("s4://bucket", "did you mean 's3'"),
        ("memory://away", "memory://away cannot be read (gaierror: name not known)"),
    ],
)
@pytest.mark.parametrize("words_of", ["runs", "plan chain", "run chain", "gc", "doctor"])
def test_a_store_that_cannot_be_opened_is_one_sentence(
    uri, words, words_of, tmp_path, monkeypatch, capsys
):
    def away(*arguments, **options):
        raise socket.gaierror("name not known")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.ls", away)
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    assert main([*words_of.split(), "--store", uri], lambda: CATALOG) == 2
    if words_of != "doctor":
        assert words in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"FILE"}


def test_an_unwritable_store_ends_with_2(tmp_path):
    (tmp_path / "file").write_text("")
    process = command("run", "chain", store=tmp_path / "file" / "store", check=2)
    assert "no folder that can be read" in process.stderr


def test_dry_run_only_tells(tmp_path):
    out = command("run", "chain", "--dry-run", store=tmp_path / "store", check=0).stdout
    assert "4 to do" in out
    assert not (tmp_path / "store").exists()


def test_settings_may_stand_behind_options(tmp_path):
    out = command("plan", "chain", "--preset", "big", "a.value=9", "--json", store=tmp_path).stdout
    assert json.loads(out)["preset"] == "big"


def test_doctor_passes_here_and_finds_damage(tmp_path):
    store = Store(tmp_path / "store")
    artifacts = run_all(CATALOG, store, Request("chain"))
    said = command("doctor", "--verify", store=store.local, check=0).stdout
    checked = {line.rpartition(" ")[0] for line in said.splitlines()}
    assert {"ok    mlflow", "ok    pydantic"} <= checked
    (artifacts["total"].path / "number.json").write_text("11.0")
    assert (
        "number.json does not match"
        in command("doctor", "--verify", store=store.local, check=2).stdout
    )


def test_a_run_of_an_earlier_version_is_told_and_made_anew(tmp_path, capsys):
    store = Store(tmp_path / "store")
    artifact = run_all(CATALOG, store, Request("chain"))["total"]
    file = artifact.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 1}))

    def said(*arguments):
        code = main([*arguments, "--store", str(store.local)], lambda: CATALOG)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, words = said("doctor", "--verify")
    assert "1 artifacts are of another version" in words
    assert code == 0
    assert "was made by an earlier version" in said("plan", "chain")[1]
    session.set_aside(planning.make(CATALOG, store, Request("chain")), store)
    assert "was made by an earlier version" in capsys.readouterr().out
    run_all(CATALOG, store, Request("chain"))
    assert store.open("total", artifact.manifest.key).load() == artifact.load()


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"diffusion-bench (\d+\.\d+\.\d+|missing)\n", capsys.readouterr().out)


def test_a_shell_completes_commands(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "diffusion-bench" in script
    assert "--dry-run" in script
    assert "compare" in script
    assert re.search(r"run_pos_0_choices=.*\bfull\b", script)  # recipes
    assert re.search(r"preset_choices=.*\bsmoke\b", script)
