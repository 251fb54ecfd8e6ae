"""Features of sample sets: those of the network, in any number of shards, with true neighbours."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import StageError
from pipeline.stage import Result
from stages.artifacts import reading
from stages.encoders import embedded as encoders_embedded
from stages.methods import memorization, table
from stages.scoring import external, features
from stages.scoring import extractor as scoring_extractor
from tests.stages.context import context, digests, make, sealed
from tests.stages.test_evaluate import samples_of


def embedded(folder, few, extractor, settings=None, **more):
    settings = settings or features.FeatureSettings()
    return make(folder, features.STAGE, settings, data=few, extractor=extractor, **more)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_the_network(tmp_path, few, extractor, noise):
    found = embedded(tmp_path / "f", few, extractor, samples=samples_of(tmp_path, noise)).load()
    expected = encoders_embedded.extract(extractor.load(), noise.clamp(-1, 1))
    for name in ("features", "spatial", "logits"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_neighbours_are_those_of_the_training_images(tmp_path, few, extractor, noise):
    found = embedded(tmp_path / "f", few, extractor, samples=samples_of(tmp_path, noise)).load()
    expected = memorization.nearest(noise.clamp(-1, 1), few.load().train[:], k=3)
    assert torch.equal(found.neighbours, expected.indices)
    torch.testing.assert_close(found.neighbour_distances, expected.distances)


def test_shards_change_no_byte(tmp_path, few, extractor, noise):
    samples = samples_of(tmp_path, noise)
    settings = features.FeatureSettings(batch_size=16)
    whole = embedded(tmp_path / "1", few, extractor, settings, samples=samples)
    parts = embedded(
        tmp_path / "2", few, extractor, settings.revised(shard_size=30), samples=samples
    )
    assert digests(whole.path) == digests(parts.path)
    assert settings.keyed() == settings.revised(shard_size=30).keyed()


def test_readers_are_those_asked_for_and_change_no_byte(
    tmp_path, few, extractor, noise, monkeypatch
):
    samples = samples_of(tmp_path, noise)
    settings = features.FeatureSettings(batch_size=16)
    one = embedded(tmp_path / "1", few, extractor, settings, samples=samples)
    asked, in_order = [], reading.in_order
    monkeypatch.setattr(
        reading, "in_order", lambda *given: asked.append(given[-1]) or in_order(*given)
    )
    more = settings.revised(readers=3)
    two = embedded(tmp_path / "2", few, extractor, more, samples=samples)
    assert set(asked) == {3}
    assert digests(one.path) == digests(two.path)
    assert settings.keyed() == more.keyed()


def test_a_long_search_is_made_only_where_it_is_asked_for(
    tmp_path, few, extractor, noise, monkeypatch
):
    inputs = {"data": few, "extractor": extractor, "samples": samples_of(tmp_path, noise)}

    def told(name, among):
        settings = features.FeatureSettings(nearest_among=among)
        at = context(tmp_path / name, settings, **inputs)
        made = sealed(at, features.STAGE, features.run(at))
        return [said for said, _ in at.noticed], made

    assert told("short", None)[0] == []
    monkeypatch.setattr(features, "LONG_HOURS", 1e-9)
    (said,), asked = told("long", 50)
    assert said.startswith("comparing 100 images with 50 training images pixel by pixel")
    assert asked.load().neighbours.shape == (100, 3)
    said, none = told("none", 0)
    assert said == []
    assert "left_out" not in none.description
    (said,), unasked = told("unset", None)
    assert said.startswith("nearest training images and the memorisation ratio are left out")
    assert "extractor.nearest_among=96 with all" in said
    assert unasked.description["left_out"] == said
    assert unasked.load().neighbours is None
    one, other = none.load(), unasked.load()
    assert torch.equal(one.features, other.features)


def test_references_are_the_data_sets_own_images(few, extractor, references):
    data = few.load()
    for slot, images in (("train", data.train), ("held_out", data.test)):
        found = references[slot].load()
        assert torch.equal(
            found.features, encoders_embedded.extract(extractor.load(), images[:]).features
        )
    assert references["train"].load().neighbours is None
    assert references["held_out"].load(5).neighbours.shape == (5, 3)


def test_bad_samples_are_named(tmp_path, few, extractor, noise):
    bad = noise.clone()
    bad[71, 0, 3, 3] = torch.nan
    settings = features.FeatureSettings(batch_size=16, shard_size=32)
    with pytest.raises(StageError, match="NaN or infinite in image 71;"):
        embedded(tmp_path / "1", few, extractor, settings, samples=samples_of(tmp_path / "a", bad))
    wide = samples_of(tmp_path / "b", torch.zeros(50, 1, 8, 9))
    with pytest.raises(StageError, match=r"shape \(1, 8, 9\) .* images \(1, 8, 8\)"):
        embedded(tmp_path / "2", few, extractor, samples=wide)
    with pytest.raises(StageError, match="no samples to take features of"):
        embedded(tmp_path / "3", few, extractor)


def placed(name, weights, device):
    """A stand-in for an extractor with a weight file: it fails on white images."""

    def compute(images):
        return encoders_embedded.Features(torch.where(images > 0.9, torch.nan, images).flatten(1))

    return encoders_embedded.FeatureNetwork(
        name, "0" * 64, "none", 64, compute, torch.device(device)
    )


def test_files_with_bad_features_are_named(tmp_path, few, monkeypatch):
    monkeypatch.setitem(table.EXTRACTORS, "inception", f"{__name__}:placed")
    (tmp_path / "set").mkdir()
    for i in range(4):
        pixels = np.full((8, 8), 255 if i == 2 else 100, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"picture{i}.png")
    chosen = external.ExternalSettings(path=str(tmp_path / "set"))
    samples = make(tmp_path / "s", external.STAGE, chosen, data=few)
    settings = features.FeatureSettings(kind="inception", batch_size=1, shard_size=1)
    facts = {"name": "inception", "weights_hash": "0" * 64, "resize": "none", "dimension": 64}
    at = context(tmp_path / "x", scoring_extractor.ExtractorSettings(kind="inception"))
    (at.path / "extractor.json").write_text(json.dumps(facts | {"validation": {}}))
    extractor = sealed(at, scoring_extractor.STAGE, Result())
    with pytest.raises(StageError, match=r"NaN or infinite in picture2\.png;"):
        embedded(tmp_path / "f", few, extractor, settings, samples=samples)
