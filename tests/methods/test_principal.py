"""The principal family against closed forms, against another family, and against sampling."""

import pytest
import torch

from stages.methods import table
from stages.methods.grids import edm
from stages.methods.solvers import solve
from stages.methods.wavelet import WaveletStatistics, first_pass, merge, second_pass
from stages.methods.wavelet.baselines import FullWiener
from stages.methods.wavelet.model import GIB, WaveletModel
from stages.methods.wavelet.ridge import choose_principal, choose_ridge
from tests.methods.wavelet_data import (
    collect_folds,
    gaussian_nodes,
    monte_carlo_risk,
    standardised_digits,
)

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
SIGMAS = (0.5, 1.0, 2.0)
SUMS = ("moments", "cross", "squares")


def collect(images, degree=3, **options):
    return WaveletStatistics.collect(images, "principal", degree, **options)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def digits():
    """At 8x8: training and held-out images, and three folds of statistics."""
    train, held_out = standardised_digits(8)
    return train, held_out, collect_folds(train, WaveletModel("principal", 3), 3)


def held_out_risks(train, held_out, folds):
    """(Wiener, principal with the ridge of the folds) at every sigma."""
    wiener, total = FullWiener.fit(train), merge(folds)
    others, found = total.of(held_out), []
    for sigma in SIGMAS:
        ridge = choose_ridge(folds, sigma, RIDGES).ridge
        found.append((wiener.risk(held_out, sigma), total.at(sigma, ridge).risk(others)))
    return found


@pytest.mark.parametrize(
    ("side", "known"),
    [
        (8, [(0.0958, 0.0799), (0.2060, 0.1690), (0.3474, 0.3189)]),
        (16, [(0.0328, 0.0299), (0.0862, 0.0711), (0.1874, 0.1525)]),
    ],
)
def test_digits_risks_are_the_known_ones(digits, side, known):
    parts = digits
    if side != 8:
        train, held_out = standardised_digits(side)
        parts = train, held_out, collect_folds(train, WaveletModel("principal", 3), 3)
    for found, expected in zip(held_out_risks(*parts), known, strict=True):
        assert found == pytest.approx(expected, rel=0.005)


def test_the_exact_risk_is_what_sampling_finds(digits):
    train, held_out, _ = digits
    fitted = collect(train).at(1.0, 0.1)
    sampled = monte_carlo_risk(
        lambda y, _: fitted.denoise(y), held_out, 1.0, torch.Generator().manual_seed(5), 8
    )
    assert abs(sampled.mean - fitted.risk(held_out)) < 3 * sampled.standard_error
    assert sampled.standard_error < 0.01 * sampled.mean


def test_two_point_data_have_their_closed_form():
    data = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    fitted = collect(data, components=1).at(1.0, ridge=0.0)
    assert fitted.risk() == pytest.approx(6 / 13, abs=1e-12)
    w = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = -11 / 26 * w - (w**3 - 3 * w) / 26
    close(fitted.score(w.reshape(-1, 1, 1, 1)).flatten(), expected)


def test_gaussian_data_give_the_wiener_score_and_nothing_beyond():
    points = torch.cartesian_prod(gaussian_nodes(), gaussian_nodes())
    root = torch.tensor([[1.2, 0.0], [0.7, 0.4]], dtype=torch.float64)
    data = (points @ root.T + 0.3).reshape(-1, 1, 1, 2)
    fitted = collect(data, components=2).at(0.6, ridge=0.0)
    assert float(fitted.delta.abs().max()) < 1e-10
    close(fitted.denoise(data[:9]), FullWiener.fit(data)(data[:9], 0.6))


