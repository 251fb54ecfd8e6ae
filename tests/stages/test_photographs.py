"""Patches of photographs: real pixels, and none both to train on and held out."""

from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch

from stages.artifacts import data
from stages.data import prepare
from tests.stages.context import make


def prepared(folder, **settings) -> data.DataSet:
    settings = prepare.PrepareSettings(dataset="photographs", **settings)
    return make(folder, prepare.STAGE, settings).load()


def test_no_pixel_is_on_both_sides(tmp_path, monkeypatch):
    # A pixel's value is its column, or its row.
    rows, columns = np.mgrid[:60, :80].astype(np.uint8)
    images = [np.stack([x] * 3, axis=-1) for x in (columns, rows)]
    bunch = SimpleNamespace(images=images)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: bunch)
    loaded = prepared(tmp_path, size=8)
    for part, first, last in ((loaded.train, 0, 60), (loaded.test, 60, 76)):
        pixels = part.raw(np.flatnonzero(part.labels == 0)).numpy()
        assert (pixels.min(), pixels.max() + 1) == (first, last)
        corners = pixels[:, 0, 0, 0]
        assert len(set(corners.tolist())) == (last - first - 8) // (4 if first == 0 else 8) + 1
        down = part.raw(np.flatnonzero(part.labels == 1)).numpy()
        assert (down.min(), down.max() + 1) == (0, 60 if first == 0 else 56)
    assert (pixels == pixels[:, :, :1]).all()
    assert (np.diff(pixels[:, 0, 0].astype(int)) == 1).all()


def test_real_photographs_in_colour_and_grey(tmp_path):
    colour = prepared(tmp_path / "colour", limit=100)
    assert colour.shape == (3, 16, 16)
    assert colour.train.raw([0]).dtype == torch.uint8
    assert len(colour.test) == 2 * (427 // 16) * (160 // 16)
    grey = prepared(tmp_path / "grey", limit=100, grey=True)
    assert grey.shape == (1, 16, 16)
    torch.testing.assert_close(grey.test[:], colour.test[:].mean(1, keepdim=True))
    assert set(colour.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 161}, "size=161 and dataset=photographs .* at most 160"),
        ({"held_out": 5}, "held_out=5 and dataset=photographs"),
        ({"path": "x"}, r"path=\S+/x and dataset=photographs"),
        ({"dataset": "digits", "grey": True}, "grey=true and dataset=digits"),
    ],
)
def test_contradictions_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        prepare.PrepareSettings(**{"dataset": "photographs"} | settings)
