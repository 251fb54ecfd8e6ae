"""The extractor stage: stored features are those of the stored network; bad ones are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import graph
from pipeline.errors import StageError, UsageError
from pipeline.fingerprint import fingerprint
from stages.artifacts import extractor as artifacts_extractor
from stages.catalog import CATALOG, RECIPES, Bench
from stages.data import prepare
from stages.encoders import embedded
from stages.encoders.weights import weight_file
from stages.methods import table
from stages.scoring import extractor as scoring_extractor
from stages.scoring.extractor import caution_of
from tests.stages.context import digests, make


def test_the_stored_network_is_the_one_measured(few, extractor):
    data, network = few.load(), extractor.load()
    assert network.name == "embedded"
    right = embedded.extract(network, data.test[:]).logits.argmax(1) == data.test.labels
    assert extractor.metrics["accuracy"] == pytest.approx(right.double().mean().item())
    for name in ("name", "weights_hash", "resize", "dimension"):
        assert getattr(extractor.identity, name) == getattr(network, name)


def test_validation_is_stored_and_a_failed_one_cautions(extractor):
    extractor = artifacts_extractor.Extractor(
        extractor.path, extractor.manifest
    )  # its facts are changed below
    validation = extractor.description["validation"]
    assert set(validation) == {"noise", "blur", "dropped classes"}
    assert extractor.metrics["distance_monotone"] == (caution_of(extractor.description) == "")
    validation["blur"][2][1] = validation["blur"][1][1]
    assert "does not rise with every step of blur" in caution_of(extractor.description)


def test_twice_is_the_same_bytes(tmp_path, few, extractor):
    settings = scoring_extractor.ExtractorSettings(epochs=1, min_accuracy=0)
    again = make(tmp_path, scoring_extractor.STAGE, settings, data=few)
    assert digests(again.path) == digests(extractor.path)
    other = make(tmp_path / "1", scoring_extractor.STAGE, settings.revised(seed=1), data=few)
    assert other.identity.weights_hash != extractor.identity.weights_hash


def test_a_poor_classifier_is_refused(tmp_path, few):
    settings = scoring_extractor.ExtractorSettings(epochs=1, min_accuracy=0.999)
    with pytest.raises(StageError, match=r"below extractor.min_accuracy=0.999"):
        make(tmp_path, scoring_extractor.STAGE, settings, data=few)


def placed_extractor(name, weights, device):
    """A stand-in for an extractor with a weight file: a linear map of the pixels."""
    from safetensors.torch import load_file

    weight = load_file(weight_file(name, weights))["weight"]
    network = nn.Linear(64, 5, bias=False)
    network.weight.data = weight
    return embedded.FeatureNetwork(
        name,
        embedded.state_hash({"weight": weight}),
        "none",
        5,
        lambda images: embedded.Features(network(images.flatten(1))),
        torch.device(device),
    )


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """Settings of a stand-in whose weight file lies in tmp_path."""
    monkeypatch.setitem(table.EXTRACTORS, "inception", f"{__name__}:placed_extractor")
    save_file({"weight": torch.ones(5, 64)}, tmp_path / "weights.pt")
    return {"kind": "inception", "weights": str(tmp_path / "weights.pt")}


def test_placed_weights_may_move_but_must_stay_the_same(tmp_path, few, placed):
    artifact = make(
        tmp_path / "out",
        scoring_extractor.STAGE,
        scoring_extractor.ExtractorSettings(**placed),
        data=few,
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "weights.pt").rename(tmp_path / "moved" / "other-name.pt")
    network = artifact.load(str(tmp_path / "moved" / "other-name.pt"))
    assert network.weights_hash == artifact.identity.weights_hash
    save_file({"weight": torch.zeros(5, 64)}, tmp_path / "weights.pt")
    with pytest.raises(StageError, match=r"not those .* set extractor\.weights to these"):
        artifact.load(placed["weights"])


def test_the_contents_of_weights_enter_keys_and_their_place_does_not(tmp_path, placed):
    def keys(weights):
        fingerprint.cache_clear()
        settings = Bench(extractor=placed | {"weights": str(weights)})
        made = graph.Graph(RECIPES["full"](settings), CATALOG.exclude_sources)
        return {n: k for n, k in made.keys.items() if n.startswith(("extractor", "features"))}

    before = keys(tmp_path / "weights.pt")
    (tmp_path / "moved").mkdir()
    (tmp_path / "weights.pt").rename(tmp_path / "moved" / "weights.pt")
    assert keys(tmp_path / "moved" / "weights.pt") == before
    save_file({"weight": torch.zeros(5, 64)}, tmp_path / "moved" / "weights.pt")
    after = keys(tmp_path / "moved" / "weights.pt")
    assert not set(before.values()) & set(after.values())


def test_missing_weights_are_refused_before_any_work(tmp_path):
    settings = Bench(extractor={"kind": "dinov2-small", "weights": str(tmp_path)})
    nodes = graph.Graph(RECIPES["full"](settings), CATALOG.exclude_sources)
    with pytest.raises(UsageError) as refused:
        _ = nodes.keys
    for part in ("dinov2_vits14_pretrain.pth", str(tmp_path), "set extractor.weights"):
        assert part in str(refused.value)
    assert str(refused.value).count(". ") == 0


def test_doctor_lists_weights_and_how_to_place_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = {w.purpose: w for w in CATALOG.weights if "extractor.kind" in w.purpose}
    assert len(listed) == 4
    inception = next(w for purpose, w in listed.items() if "extractor.kind=inception" in purpose)
    assert inception.find() is None
    assert all(part in inception.remedy for part in ("https://", "weights/", "extractor.weights"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / inception.file).write_text("")
    assert inception.find() == Path("weights") / inception.file


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": "x"}, "weights=x and kind=embedded contradict"),
        ({"kind": "inceptoin"}, "did you mean 'inception'"),
    ],
)
def test_contradictions_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        scoring_extractor.ExtractorSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": 2}, r"^the data have 2 held-out images, .* at least 4: raise data\.held_out"),
        ({"limit_held_out": 3}, r"^the data have 3 held-out images"),
        ({"limit": 39}, r"^the data have 39 training images, .* at least 40: raise data\.limit"),
    ],
)
def test_too_few_real_images_are_refused_before_the_training(settings, words, tmp_path):
    data = make(tmp_path / "d", prepare.STAGE, prepare.PrepareSettings(**settings))
    own = scoring_extractor.ExtractorSettings(epochs=1, min_accuracy=0)
    with pytest.raises(StageError, match=words):
        make(tmp_path / "e", scoring_extractor.STAGE, own, data=data)
