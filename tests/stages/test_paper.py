"""A sixth paper is one folder and one line in the catalog."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import Store

ROOT = Path(__file__).parents[2]
LINE = '("maskalign", "csflow", "stein", "wavelet", "icr", "combined", "beyond")'


@pytest.fixture
def command(tmp_path):
    """The command line of a copy of the bench."""
    for package in ("pipeline", "stages", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    here = {**os.environ, "PYTHONPATH": str(tmp_path), "PIPELINE_STORE": str(tmp_path / "store")}

    def run(*arguments: str, code: int = 0) -> str:
        process = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments, "--preset", "smoke"],
            cwd=tmp_path,
            env=here,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == code, process.stdout + process.stderr
        return process.stdout + process.stderr

    return run


@pytest.mark.slow
def test_a_sixth_paper_is_one_folder_and_one_line(command, tmp_path):
    def plan() -> dict:
        return json.loads(command("plan", "full", "--json"))["nodes"]

    before, catalog = plan(), tmp_path / "stages" / "catalog.py"
    without = catalog.read_text()
    assert LINE in without
    catalog.write_text(without.replace(LINE, LINE.replace(")", ', "sixth")')))
    shutil.copytree(ROOT / "tests" / "sixth", tmp_path / "stages" / "papers" / "sixth")

    assert "did you mean 'sixth.num_images'" in command(
        "plan", "sixth", "sixth.num_image=9", code=2
    )
    assert "contrast_train" in command("run", "sixth", "sixth.num_images=16")
    store = Store(tmp_path / "store")
    ((_, key),) = (found for found in store.artifacts() if found[0] == "report")
    made = store.open("report", key)
    page = (made.path / "report.html").read_text()
    assert "Held-out images have the same contrast" in page
    assert ">Sixth</h2>" in page
    claims = json.loads((made.path / "claims.json").read_text())
    (own,) = (one for one in claims if one["claim"]["method"] == "Sixth")
    assert own["verdict"] == "holds"

    # The other papers' results stay where they are, and all is as before once it is gone.
    added = plan()
    assert added.keys() - before.keys() == {"contrast"}
    assert {name for name in before if added[name]["key"] != before[name]["key"]} == {"report"}
    catalog.write_text(without)
    shutil.rmtree(tmp_path / "stages" / "papers" / "sixth")
    assert {name: node["key"] for name, node in plan().items()} == {
        name: node["key"] for name, node in before.items()
    }
