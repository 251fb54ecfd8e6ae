"""The command line: exit codes, light imports, and words a person can use."""

import json
import subprocess
import sys

import pytest

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
        (["run", "chain", "--frobnicate"], "--frobnicate"),
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


def test_an_unwritable_store_ends_with_2(tmp_path):
    (tmp_path / "file").write_text("")
    process = command("run", "chain", store=tmp_path / "file" / "store", check=2)
    assert "not writable" in process.stderr


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
    assert "ok" in command("doctor", "--verify", store=store.local, check=0).stdout
    (artifacts["total"].path / "number.json").write_text("11.0")
    assert (
        "number.json does not match"
        in command("doctor", "--verify", store=store.local, check=2).stdout
    )
