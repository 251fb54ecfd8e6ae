"""Letters and digits drawn askew: every image a function of its side and index."""

from types import SimpleNamespace

import numpy as np
import pytest

from stages.data import counted
from stages.data.prepare import PrepareSettings
from stages.data.readers import glyphs


def source(limit=None, held_out=None):
    return glyphs.read(SimpleNamespace(limit=limit, limit_held_out=held_out))


def test_an_image_depends_on_its_side_and_index_alone():
    few, more = source(124, 62), source(1000)
    assert (len(few.train), len(few.test)) == (124, 62)
    assert (len(more.train), len(more.test)) == (1000, 10_000)
    backwards = np.array([123, 61, 0])
    first = few.train.images.take(backwards)
    assert first.shape == (3, 1, 32, 32)
    assert first.dtype == np.uint8
    assert np.array_equal(first, more.train.images.take(backwards))
    assert np.array_equal(first[2:], more.train.images.take(np.array([0])))
    assert not np.array_equal(first, few.test.images.take(np.array([61, 60, 0])))
    assert few.train.labels[[0, 10, 61, 62]].tolist() == [0, 10, 61, 0]
    assert few.class_names[10] == "A"
    assert few.train.images.take(np.array([], int)).shape == (0, 1, 32, 32)


def test_no_font_is_on_both_sides_and_all_are_there():
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELD_OUT_FONTS)
    every = (*glyphs.TRAIN_FONTS, *glyphs.HELD_OUT_FONTS)
    assert set(glyphs.THIN_FONTS) <= set(every)
    assert len({glyphs._font(name).getname() for name in every}) == 16


def test_glyphs_are_whole_and_differ_by_class():
    images = source(2).train.images
    few = glyphs.Glyphs(0, glyphs.TRAIN_FONTS, 620).take(np.arange(620))[:, 0].astype(float)
    contrast = few.max((1, 2)) - few.min((1, 2))
    assert contrast.min() > 60
    # What is ink, of either contrast: the border holds hardly any.
    ground = np.median(few.reshape(620, -1), 1)[:, None, None]
    ink = np.abs(few - ground) > contrast[:, None, None] / 2
    edge = ink.copy()
    edge[:, 1:-1, 1:-1] = False
    assert edge.sum() < 0.01 * ink.sum()
    assert 0.03 < ink.mean() < 0.3
    # The mean ink of a class tells a full stop of light from a letter: I is thinner than W.
    by_class = ink.reshape(10, 62, -1).mean((0, 2))
    assert by_class[glyphs.CLASS_NAMES.index("I")] < 0.6 * by_class[glyphs.CLASS_NAMES.index("W")]
    assert images.shape == (1, 32, 32)


@pytest.mark.parametrize(("limit", "expected"), [(None, 50_000), (80_000, 80_000), (100, 100)])
def test_a_plan_knows_how_many_there_will_be(limit, expected):
    settings = PrepareSettings(dataset="glyphs", limit=limit)
    assert counted.counts(settings) == (expected, 10_000, 62)
    assert len(source(limit).train) == expected
    assert settings.image_size == 32
    assert settings.image_channels == 1
