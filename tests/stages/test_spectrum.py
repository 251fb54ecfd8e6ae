"""The stage spectrum: exact over shards, cheap to keep, latents refused before they are read."""

import json

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.errors import StageError, UsageError
from pipeline.graph import Graph
from stages.artifacts import data as artifacts_data
from stages.catalog import CATALOG, RECIPES
from stages.data import prepare, spectrum
from stages.methods.spectrum import RadialPower, radial_power
from tests.stages.context import digests, make

SETTINGS = spectrum.SpectrumSettings()


def graph(*overrides, preset="digits", recipe="full") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def latents(folder, channels=4, **settings) -> artifacts_data.Data:
    """Random latents as a data set that says so."""
    generator = np.random.default_rng(0)
    path = folder / "latents.npz"
    images = 3 * generator.standard_normal((40, 8, 8, channels)).astype(np.float32)
    np.savez(path, x_train=images, y_train=np.arange(40) % 4)
    chosen = prepare.PrepareSettings(
        dataset="npz", path=str(path), **{"latent": True, "held_out": 8} | settings
    )
    return make(folder / "data", prepare.STAGE, chosen)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, few):
    return make(tmp_path_factory.mktemp("spectrum"), spectrum.STAGE, SETTINGS, data=few)


def test_it_is_the_spectrum_of_the_training_images(few, artifact):
    found = artifact.load()
    frequency, power = radial_power(few.load().train[:])
    assert found.frequency == tuple(frequency.tolist())
    assert found.power == tuple(power.tolist())
    assert (found.height, found.width, found.image_pixels, found.num_images) == (8, 8, 8, 96)
    assert not found.latent


@pytest.mark.parametrize("shard_size", [32, 50, 95, 96])
def test_bytes_do_not_depend_on_shards(tmp_path, few, artifact, shard_size):
    settings = spectrum.SpectrumSettings(shard_size=shard_size)
    assert settings.keyed() == SETTINGS.keyed()
    other = make(tmp_path, spectrum.STAGE, settings, data=few)
    assert digests(other.path) == digests(artifact.path)


def test_bytes_do_not_depend_on_batches(tmp_path, few, artifact, monkeypatch):
    monkeypatch.setattr(spectrum, "BATCH_BYTES", 33 * 8 * 8 * 4)
    other = make(tmp_path, spectrum.STAGE, SETTINGS, data=few)
    assert digests(other.path) == digests(artifact.path)


def test_stored_sums_can_be_added_to_others(few, artifact):
    sums = json.loads((artifact.path / "spectrum.json").read_text())["sums"]
    stored, test = RadialPower.from_state(sums), RadialPower.collect(few.load().test[:])
    both = torch.cat([few.load().train[:], few.load().test[:]])
    assert stored + test == RadialPower.collect(both)


def test_some_images_are_evenly_spaced(tmp_path, few):
    assert spectrum.chosen(10, None).tolist() == list(range(10))
    assert spectrum.chosen(10, 4).tolist() == [0, 2, 5, 7]
    assert spectrum.chosen(3, 4).tolist() == [0, 1, 2]
    assert spectrum.chosen(10, 4, 1, 3).tolist() == [2, 5]
    settings = spectrum.SpectrumSettings(num_images=40, shard_size=32)
    found = make(tmp_path, spectrum.STAGE, settings, data=few).load()
    _, power = radial_power(few.load().train[spectrum.chosen(96, 40)])
    assert (found.num_images, found.power) == (40, tuple(power.tolist()))


@pytest.mark.parametrize("channels", [3, 4])
def test_latents_are_refused_before_they_are_read(tmp_path, channels):
    data = latents(tmp_path, channels)
    (data.path / "train.npy").unlink()
    with pytest.raises(StageError, match=r"derived for pixels.*allow_latent"):
        make(tmp_path / "no", spectrum.STAGE, SETTINGS, data=data)


def test_latents_are_allowed_on_purpose(tmp_path):
    settings = spectrum.SpectrumSettings(allow_latent=True)
    found = make(tmp_path / "yes", spectrum.STAGE, settings, data=latents(tmp_path)).load()
    assert found.latent
    assert np.mean(found.power) == pytest.approx(9, rel=0.2)  # white noise of variance 9


def test_what_does_not_say_that_it_is_latent_must_be_an_image(tmp_path):
    with pytest.raises(StageError, match=r"1 or 3 channels; set data\.latent=true"):
        latents(tmp_path, latent=False)
    with pytest.raises(ValueError, match="latent=true and dataset=digits"):
        prepare.PrepareSettings(latent=True)
    with pytest.raises(ValueError, match="latent=true and size=16"):
        prepare.PrepareSettings(dataset="npz", path="x.npz", latent=True, size=16)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [("full", []), ("csflow", []), ("train", ["train.density.kind=csflow"])],
)
def test_latents_are_refused_before_any_work(tmp_path, recipe, more):
    (tmp_path / "latents.npz").touch()
    # A teacher refuses latents for a reason of its own.
    alone = ["maskalign.methods=[sit]", "maskalign.ablation_seeds=0", "combined.in_full=false"]
    data = ["data.dataset=npz", f"data.path={tmp_path}/latents.npz", "data.latent=true", *alone]
    chosen = [*data, *more]
    with pytest.raises(UsageError, match=r"luminance on a screen.*spectrum\.allow_latent=true"):
        graph(*chosen, recipe=recipe)
    assert "spectrum" in graph(*chosen, "spectrum.allow_latent=true", recipe=recipe).nodes
    assert "spectrum" not in graph(*data, recipe="train").nodes
    assert "spectrum" not in graph(*data, "csflow.in_full=false").nodes


def test_neither_eye_nor_densities_recompute_it():
    sources = set(graph().identities["spectrum"].sources)
    assert {"stages.data.spectrum", "stages.methods.spectrum"} <= sources
    assert not {s for s in sources if s.endswith(("csflow", "densities", "density"))}
    before, after = graph(), graph("csflow.display.display_pixels=64")
    assert before.keys["spectrum"] == after.keys["spectrum"]
    changed = {name for name in before.nodes if before.keys[name] != after.keys[name]}
    # All methods together take CSFlow's grid, too.
    together = ("combined-csflow", "combined-all")
    readers = {n for n in before.nodes if "csflow" in n or any(part in n for part in together)}
    assert changed == readers | {"report"}