def test_polynomials_do_not_depend_on_how_their_plane_is_turned():
    """Of two pixels, all of them leading, without a ridge: what family `local` gives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    data = torch.stack([x[:, 0] + 0.4 * x[:, 0] ** 2, x[:, 1] + x[:, 0] ** 3 / 9], 1)
    data, y = data.reshape(-1, 1, 1, 2), torch.randn(9, 1, 1, 2, generator=generator).double()
    ours = collect(data, components=2).at(0.5, 0.0)
    theirs = WaveletStatistics.collect(data, "local", 3, levels=0).at(0.5, 0.0)
    close(ours.score(y), theirs.score(y), 1e-9)
    assert ours.risk(data[:40]) == pytest.approx(theirs.risk(data[:40]), abs=1e-10)


def test_a_large_ridge_leaves_the_wiener_filter(digits):
    train, held_out, _ = digits
    fitted, wiener = collect(train).at(1.0, 1e9), FullWiener.fit(train)
    close(fitted.denoise(held_out), wiener(held_out, 1.0), 1e-6)
    assert fitted.risk(held_out) == pytest.approx(wiener.risk(held_out, 1.0), rel=1e-7)


def test_the_fitted_score_minimises_its_penalised_risk(digits):
    """Risk plus sigma^4 ridge |delta|^2 without the intercept, along random changes of delta."""
    train, _, _ = digits
    statistics, sigma, ridge = collect(train, 2, components=3), 0.7, 0.05
    fitted = statistics.at(sigma, ridge)
    change = torch.randn(fitted.delta.shape, generator=torch.Generator().manual_seed(0)).double()

    def objective(step):
        moved = type(fitted)(statistics, sigma, ridge, fitted.delta + step * change)
        penalty = sigma**4 * ridge * (moved.delta[:, 1:] ** 2).sum()
        return float(moved.coefficient_risk().sum() + penalty)

    slope, curvature = objective(1) - objective(-1), objective(1) + objective(-1) - 2 * objective(0)
    assert abs(slope) < 1e-9 * curvature


def test_shards_add_up_bit_for_bit_and_to_the_whole(digits):
    images, model = digits[0][:101], WaveletModel("principal", 3)
    shards = images.split(20)
    reference = first_pass(shards[0], model)
    for shard in shards[1:]:
        reference = reference + first_pass(shard, model)
    one, other = (merge([second_pass(s, model, reference) for s in shards]) for _ in range(2))
    whole = collect(images)
    for name in SUMS:
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.count == whole.count == 101
    y = images[:5]
    close(one.at(0.5).denoise(y), whole.at(0.5).denoise(y), 1e-9)
    rest = one - second_pass(shards[0], model, reference)
    for name in SUMS:
        close(getattr(rest, name), getattr(one.of(images[20:]), name), 1e-7)


def test_statistics_about_two_bases_do_not_add(digits):
    one, two = collect(digits[0][:50]), collect(digits[0][50:100])
    with pytest.raises(ValueError, match="two principal bases do not add up: make both about one"):
        one + two
    assert (one + one.of(digits[0][50:100])).count == 100
    with pytest.raises(ValueError, match="do not go together"):
        one + collect(digits[0][:50], components=4)
    with pytest.raises(ValueError, match="cannot subtract"):
        one - one


def test_a_smaller_model_is_a_part_of_the_statistics(digits):
    train = digits[0][:300]
    part, small = collect(train).restricted(4, 2), collect(train, 2, components=4)
    for name in SUMS:
        torch.testing.assert_close(getattr(part, name), getattr(small, name), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="collect the larger model"):
        small.restricted(5, 2)


def test_folds_choose_size_and_ridge(digits):
    train, _, folds = digits
    choice = choose_principal(folds, SIGMAS, RIDGES, (2, 10), (1, 3))
    assert (choice.components, choice.degree) == (10, 3)
    assert set(choice.risks) == {(2, 1), (2, 3), (10, 1), (10, 3)}
    assert choice.ridges == tuple(choose_ridge(folds, s, RIDGES).ridge for s in SIGMAS)
    few = [fold.of(train[i:30:3]) for i, fold in enumerate(folds)]
    assert (
        choose_principal(few, SIGMAS, RIDGES, (2, 10), (1, 3)).ridges[0] >= 0.3
    )  # they overfit sooner


def test_a_state_gives_the_statistics_again(digits):
    statistics = collect(digits[0][:60], components=4)
    again = WaveletStatistics.from_state(statistics.state())
    y = digits[1][:4]
    assert torch.equal(again.at(0.5).denoise(y), statistics.at(0.5).denoise(y))
    with pytest.raises(ValueError, match="state lacks cross"):
        WaveletStatistics.from_state({k: v for k, v in again.state().items() if k != "cross"})
    with pytest.raises(ValueError, match="damaged or of another version"):
        WaveletStatistics.from_state(again.state() | {"cross": again.cross[:3]})


@pytest.mark.parametrize("solver", table.PLAIN_SOLVERS)
def test_it_is_a_denoiser_in_every_solver(digits, solver):
    """Samples lie nearer to the digits than those of the Wiener filter, which are Gaussian."""
    train = digits[0]
    denoiser, s_max = merge(digits[2]).denoiser(0.1), 20.0
    z = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    found = solve(denoiser, s_max * z, edm(12, s_max, 0.05), solver)
    assert found.abs().max() < 2 * train.abs().max()
    plain = solve(FullWiener.fit(train), s_max * z, edm(12, s_max, 0.05), solver)
    near, far = (torch.cdist(x.flatten(1), train.flatten(1)).amin(1).mean() for x in (found, plain))
    assert near < far


def test_the_models_settings_are_checked():
    for options, words in (
        ({"components": 0}, "components must be at least 1"),
        ({"components": 2.5}, "components must be a whole number"),
        ({"couple_channels": True}, "of all channels together"),
    ):
        with pytest.raises(ValueError, match=words):
            WaveletModel("principal", 2, **options)
    with pytest.raises(ValueError, match="components=4 needs family='principal'"):
        WaveletModel("local", 2, components=4)
    with pytest.raises(ValueError, match="components=10 is above the 4 pixels"):
        collect(torch.randn(9, 1, 2, 2))
    with pytest.raises(ValueError, match="What fits instead: family='principal'"):
        collect(torch.randn(9, 1, 8, 8), components=40, max_bytes=GIB // 2)
    statistics = collect(torch.ones(5, 1, 8, 8))
    with pytest.raises(ValueError, match="all 5 are the same"):
        statistics.at(0.5)
