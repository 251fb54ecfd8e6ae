"""Errors of functions of scores: paired sample by sample, or added as of independent sets."""

import math

import numpy as np
import pytest

from stages.methods.effects import INDEPENDENT, PAIRED, PARTLY, combined
from stages.methods.protocol import Influence, Protocol, Score

PROTOCOL = Protocol(
    name="p",
    extractor="e",
    extractor_hash="h",
    resize="none",
    reference="r",
    num_reference=100,
    num_samples=400,
)
LABELS = np.arange(400) % 4


def score(values, samples="noise 0", network="a", **more):
    """The mean of values, labels in fixed shares."""
    psi = (values - values.mean()).astype(np.float32)
    influence = Influence(psi, LABELS, samples, network)
    error = combined([(1.0, _score(1.0, 0.0, influence))]).error
    return _score(values.mean(), error, influence, **more)


def _score(value, error, influence=None, kind="influence", **more):
    return Score(
        metric="fid",
        value=value,
        protocol=PROTOCOL,
        error=error,
        error_kind=kind,
        influence=influence,
        **more,
    )


def draws(seed=0):
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=400) + 3 * LABELS
    return 10 + shared, 9 + shared + 0.1 * generator.normal(size=400)


def test_what_paired_sets_share_cancels():
    a, b = (score(values) for values in draws())
    found = combined([(1.0, a), (-1.0, b)])
    assert found.kind == PAIRED
    assert found.error == pytest.approx(0.1 / 20, rel=0.15)
    # Labels in fixed shares are strata: their means are no error.
    assert a.error == pytest.approx(1 / 20, rel=0.15)


def test_other_noise_is_independent():
    a, b = draws()[0], draws(1)[0]
    one, other = score(a), score(b, samples="noise 1")
    found = combined([(1.0, one), (-1.0, other)])
    assert found.kind == INDEPENDENT
    assert found.error == pytest.approx(math.hypot(one.error, other.error), rel=1e-6)
    mixed = combined([(1.0, score(draws()[0])), (-0.5, score(draws()[1])), (-0.5, other)])
    assert mixed.kind == PARTLY


def test_a_log_ratio_has_the_error_of_repeated_draws():
    logs, errors = [], []
    for seed in range(200):
        a, b = (score(values) for values in draws(seed))
        logs.append(math.log(a.value / b.value))
        errors.append(combined([(1 / a.value, a), (-1 / b.value, b)]).error)
    assert np.mean(errors) == pytest.approx(np.std(logs, ddof=1), rel=0.15)


def test_kinds_that_mix_have_welchs_degrees_of_freedom():
    seeds = _score(1.0, 0.3, kind="seeds", num_seeds=3)
    both = combined([(1.0, seeds), (-1.0, _score(2.0, 0.3, kind="jackknife"))])
    assert both.error == pytest.approx(0.3 * math.sqrt(2))
    assert both.degrees == pytest.approx(8)  # (2 s^2)^2 / (s^4 / 2)
    assert math.isinf(combined([(1.0, score(draws()[0]))]).degrees)


def test_an_unknown_error_leaves_all_unknown_and_networks_are_counted():
    a, b = draws()
    none = _score(1.0, None, kind="none")
    assert combined([(1.0, score(a)), (-1.0, none)]).error is None
    assert combined([(1.0, score(a)), (-1.0, score(b, network="b"))]).networks == 2
    assert combined([(1.0, score(a)), (-1.0, score(b))]).networks == 1


def test_none_seen_has_the_error_of_its_bound():
    empty = score(np.zeros(400), at_most=0.0075)
    some = score((np.arange(400) < 40).astype(float))
    found = combined([(1.0, some), (-1.0, empty)])
    assert found.error == pytest.approx(math.hypot(some.error, 0.0075 / 1.96), rel=1e-4)
