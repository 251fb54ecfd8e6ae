"""Scores of sets of samples whose scores are known, and how they are stored."""

import json

import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from stages import evaluate, sample
from tests.stages.context import context, digests, make, sealed

SETTINGS = evaluate.EvaluateSettings(num_samples=48)


def samples_of(folder, images: torch.Tensor, **facts) -> sample.Samples:
    """An artifact that holds given images."""
    at = context(folder, sample.SampleSettings())
    np.save(at.path / "samples.npy", images.numpy())
    np.save(at.path / "labels.npy", np.zeros(len(images), np.int64))
    description = {"training_step": 10, "method": "sit", "solver": "euler", "nfe": 5, "seed": 0}
    description |= {
        "time_density": "uniform",
        "grid": "uniform_t",
        "num_samples": len(images),
    } | facts
    (at.path / "samples.json").write_text(json.dumps(description))
    return sealed(at, sample.STAGE, evaluate.Result())


def scored(folder, sets, few, extractor, settings=SETTINGS, **more):
    inputs = {"samples": sets, "extractor": extractor, "data": few}
    return make(folder, evaluate.STAGE, settings, **inputs, **more)


def values(artifact, node):
    return {row.score.metric: row.score for row in artifact.load() if row.node == node}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, few, extractor):
    """Copies of training images, held-out images, and noise, at steps 30, 20 and 10."""
    folder = tmp_path_factory.mktemp("scored")
    data = few.load()
    noise = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sets = {
        "copies": samples_of(folder / "a", data.train[:48], training_step=30),
        "real": samples_of(folder / "b", data.test[:], training_step=20),
        "noise": samples_of(folder / "c", noise, training_step=10),
    }
    return scored(folder / "scores", sets, few, extractor)


def test_scores_order_the_sets(artifact):
    copies, real, noise = (values(artifact, name) for name in ("copies", "real", "noise"))
    assert copies["fid"].value < real["fid"].value < noise["fid"].value / 3
    assert copies["kid"].value < noise["kid"].value
    assert copies["memorization_ratio"].value == 1.0
    assert real["memorization_ratio"].value < 0.2
    assert copies["memorization_ratio"].floor == real["memorization_ratio"].value
    assert noise["precision"].value < real["precision"].value
    assert real["fid"].value == pytest.approx(real["fid"].floor, rel=0.7)


def test_every_score_has_error_and_protocol(artifact):
    for row in artifact.load():
        score = row.score
        assert score.protocol.name == "digits-embedded-48"
        assert (score.protocol.num_samples, score.protocol.num_reference) == (48, 96)
    assert values(artifact, "real")["fid"].error > 0
    assert "trajectory_rms" not in values(artifact, "real")


def test_rows_and_curves_follow_the_abscissa(tmp_path, few, extractor, artifact):
    nodes = list(dict.fromkeys(row.node for row in artifact.load()))
    assert nodes == ["noise", "real", "copies"]
    sets = {
        f"n{nfe}": samples_of(tmp_path / str(nfe), few.load().test[:], nfe=nfe) for nfe in (9, 5)
    }
    at = context(
        tmp_path / "x",
        SETTINGS.revised(abscissa="nfe"),
        samples=sets,
        extractor=extractor,
        data=few,
    )
    result = evaluate.run(at)
    assert [step for name, step, _ in result.curves if name == "fid"] == [5, 9]
    assert result.abscissa == "nfe"
    assert result.metrics["fid"] == [v for name, _, v in result.curves if name == "fid"][-1]


def test_trajectory_rms_is_the_distance_to_the_reference(tmp_path, few, extractor):
    images = few.load().test[:]
    reference = samples_of(tmp_path / "r", torch.cat([images, images]), nfe=100)
    moved = samples_of(tmp_path / "m", images + 0.3)
    found = scored(tmp_path / "s", {"moved": moved}, few, extractor, reference=reference)
    assert found.metrics["trajectory_rms"] == pytest.approx(0.3, rel=1e-5)
    assert values(found, "moved")["trajectory_rms"].floor == 0
    other = samples_of(tmp_path / "o", images, seed=1)
    with pytest.raises(StageError, match="reference differ in seed"):
        scored(tmp_path / "t", {"other": other}, few, extractor, reference=reference)


def test_only_the_first_samples_count(tmp_path, few, extractor, artifact):
    images = torch.cat([few.load().test[:], torch.zeros(50, 1, 8, 8)])
    more = samples_of(tmp_path / "m", images, training_step=20)
    found = scored(tmp_path / "s", {"real": more}, few, extractor)
    assert values(found, "real") == values(artifact, "real")


def test_twice_is_the_same_bytes(tmp_path, few, extractor):
    sets = {"real": samples_of(tmp_path / "m", few.load().test[:])}
    one = scored(tmp_path / "1", sets, few, extractor)
    two = scored(tmp_path / "2", sets, few, extractor)
    assert digests(one.path) == digests(two.path)


def test_bad_sets_are_refused(tmp_path, few, extractor):
    with pytest.raises(StageError, match="there are no samples"):
        scored(tmp_path / "0", {}, few, extractor)
    small = samples_of(tmp_path / "m", few.load().test[:47])
    with pytest.raises(StageError, match=r"small holds 47 samples, fewer than evaluate.num_samp"):
        scored(tmp_path / "1", {"small": small}, few, extractor)
    images = few.load().test[:].clone()
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(StageError, match="NaN or infinite in image 3"):
        scored(tmp_path / "2", {"bad": samples_of(tmp_path / "b", images)}, few, extractor)
