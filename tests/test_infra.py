"""The files of infra/ are what their readers expect, and their commands are commands of ours."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import build_parser, main
from stages.encoders.weights import FOLDER, WEIGHT_FILES

INFRA = Path(__file__).parent.parent / "infra"
LINE = r"(?:.|\n(?=\s*(?:--|\w+\.\w+=)))*"  # and those that go on with an option or a setting
COMMAND = re.compile(f"python -m pipeline ({LINE})")
RECIPE = re.compile(f"run full --preset {LINE}")


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


def recipes():
    """What the files run, whoever calls it: by `run` with a preset, without where and with whom."""
    for file in sorted(INFRA.iterdir()):
        for found in re.finditer(
            r"run full --preset (?:.|\n(?=\s*(?:--|\w+\.\w+=)))*", file.read_text()
        ):
            words = shlex.split(found[0])
            settings = [word for word in words if "=" in word]
            yield pytest.param(words[: words.index("--preset") + 2] + settings, id=file.name)


def test_recipes_are_found():
    assert [found.id for found in recipes()] == ["cluster.yaml", "kuberay.yaml", "slurm.sh"]


@pytest.mark.parametrize("words", list(recipes()))
def test_recipes_can_be_planned(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / FOLDER).mkdir()
    for first, *_ in WEIGHT_FILES.values():
        (tmp_path / FOLDER / first).touch()
    there = [word.replace("=/data/", f"={tmp_path}/data/") for word in words]
    code = main([*there, "--dry-run", "--store", str(tmp_path / "store")])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["kuberay.yaml", "cluster.yaml", "mlflow.yaml"])
def test_yaml_is_read(name):
    assert yaml.safe_load((INFRA / name).read_text())


def test_the_entrypoint_of_the_cluster_job_runs_a_recipe():
    job = yaml.safe_load((INFRA / "kuberay.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "pipeline", "run"]
    assert build_parser().parse_known_args(words[3:])[0].address == "auto"


def test_the_image_names_an_extra_that_exists():
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', (INFRA / "Dockerfile").read_text())
    project = (INFRA.parent / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))


def test_the_shell_script_is_one():
    subprocess.run(["bash", "-n", INFRA / "slurm.sh"], check=True)
