"""The residual family: its parts against those of other families, and its risk against sampling."""

import pytest
import torch

from stages.methods.wavelet import WaveletStatistics, first_pass, merge, second_pass
from stages.methods.wavelet.baselines import FullWiener
from stages.methods.wavelet.model import WaveletModel
from stages.methods.wavelet.response import band_centres, response_curves
from stages.methods.wavelet.ridge import choose_ridge
from tests.methods.wavelet_data import (
    collect_folds,
    gaussian_nodes,
    monte_carlo_risk,
    photograph_patches,
    standardised_digits,
)

SUMS = ("moments", "cross", "products")


def collect(images, degree=3, **options):
    return WaveletStatistics.collect(images, "residual", degree, **options)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def digits():
    return standardised_digits(8)


@pytest.fixture(scope="module")
def statistics(digits):
    return collect(digits[0])


def test_a_large_ridge_leaves_the_wiener_filter(digits, statistics):
    train, held_out = digits
    fitted, wiener = statistics.at(1.0, 1e9), FullWiener.fit(train)
    close(fitted.denoise(held_out), wiener(held_out, 1.0), 1e-6)
    assert fitted.risk(held_out) == pytest.approx(wiener.risk(held_out, 1.0), rel=1e-6)


def test_gaussian_data_give_the_wiener_score_and_nothing_beyond():
    points = torch.cartesian_prod(gaussian_nodes(), gaussian_nodes())
    root = torch.tensor([[1.2, 0.0], [0.7, 0.4]], dtype=torch.float64)
    data = (points @ root.T + 0.3).reshape(-1, 1, 1, 2)
    fitted = collect(data, levels=0).at(0.6, ridge=0.0)
    assert float(fitted.delta.abs().max()) < 1e-9
    close(fitted.denoise(data[:9]), FullWiener.fit(data)(data[:9], 0.6), 1e-9)


def test_of_few_coefficients_it_is_the_additive_family():
    """Where the square holds all coefficients, and without a ridge, the Wiener score is one of the
    additive scores."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    data = (x + 0.4 * x**2 + x.roll(1, 1)).reshape(-1, 1, 2, 2)
    y = torch.randn(9, 1, 2, 2, generator=generator).double()
    ours = collect(data, levels=0).at(0.5, 0.0)
    theirs = WaveletStatistics.collect(data, "additive", 3, levels=0).at(0.5, 0.0)
    close(ours.denoise(y), theirs.denoise(y), 1e-8)
    assert ours.risk(data[:40]) == pytest.approx(theirs.risk(data[:40]), abs=1e-9)


def test_the_exact_risk_is_what_sampling_finds(digits, statistics):
    held_out, fitted = digits[1], statistics.at(0.7, 0.01)
    sampled = monte_carlo_risk(
        lambda y, _: fitted.denoise(y), held_out, 0.7, torch.Generator().manual_seed(5), 8
    )
    assert abs(sampled.mean - fitted.risk(held_out)) < 3 * sampled.standard_error
    assert sampled.standard_error < 0.01 * sampled.mean
    assert fitted.risk(held_out) < 0.995 * FullWiener.fit(digits[0]).risk(held_out, 0.7)


def test_shards_add_up_to_the_whole_and_come_back_from_their_state(digits, statistics):
    images, model = digits[0][:101], WaveletModel("residual", 2)
    reference = first_pass(images, model)
    one = merge([second_pass(shard, model, reference) for shard in images.split(20)])
    whole = collect(images, 2)
    for name in SUMS:
        close(getattr(one, name), getattr(whole, name), 1e-8)
    rest = one - second_pass(images[:20], model, reference)
    close(rest.moments, one.of(images[20:]).moments, 1e-8)
    again = WaveletStatistics.from_state(one.state())
    assert torch.equal(again.at(0.5).denoise(images[:4]), one.at(0.5).denoise(images[:4]))
    with pytest.raises(ValueError, match="about two covariances do not add up"):
        one + collect(images[:50], 2)
    with pytest.raises(ValueError, match="do not go together"):
        one + statistics
    with pytest.raises(ValueError, match="cannot subtract"):
        one - one
    with pytest.raises(ValueError, match="state lacks cross"):
        WaveletStatistics.from_state({k: v for k, v in one.state().items() if k != "cross"})


def test_responses_are_slices_of_the_score(statistics):
    fitted = statistics.at(0.5)
    (centre,) = (band_centres(fitted)["H1"],)
    curves = response_curves(fitted, [centre], num_points=3)
    points = statistics.mean.repeat(3, 1)
    points[:, centre] = curves.w[0]
    close(curves.score[0], fitted.coefficient_score(points)[:, centre])


def test_on_photographs_it_is_below_the_wiener_filter_and_the_additive_family():
    """At every level below the one, and from 0.5 on below the other."""
    train, held_out = photograph_patches(8, 1500, 300)
    folds = collect_folds(train, WaveletModel("residual", 3), 3)
    total, wiener = merge(folds), FullWiener.fit(train)
    additive = WaveletStatistics.collect(train, "additive", 3)
    for sigma in (0.25, 1.0, 4.0):
        ridge = choose_ridge(folds, sigma, (0.01, 0.1, 1.0)).ridge
        found = total.at(sigma, ridge).risk(held_out)
        assert found < wiener.risk(held_out, sigma)
        assert sigma < 0.5 or found < additive.at(sigma).risk(held_out)
