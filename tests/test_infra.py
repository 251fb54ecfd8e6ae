"""The files of infra/ are what their readers expect, and their commands are commands of ours."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import build_parser

INFRA = Path(__file__).parent.parent / "infra"
COMMAND = re.compile(r"python -m pipeline ((?:.|\n(?=\s*--))*)")


def commands():
    for file in sorted(INFRA.iterdir()):
        for found in COMMAND.finditer(file.read_text()):
            if not found[1].startswith('"$@"'):
                yield pytest.param(found[1], id=f"{file.name}: {found[1][:30]}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_parse(line):
    options, rest = build_parser().parse_known_args(shlex.split(line))
    assert all("=" in word for word in rest)
    assert options.command == "run"


@pytest.mark.parametrize("name", ["kuberay.yaml", "cluster.yaml", "mlflow.yaml"])
def test_yaml_is_read(name):
    assert yaml.safe_load((INFRA / name).read_text())


def test_the_entrypoint_of_the_cluster_job_runs_a_recipe():
    job = yaml.safe_load((INFRA / "kuberay.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "pipeline", "run"]
    assert build_parser().parse_args(words[3:]).address == "auto"


def test_the_image_names_an_extra_that_exists():
    (extra,) = re.findall(r'"\.\[(\w+)\]"', (INFRA / "Dockerfile").read_text())
    assert f"\n{extra} = [" in (INFRA.parent / "pyproject.toml").read_text()


def test_the_shell_script_is_one():
    subprocess.run(["bash", "-n", INFRA / "slurm.sh"], check=True)
