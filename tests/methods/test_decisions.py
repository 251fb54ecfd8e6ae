"""Decisions at 95 %: known quantiles, and false decisions counted."""

import math

import numpy as np
import pytest

from stages.methods import decisions


def test_quantiles_are_students():
    assert decisions.quantile() == pytest.approx(1.959964, abs=1e-6)
    for degrees, expected in ((2, 4.3027), (3, 3.1824), (4, 2.7764)):
        assert decisions.quantile(degrees) == pytest.approx(expected, abs=1e-4)


def test_probabilities_meet_quantiles():
    for degrees in (2, 7, math.inf):
        at = decisions.quantile(degrees)
        assert decisions.probability(0.3 * at, 0.3, degrees) == pytest.approx(0.05)
        assert decisions.probability(-0.3 * at, 0.3, degrees) == pytest.approx(0.05)
    assert decisions.probability(0.1, 0.0) == 0
    assert decisions.probability(0.0, 0.0) == 1


def test_welch_lies_between_its_parts():
    error, degrees = decisions.welch([3.0, 4.0], [2, 2])
    assert error == 5
    assert degrees == pytest.approx(25**2 / (81 / 2 + 256 / 2))
    assert decisions.welch([3.0, 4.0], [math.inf, math.inf])[1] == math.inf
    assert decisions.welch([1e-9, 1.0], [2, math.inf])[1] > 1e6


@pytest.mark.parametrize(("seeds", "by_two"), [(2, 0.295), (3, 0.184), (5, 0.116)])
def test_false_decisions_of_few_seeds(seeds, by_two):
    """Where nothing is true 5 % are decided, and "2 standard errors" decides many more."""
    draws = np.random.default_rng(0).normal(size=(20_000, seeds))
    found = [decisions.over_seeds(row) for row in draws]
    own = np.mean([abs(m) > decisions.quantile(d) * e for m, e, d in found])
    assert own == pytest.approx(0.05, abs=0.006)
    assert np.mean([abs(m) > 2 * e for m, e, _ in found]) == pytest.approx(by_two, abs=0.01)


def test_holm_keeps_the_chance_of_any_false_decision():
    assert decisions.holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert decisions.holm([]) == []
    draws = np.random.default_rng(1).uniform(size=(4000, 20))
    assert np.mean([any(decisions.holm(list(row))) for row in draws]) == pytest.approx(
        0.05, abs=0.012
    )
    assert decisions.holm([1e-9] * 20) == [True] * 20


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="1 value has no spread"):
        decisions.over_seeds([1.0])
