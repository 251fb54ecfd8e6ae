"""Every command that a README shows is one that can be planned."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main
from stages.catalog import CATALOG
from stages.encoders.weights import FOLDER, WEIGHT_FILES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for place in (".", "pipeline", "stages", "sweeps")
    for path in (ROOT / place).glob("README.md" if place == "." else "**/README.md")
)
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
START = "python -m pipeline "
PLANNED = ("run", "plan", "sweep")
BROUGHT = (".pt", "last.pth", "--preset edm-")  # published checkpoints, which nobody downloads
IMAGENET = [f"data/imagenet/{side}/n0000000{i}" for side in ("train", "val") for i in (1, 2)]


def commands() -> list[str]:
    """What READMEs call with `run`, `plan` or `sweep`, without the words beside it."""
    lines = [line for text in TEXTS.values() for line in text.splitlines()]
    fenced = [line[line.index(START) :] for line in lines if START in line]
    found = [re.split(r"\s{2,}|`|\)", text.removeprefix(START))[0] for text in fenced]
    whole = (text for text in found if "PROTOCOL" not in text)  # which stands for settings below it
    return list(dict.fromkeys(text for text in whole if text.split()[0] in PLANNED))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder of as many images as the default preset scores."""
    folder = tmp_path_factory.mktemp("samples")
    for number in range(1500):
        (folder / f"{number}.png").touch()
    return folder


@pytest.fixture
def places(samples, tmp_path, monkeypatch):
    """What the commands' placeholders name, and weights that a person must place."""
    for name in ("out/model", "FILE"):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "step-000007.safetensors").touch()
        (folder / "model.json").write_text(json.dumps({"network": "sit", "steps": [7]}))
    (tmp_path / FOLDER).mkdir()
    for first, *_ in WEIGHT_FILES.values():
        (tmp_path / FOLDER / first).touch()
    autoencoder = tmp_path / FOLDER / "sd-vae-ft-ema"
    autoencoder.mkdir()
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}
    (autoencoder / "config.json").write_text(json.dumps(config))
    (autoencoder / "diffusion_pytorch_model.safetensors").touch()
    for place in ("out/samples", "SAMPLES"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(samples)
    for folder in ("PICTURES/a", "PICTURES/b", *IMAGENET):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "one.JPEG", "JPEG")
    for number in range(50):  # no fewer can be scored
        (tmp_path / "PICTURES" / "a" / f"{number}.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_are_found():
    found = commands()
    assert "run full" in found
    assert "sweep maskalign --preset smoke" in found
    assert len(found) > 20


@pytest.mark.parametrize("text", commands())
def test_it_can_be_planned(text, places, capsys):
    words = shlex.split(text)
    dry = [] if words[0] == "plan" else ["--dry-run"]
    code = main([*words, *dry, "--store", str(places / "store")])
    said = capsys.readouterr().err
    if any(word in text for word in BROUGHT):
        # It is known as a command, and says what to place.
        assert (code, "place" in said) == (2, True), said
    else:
        assert code == 0, said


def test_one_version_everywhere():
    root = ROOT
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert project["version"] == str(citation["version"]) == changes[0]
    assert project["license"] == citation["license"]
    assert project["name"] in CATALOG.packages  # so that manifests carry it


def test_the_first_page_is_short_and_its_links_lead_somewhere():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 250
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / target).exists() or (ROOT / target).exists(), (path, target)
