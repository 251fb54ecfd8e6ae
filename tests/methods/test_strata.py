"""Labels in fixed shares, and the bound of a share of which nothing was seen."""

import numpy as np
import pytest

from stages.methods import strata

DIGITS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("counts", [DIGITS, [1000 // (1 + i) for i in range(100)], [5, 0, 1]])
def test_any_first_samples_have_the_shares(counts):
    labels = strata.in_turn(counts, 1000)
    shares = np.array(counts) / sum(counts)
    along = np.cumsum(labels[:, None] == np.arange(len(counts)), axis=0)
    assert np.abs(along - np.arange(1, 1001)[:, None] * shares).max() < 1
    assert np.array_equal(strata.in_turn(counts, 130), labels[:130])


def test_equal_counts_take_turns():
    assert strata.in_turn([7, 7, 7], 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="give images of each label"):
        strata.in_turn(counts, 4)


def test_none_among_n():
    assert strata.at_most(1000) == pytest.approx(3 / 1000, rel=0.01)
    assert strata.at_most(1) == pytest.approx(0.95)
    with pytest.raises(ValueError, match="n is 0"):
        strata.at_most(0)


def test_places_are_drawn_by_label():
    labels = np.array([0, 1, 1, 2, 1, 0, 2, 2])
    found = strata.drawn(labels, np.array([1, 2, 9]), np.random.default_rng(0))
    assert np.bincount(labels[found]).tolist() == [1, 2, 3]  # of the last there are but three
    assert len(set(found.tolist())) == len(found)
