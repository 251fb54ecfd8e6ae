"""The extractor stage: stored features are those of the stored network; bad ones are refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import StageError
from stages import extract, features
from stages.methods import table
from tests.stages.context import digests, make


def test_features_are_those_of_the_stored_network(few, extractor):
    data, loaded = few.load(), extractor.load()
    assert loaded.network.name == "embedded"
    assert loaded.train.shape == (96, 64)
    assert torch.equal(loaded(data.test[:]).features, loaded.test)
    right = loaded(data.test[:]).logits.argmax(1) == data.test.labels
    assert extractor.metrics["accuracy"] == pytest.approx(right.double().mean().item())


def test_twice_is_the_same_bytes(tmp_path, few, extractor):
    settings = extract.ExtractorSettings(epochs=1, min_accuracy=0)
    again = make(tmp_path, extract.STAGE, settings, data=few)
    assert digests(again.path) == digests(extractor.path)
    other = make(tmp_path / "1", extract.STAGE, settings.revised(seed=1), data=few)
    assert other.load().network.weights_hash != extractor.load().network.weights_hash


def test_a_poor_classifier_is_refused(tmp_path, few):
    settings = extract.ExtractorSettings(epochs=1, min_accuracy=0.999)
    with pytest.raises(StageError, match=r"below extractor.min_accuracy=0.999"):
        make(tmp_path, extract.STAGE, settings, data=few)


def placed_extractor(name, weights_dir, setting, device):
    """A stand-in for an extractor with a weight file: a linear map of the pixels."""
    from safetensors.torch import load_file

    weight = load_file(f"{weights_dir}/weights.safetensors")["weight"]
    network = nn.Linear(64, 5, bias=False)
    network.weight.data = weight
    return features.Extractor(
        name,
        features.state_hash({"weight": weight}),
        "none",
        5,
        lambda images: features.Features(network(images.flatten(1))),
        torch.device(device),
    )


def test_placed_weights_must_stay_the_same(tmp_path, few, monkeypatch):
    monkeypatch.setitem(table.EXTRACTORS, "inception", f"{__name__}:placed_extractor")
    save_file({"weight": torch.ones(5, 64)}, tmp_path / "weights.safetensors")
    settings = extract.ExtractorSettings(kind="inception", weights_dir=str(tmp_path))
    artifact = make(tmp_path / "out", extract.STAGE, settings, data=few)
    expected = few.load().train[:].flatten(1).sum(1)
    assert np.allclose(artifact.load().train[:, 0], expected, atol=1e-4)
    save_file({"weight": torch.zeros(5, 64)}, tmp_path / "weights.safetensors")
    again = extract.Extractor(artifact.path, artifact.manifest)
    with pytest.raises(StageError, match="are not those that the references' features"):
        again.load()


def test_missing_weights_are_named(tmp_path, few):
    settings = extract.ExtractorSettings(kind="dinov2-small", weights_dir=str(tmp_path))
    with pytest.raises(StageError, match=r"set extractor.weights_dir to the directory"):
        make(tmp_path / "out", extract.STAGE, settings, data=few)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "inception"}, "kind=inception needs weights_dir"),
        ({"weights_dir": "x"}, "weights_dir=x and kind=embedded contradict"),
        ({"kind": "inceptoin"}, "did you mean 'inception'"),
    ],
)
def test_contradictions_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        extract.ExtractorSettings(**settings)
