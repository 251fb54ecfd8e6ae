"""Data without labels: read, trained on unconditionally, sampled without guidance; and the SDE."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import StageError
from stages.artifacts import data as artifacts_data
from stages.data import prepare
from stages.methods import path
from stages.methods.draws import Draws
from stages.methods.solvers import sde
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.scoring import extractor
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, make


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> artifacts_data.Data:
    """48 images in an archive without y."""
    folder = tmp_path_factory.mktemp("unlabelled")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(folder / "x.npz", x_train=images)
    settings = prepare.PrepareSettings(dataset="npz", path=str(folder / "x.npz"), held_out=12)
    return make(folder, prepare.STAGE, settings)


def test_an_archive_without_labels_has_no_classes(unlabelled):
    data = unlabelled.load()
    assert (len(data.train), data.num_classes) == (48, 0)
    assert not data.train.labels.any()


def test_loose_images_are_data_without_labels(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / f"{i}.png")
    settings = prepare.PrepareSettings(dataset="folder", path=str(folder), held_out=2)
    data = make(tmp_path / "made", prepare.STAGE, settings).load()
    assert (len(data.train), len(data.test), data.num_classes) == (4, 2, 0)


def test_the_embedded_extractor_needs_labels_and_says_so_first(tmp_path, unlabelled, monkeypatch):
    monkeypatch.setattr(extractor, "_trained_state", None)
    with pytest.raises(StageError) as refused:
        make(tmp_path, extractor.STAGE, extractor.ExtractorSettings(), data=unlabelled)
    words = str(refused.value)
    for part in ("extractor.kind=embedded", "extractor.kind=inception", "dinov2-", "y_train"):
        assert part in words


def test_training_and_sampling_are_unconditional(tmp_path, unlabelled):
    model = trained_in(context(tmp_path / "model", TINY, data=unlabelled))
    assert model.description["config"]["num_classes"] == 0
    settings = sample.SampleSettings(nfe=3, num_samples=8, block_size=4)
    made = make(tmp_path / "samples", sample.STAGE, settings, model=model).load()
    assert not made.labels.any()
    assert made.images.isfinite().all()
    # Every sample is the network's own with the null class, which is its only one.
    network = model.load().network()
    problem = sampling_problem.Problem(network, model.load(), settings)
    y = 2 * torch.randn(4, 1, 8, 8, dtype=torch.float64)
    x, t = path.from_edm(y, 2.0)
    v = network(x.float(), torch.full((4,), t)).double()
    expected = path.clean_from_velocity(x, v, t)
    torch.testing.assert_close(problem.denoiser(torch.zeros(4).long())(y, 2.0), expected)
    guided = settings.revised(guidance=2.0)
    with pytest.raises(StageError, match=r"guidance=2: the network was trained without classes"):
        make(tmp_path / "guided", sample.STAGE, guided, model=model)


def test_the_sde_s_samples_are_the_mathematics(tmp_path, model):
    settings = sample.SampleSettings(solver="sde", nfe=6, num_samples=8, block_size=8, seed=2)
    made = make(tmp_path, sample.STAGE, settings, model=model)
    problem = sampling_problem.Problem(model.load().network(), model.load(), settings)
    indices = torch.arange(8)
    expected = sde.sample(
        problem.denoiser(problem.labels(indices)),
        problem.noise(2, indices),
        Draws(2 + sample.SDE_SEED, indices),
        num_steps=6,
    )
    torch.testing.assert_close(made.load().images, expected.float())
    assert made.description["nfe"] == 6
    assert made.description["grid"] == "sde"
    assert len(made.steps["level"]) == len(made.steps["gamma"]) == 6
    other = make(tmp_path / "other", sample.STAGE, settings.revised(seed=3), model=model)
    assert not torch.allclose(other.load().images, made.load().images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": 1}, "nfe=1 is below 2"),
        ({"correction": "lookahead"}, "correction=lookahead and solver=sde contradict"),
        ({"grid": "edm"}, "grid=edm and solver=sde contradict"),
    ],
)
def test_what_the_sde_does_not_take_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        sample.SampleSettings(solver="sde", **options)
