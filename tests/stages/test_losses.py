"""A loss is one file and one line: a new one is set, trained and reported; keys hold one's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config
from pipeline.sources import closure
from stages.catalog import CATALOG
from stages.methods import table
from stages.settings.methods import MethodOptions, options_of
from stages.settings.networks import NetworkSettings
from stages.training import train

ROOT = Path(__file__).parents[2]

TOY = '''"""Velocity regression in another norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from stages.settings.losses import LossOptions


class ToyOptions(LossOptions):
    """The norm of the error."""

    mathematics = f"{__name__}:Loss"
    terms = ("error", "mean")

    power: float = Field(2.0, ge=1, le=8, description="p of the norm")


@dataclass(frozen=True)
class Loss:
    """E |v - (eps - x0)|^p."""

    power: float
    label_dropout: float
    time_density: Any

    def __call__(self, network, batch):
        from stages.methods import path
        from stages.methods.losses import LossTerms, dropped_labels

        t, eps = batch.draws.time(self.time_density), batch.draws.noise(batch.images.shape[1:])
        drop = dropped_labels(batch, self.label_dropout)
        v = network(path.interpolate(batch.images, eps, t), t, batch.labels, drop=drop)
        error = (v - path.velocity(batch.images, eps)).abs()
        total = error.pow(self.power).mean()
        return LossTerms(total, {"error": total, "mean": error.mean()})
'''

USE = """
import sys
from pathlib import Path

from pipeline import config
from pipeline.errors import UsageError
from stages.catalog import CATALOG
from stages.data import prepare
from stages.methods import table
from stages.recipes.nodes import prepare_nodes, train_nodes
from pipeline.graph import Graph

assert "torch" not in sys.modules
chosen = ["train.method=toy", "train.toy.power=3", "train.steps=6", "train.log_every=2"]
chosen += ["train.checkpoint_steps=[6]", "train.batch_size=16", "train.warmup_steps=1"]
bench = config.resolve(CATALOG, "smoke", chosen).settings
graph = Graph([*prepare_nodes(bench), *train_nodes(bench)], CATALOG.exclude_sources)
node = graph["train/toy"]
assert node.settings.keyed()["toy"] == {"power": 3.0}
assert "stages.settings.losses.toy" in graph.identities["train/toy"].sources
try:
    config.resolve(CATALOG, "smoke", ["train.method=toy", "train.toy.powr=3"])
except UsageError as error:
    print(error)

from tests.stages.conftest import trained_in
from tests.stages.context import context, make

folder = Path("made")
data = make(folder / "data", prepare.STAGE, prepare.PrepareSettings(limit=64, limit_held_out=8))
made = trained_in(context(folder / "train", node.settings, data=data))
told = node.stage.metrics(node)
assert set(made.manifest.metrics) == set(told) == {"loss/error", "loss/mean", "gradient_norm"}
print(made.description["method"], *told)
"""


def test_a_new_loss_is_one_file_and_one_line(tmp_path):
    for name in ("pipeline", "stages", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "stages/settings/losses/toy.py").write_text(TOY)
    names = tmp_path / "stages/methods/table.py"
    line = '    "toy": "stages.settings.losses.toy:ToyOptions",\n'
    names.write_text(names.read_text().replace("\nLOSSES = {\n", f"\nLOSSES = {{\n{line}"))
    path = os.pathsep.join((str(tmp_path), str(ROOT)))  # the copy first; ROOT for tests alone
    found = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    refusal, trained = found.stdout.splitlines()
    assert "train.toy.powr" in refusal
    assert "did you mean 'train.toy.power'" in refusal
    assert trained == "toy loss/error loss/mean gradient_norm"


FILES = {
    "sit": {"sit"},
    "repa": {"repa"},
    "reg": {"reg", "repa"},
    "maskalign": {"maskalign", "reg", "repa"},
    "edm": {"edm"},
    "jit": {"jit"},
}


@pytest.mark.parametrize("method", table.LOSSES)
def test_a_training_s_key_covers_the_files_of_its_own_loss(method):
    """Settings that it extends included, and no other mathematics."""
    kind = "unet" if options_of(method).trains_denoiser else "sit"
    network = NetworkSettings(kind="jit" if method == "jit" else kind)
    settings = train.TrainSettings(method=method, network=network)
    named = (train.STAGE.run, *train.STAGE.sources(settings))
    sources = closure((name.partition(":")[0] for name in named), CATALOG.exclude_sources)
    below = "stages.settings.losses."
    assert {name.removeprefix(below) for name in sources if name.startswith(below)} == FILES[method]
    mathematics = {f"stages.methods.{name}" for name in table.LOSSES}
    assert mathematics & set(sources) == {f"stages.methods.{method}"}


def test_methods_with_settings_of_their_own_have_a_group():
    assert list(MethodOptions.model_fields) == ["repa", "reg", "maskalign", "edm", "jit", "method"]


def test_jit_draws_t_as_its_paper_does_where_nothing_else_is_said():
    """Uniform can be said, by settings and by a preset, though it is what others do unasked."""

    def drawn(method, **density):
        network = NetworkSettings(kind="jit" if method == "jit" else "sit")
        given = {"density": density} if density else {}
        return train.TrainSettings(method=method, network=network, **given).drawn

    assert drawn("jit").name == "logit_normal a=1"
    assert drawn("jit").mean == 0.8
    assert drawn("jit", kind="uniform").name == "uniform"
    assert drawn("sit").name == drawn("sit", kind="uniform").name == "uniform"
    overrides = ["train.method=jit", "train.network.kind=jit", "train.density.kind=uniform"]
    assert config.resolve(CATALOG, "smoke", overrides).settings.train.drawn.name == "uniform"
    with pytest.raises(ValueError, match=r"density\.kind=uniform and method=edm contradict"):
        train.TrainSettings(
            method="edm", network=NetworkSettings(kind="unet"), density={"kind": "uniform"}
        )
