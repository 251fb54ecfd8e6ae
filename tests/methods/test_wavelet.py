"""The wavelet score against closed forms, against pixel-space ridge, and against sampling."""

import itertools
import math
import random

import pytest
import torch

from stages.methods.solvers import solve
from stages.methods.wavelet import WaveletStatistics, first_pass, merge, second_pass
from stages.methods.wavelet.baselines import FullWiener
from stages.methods.wavelet.model import GIB, WaveletModel
from stages.methods.wavelet.neighbours import FAMILIES
from stages.methods.wavelet.response import band_centres, response_curves
from stages.methods.wavelet.ridge import choose_ridge
from tests.methods.wavelet_data import (
    collect_folds,
    gaussian_nodes,
    monte_carlo_risk,
    standardised_digits,
)

collect = WaveletStatistics.collect
NATURAL = {"independent": 3, "band-tied": 2, "local": 2, "additive": 3, "parent": 2, "full": 1}


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def skewed_images(n=60, channels=1, side=8, seed=0):
    """Smooth, skewed, dependent pixels and channels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, side, side, generator=generator, dtype=torch.float64)
    x = x + x.roll(1, -1) + x.roll(1, -2) + 2 * x.mean(1, keepdim=True)
    x = x / x.std()
    return 0.6 * (x + 0.3 * x**2)


@pytest.fixture(scope="module")
def digits():
    return standardised_digits()


# Closed forms


def test_the_scale_of_images_changes_nothing_but_units():
    """Images in tiny units vary as others do; only images that are alike are constant."""
    images = skewed_images()
    small = collect(1e-11 * images).at(0.5e-11)
    close(1e11 * small.denoise(1e-11 * images[:4]), collect(images).at(0.5).denoise(images[:4]))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_shards_that_do_not_vary_are_collected(scale):
    """Shards of one image, or of equal ones, add up to the statistics of all images."""
    images = scale * skewed_images(12)
    images[:, :, 0, 0] = 0.3 * scale  # with Haar, one level: coefficients that hardly vary
    images[3:6] = images[3]
    shards = [images[:1], images[1:3], images[3:6], *images[6:].split(1)]
    whole = collect(images, degree=3, wavelet="haar")
    merged = merge([collect(shard, degree=3, wavelet="haar") for shard in shards])
    close(merged.mean / scale, whole.mean / scale)
    close(merged.scale / scale, whole.scale / scale)
    sigma, y = 0.5 * scale, images[:4]
    close(merged.at(sigma).denoise(y) / scale, whole.at(sigma).denoise(y) / scale)
    rest = merged - collect(images[:1], degree=3, wavelet="haar")
    close(rest.moments, whole.of(images[1:]).moments)


def test_equal_shards_stay_equal():
    one, other = collect(skewed_images(1)), collect(skewed_images(1).expand(3, -1, -1, -1))
    assert (one + other).count == 4
    with pytest.raises(ValueError, match="all 4 are the same"):
        (one + other).at(0.5)


def test_arrays_are_scored_as_tensors_are():
    images = skewed_images()
    fitted, arrays = collect(images).at(0.5), images[:3].numpy()
    assert torch.equal(fitted.score(arrays), fitted.score(images[:3]))
    assert torch.equal(fitted.denoise(arrays), fitted.denoise(images[:3]))


@pytest.mark.parametrize("levels", [[0.5, 0.6], [0.5, 0.5, 0.5, 0.5], []])
def test_a_wrong_number_of_levels_is_refused(levels):
    denoiser, y = collect(skewed_images()).denoiser(), skewed_images(3)
    with pytest.raises(ValueError, match=f"{len(levels)} noise levels .* for 3 images"):
        denoiser(y, torch.tensor(levels))
    assert denoiser(y, torch.tensor([0.5, 0.6, 0.7])[:, None, None, None]).shape == y.shape
    assert torch.equal(denoiser(y, torch.tensor([0.5])), denoiser(y, 0.5))


@pytest.mark.parametrize(
    ("degree", "risk"), [(1, 1 / 2), (2, 1 / 2), (3, 6 / 13), (5, 0.45335085413929044)]
)
def test_two_point_data_have_their_closed_form(degree, risk):
    data = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    fitted = collect(data, "independent", degree, levels=0).at(1.0, ridge=0.0)
    assert fitted.risk() == pytest.approx(risk, abs=1e-12)
    if degree == 3:
        w = torch.linspace(-3, 3, 13, dtype=torch.float64)
        expected = -11 / 26 * w - (w**3 - 3 * w) / 26  # monic Hermite He_1 and He_3
        close(fitted.score(w.reshape(-1, 1, 1, 1)).flatten(), expected)


@pytest.mark.parametrize(("family", "degree"), [("local", 2), ("local", 3), ("additive", 3)])
def test_gaussian_data_give_the_linear_score_and_nothing_beyond(family, degree):
    """Two correlated pixels whose moments, to the sixth, are exactly Gaussian."""
    points = torch.cartesian_prod(gaussian_nodes(), gaussian_nodes())
    root = torch.tensor([[1.2, 0.0], [0.7, 0.4]], dtype=torch.float64)
    mean = torch.tensor([0.3, -1.0], dtype=torch.float64)
    data = (points @ root.T + mean).reshape(-1, 1, 1, 2)
    sigma = 0.6
    fitted = collect(data, family, degree, levels=0).at(sigma, ridge=0.0)
    order = [sum(n for _, n in term) for term in fitted.statistics.layout.features.terms]
    assert float(fitted.beta[..., torch.tensor(order) > 1].abs().max()) < 1e-10
    y = torch.randn(9, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    precision = torch.linalg.inv(root @ root.T + sigma**2 * torch.eye(2, dtype=torch.float64))
    close(fitted.score(y), -((y.flatten(1) - mean) @ precision).reshape(y.shape))


def test_gaussian_slope_of_one_coefficient():
    data = 0.8 * gaussian_nodes().reshape(-1, 1, 1, 1)
    fitted = collect(data, "independent", 3, levels=0).at(0.5, ridge=0.0)
    w = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)
    close(fitted.score(w), -w / (0.64 + 0.25))
    assert fitted.risk() == pytest.approx(0.64 * 0.25 / 0.89, abs=1e-10)


def test_digits_risks_are_the_published_ones(digits):
    train, held_out = digits
    known = {
        "independent": {0.5: 0.077585, 1.0: 0.162656, 2.0: 0.288060},
        "local": {0.5: 0.059525, 1.0: 0.133469, 2.0: 0.254654},
    }
    for family, risks in known.items():
        statistics = collect(train, family, degree=1)
        other = statistics.of(held_out)
        for sigma, risk in risks.items():
            assert statistics.at(sigma).risk(other) == pytest.approx(risk, abs=1e-6)


# Pixel-space ridge


def pixel_ridge(images, y, sigma, ridge):
    x = images.flatten(1)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    system = covariance + (sigma**2 + ridge) * torch.eye(x.shape[1], dtype=x.dtype)
    return -torch.linalg.solve(system, (y.flatten(1) - mean).T).T.reshape(y.shape)


@pytest.mark.parametrize("penalty", ["raw", "pixel"])
@pytest.mark.parametrize("coupled", [False, True])
def test_full_degree_one_equals_ridge_on_pixels(penalty, coupled):
    images = skewed_images(channels=2 if coupled else 1)
    y = images[:7] + 0.5 * skewed_images(7, images.shape[1], seed=1)
    statistics = collect(images, "full", 1, couple_channels=coupled)
    fitted = statistics.at(0.4, 0.03, penalty=penalty, centre="zero")
    expected = pixel_ridge(images, y, 0.4, 0.03)
    close(fitted.score(y), expected, 1e-12)
    default = statistics.at(0.4, 0.03).score(y)
    assert float((default - expected).abs().max()) > 1e-3  # by design


def test_biorthogonal_wavelets_equal_it_only_with_the_pixel_penalty():
    images, sigma, ridge = skewed_images(), 0.4, 0.03
    y = images[:7] + 0.5 * skewed_images(7, seed=1)
    expected = pixel_ridge(images, y, sigma, ridge)
    statistics = collect(images, "full", 1, "bior2.2", allow_biorthogonal=True)
    fitted = statistics.at(sigma, ridge, penalty="pixel", centre="zero")
    close(fitted.score(y), expected, 1e-12)
    raw = statistics.at(sigma, ridge, penalty="raw", centre="zero")
    assert float((raw.score(y) - expected).abs().max()) > 1e-3
    # Its risk is that in pixels: the same denoiser's in an orthonormal basis.
    same = collect(images, "full", 1).at(sigma, ridge, penalty="pixel", centre="zero")
    held_out = skewed_images(30, seed=2)
    assert fitted.risk() == pytest.approx(same.risk(), abs=1e-12)
    assert fitted.risk(held_out) == pytest.approx(same.risk(held_out), abs=1e-12)


def test_full_without_ridge_is_the_wiener_filter():
    images = skewed_images(200, side=4)
    y = images[:5] + skewed_images(5, side=4, seed=3)
    wiener = FullWiener.fit(images)
    fitted = collect(images, "full", 1, levels=1).at(0.7, 0.0)
    close(fitted.denoise(y), wiener(y, 0.7), 1e-11)
    held_out = skewed_images(50, side=4, seed=4)
    assert fitted.risk(held_out) == pytest.approx(wiener.risk(held_out, 0.7), abs=1e-12)


# Exact risk


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_risk_is_what_sampling_finds(family, digits):
    train, held_out = (x[:, :, 4:12, 4:12] for x in digits)
    statistics = collect(train, family, NATURAL[family])
    for sigma in (0.3, 1.0):
        fitted = statistics.at(sigma)
        sampled = monte_carlo_risk(
            lambda y, _, fitted=fitted: fitted.denoise(y),
            held_out,
            sigma,
            torch.Generator().manual_seed(5),
            num_draws=4,
        )
        assert abs(sampled.mean - fitted.risk(held_out)) < 3 * sampled.standard_error
        assert sampled.standard_error < 0.02 * sampled.mean


@pytest.mark.parametrize("family", ["band-tied", "local", "full"])
def test_coupled_channels_have_an_exact_risk_too_and_gain(family):
    train, held_out = skewed_images(400, 3, 4), skewed_images(400, 3, 4, seed=1)
    options = {"degree": 1, "wavelet": "haar", "levels": 1}
    coupled = collect(train, family, **options, couple_channels=True).at(0.5)
    sampled = monte_carlo_risk(
        lambda y, _: coupled.denoise(y),
        held_out,
        0.5,
        torch.Generator().manual_seed(5),
        num_draws=4,
    )
    risk = coupled.risk(held_out)
    assert abs(sampled.mean - risk) < 3 * sampled.standard_error
    assert risk < collect(train, family, **options).at(0.5).risk(held_out)


def test_more_features_never_raise_the_training_risk():
    images = skewed_images(200)
    risks = [
        collect(images, family, degree).at(0.5, 1e-9).risk()
        for family, degree in (("independent", 1), ("local", 1), ("local", 2), ("local", 3))
    ]
    assert all(a > b + 1e-6 for a, b in itertools.pairwise(risks))


# Ridge


def test_a_large_ridge_leaves_its_centre():
    images = skewed_images()
    y = images[:5] + 0.3
    fitted = collect(images).at(0.5, 1e9)
    basis = fitted.statistics.layout.basis
    wiener = -basis.adjoint((basis.analyse(y) - fitted.statistics.mean) / fitted.tau**2)
    close(fitted.score(y), wiener, 1e-6)
    # the intercept is free, and zero is the other centre
    close(collect(images).at(0.5, 1e9, centre="zero").score(y), torch.zeros_like(y), 1e-6)


def test_the_fitted_score_minimises_the_penalised_objective():
    """The risk plus sigma^4 ridge |beta - prior|^2 is stationary at beta, intercept unpenalised."""
    statistics = collect(skewed_images(), "band-tied", 2)
    fitted = statistics.at(0.5, 0.05)
    system = statistics.noisy(0.5)
    block = slice(0, statistics.layout.num_groups)
    gram, slopes = system.assemble(block)
    residual = fitted.beta @ gram + slopes
    penalty = 0.05 * (fitted.beta - system.wiener(block, gram)[0])
    penalty[..., 0] = 0
    close(residual, -penalty, 1e-12)


def test_ridge_by_subtraction_equals_refitting_on_the_rest():
    images, ridges = skewed_images(103), [1e-4, 1e-2, 1.0, 100.0]
    model = WaveletModel("local", 2)
    folds = collect_folds(images, model, 5)
    assert sum(fold.count for fold in folds) == 103
    choice = choose_ridge(folds, 0.5, ridges)
    reference = first_pass(images, model)
    risks = []
    for ridge in ridges:
        total = 0.0
        for i in range(5):
            held_out = images[i::5]
            rest = torch.cat([images[j::5] for j in range(5) if j != i])
            fitted = second_pass(rest, model, reference).at(0.5, ridge)
            total += len(held_out) / 103 * fitted.risk(held_out)
        risks.append(total)
    assert choice.risks == pytest.approx(risks, rel=1e-9)
    assert choice.ridge == ridges[risks.index(min(risks))]
    assert choice.ridge > 1e-4  # 103 images overfit 55 features


# Map and reduce


def test_shards_merge_bit_for_bit_in_order_whatever_order_they_came_in():
    images, model = skewed_images(101), WaveletModel("local", 2)
    shards = dict(enumerate(images.split(20)))

    def run(seed):
        order = list(shards)
        random.Random(seed).shuffle(order)
        firsts = {i: first_pass(shards[i], model) for i in order}
        reference = firsts[0]
        for i in sorted(firsts)[1:]:
            reference = reference + firsts[i]
        random.Random(seed + 1).shuffle(order)
        seconds = {i: second_pass(shards[i], model, reference) for i in order}
        return merge([seconds[i] for i in sorted(seconds)])

    one, other, whole = run(0), run(7), collect(images)
    for name in ("moments", "mean", "scale"):
        assert torch.equal(getattr(one, name), getattr(other, name))
        close(getattr(one, name), getattr(whole, name), 1e-9)
    assert one.count == other.count == 101
    assert torch.equal(one.at(0.5).beta, other.at(0.5).beta)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coupled", [False, True])
def test_statistics_collected_apart_add_to_those_of_all_images(family, coupled):
    """Each half has its own mean and scale: the sum moves both to the common ones."""
    images = skewed_images(90, 2)
    images[:40] = 0.5 * images[:40] + 1.0
    settings = {"family": family, "degree": NATURAL[family], "couple_channels": coupled}
    one, two = collect(images[:40], **settings), collect(images[40:], **settings)
    whole, total = collect(images, **settings), one + two
    assert total.count == 90
    for name in ("mean", "scale", "moments"):
        close(getattr(total, name) / 90, getattr(whole, name) / 90)
    close((total - two).about(one.mean, one.scale).moments / 40, one.moments / 40)
    again, direct = (total - two).coefficient_moments(), first_pass(images[:40], one.model)
    close(again.mean, direct.mean)
    close(again.squares, direct.squares)
    # Risks take statistics about any reference.
    assert whole.at(0.5).risk(two) == pytest.approx(whole.at(0.5).risk(images[40:]), abs=1e-10)


def test_statistics_of_biorthogonal_wavelets_add_too():
    images = skewed_images(90)
    settings = {"family": "full", "degree": 1, "wavelet": "bior2.2", "allow_biorthogonal": True}
    total = collect(images[:30], **settings) + collect(images[30:], **settings)
    close(total.moments / 90, collect(images, **settings).moments / 90)


def test_statistics_refuse_to_add_across_models():
    a = skewed_images(30)
    with pytest.raises(ValueError, match="do not go together"):
        collect(a) + collect(a, degree=1)
    with pytest.raises(ValueError, match="do not go together"):
        collect(a).at(0.5).risk(collect(a, degree=1))
    with pytest.raises(ValueError, match="subtract a shard"):
        collect(a) - collect(a)
    with pytest.raises(ValueError, match="at least one"):
        merge([])


def test_state_is_tensors_and_comes_back_the_same():
    statistics = collect(skewed_images(40, 3), "parent", 2, "sym4", 1, couple_channels=True)
    state = statistics.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = WaveletStatistics.from_state({key: value.clone() for key, value in state.items()})
    assert (again.model, again.shape, again.count) == (statistics.model, (3, 8, 8), 40)
    y = skewed_images(3, 3, seed=2)
    assert torch.equal(again.at(0.5).score(y), statistics.at(0.5).score(y))
    with pytest.raises(ValueError, match="lacks mean"):
        WaveletStatistics.from_state({k: v for k, v in state.items() if k != "mean"})
    with pytest.raises(ValueError, match="damaged"):
        WaveletStatistics.from_state({**state, "moments": state["moments"][:-1]})


# As a denoiser


def test_denoiser_keeps_its_levels_and_takes_one_per_sample():
    statistics = collect(skewed_images())
    denoiser = statistics.denoiser(ridge=0.1)
    y = skewed_images(3, seed=1)
    expected = statistics.at(0.5, 0.1).denoise(y)
    assert torch.equal(denoiser(y, 0.5), expected)
    assert torch.equal(denoiser(y, torch.tensor(0.5)), expected)
    assert list(denoiser.levels) == [0.5]
    assert denoiser.at(0.5) is denoiser.at(0.5)
    mixed = denoiser(y, torch.tensor([0.5, 2.0, 0.5]))
    close(mixed[[0, 2]], expected[[0, 2]], 1e-12)
    close(mixed[1:2], statistics.at(2.0, 0.1).denoise(y[1:2]), 1e-12)


def test_it_samples_a_gaussian_through_the_solvers():
    """The probability flow of the Wiener denoiser is linear: it ends at the data's covariance."""
    images = skewed_images(300, side=4)
    denoiser = collect(images, "full", 1, levels=1).denoiser(ridge=0.0)
    levels = torch.cat([torch.logspace(1.7, -2.5, 150, dtype=torch.float64), torch.zeros(1)])
    # Unit impulses and the origin follow the flow's linear map exactly: no sampling error.
    probes = torch.cat([torch.zeros(1, 16), torch.eye(16)]).double().reshape(-1, 1, 4, 4)
    ends = solve(denoiser, float(levels[0]) * probes, levels, solver="heun").flatten(1)
    linear = ends[1:] - ends[0]
    x = images.flatten(1) - images.flatten(1).mean(0)
    covariance = x.T @ x / len(x)
    error = linear.T @ linear - covariance
    assert float(error.norm() / covariance.norm()) < 0.02


def test_the_reach_keeps_the_polynomial_inside_and_the_wiener_slope_outside():
    statistics = collect(skewed_images(), "local", 3)
    fitted = statistics.at(0.5)
    guarded = statistics.denoiser().at(0.5)
    assert statistics.denoiser(reach=math.inf).at(0.5).reach == math.inf
    assert collect(skewed_images(), degree=2).denoiser().at(0.5).reach == math.inf
    mean, tau = statistics.mean, fitted.tau
    inside = mean + 3.9 * tau * skewed_images(5, seed=1).flatten(1).clamp(-1, 1)
    assert torch.equal(guarded.coefficient_score(inside), fitted.coefficient_score(inside))
    edge, far = mean[None].repeat(2, 1)
    edge[7] += 4 * tau[7]
    far[7] += 14 * tau[7]
    edge, far = guarded.coefficient_score(torch.stack([edge, far]))
    expected = edge.clone()
    expected[7] -= 10 / tau[7]
    close(far, expected)
    with pytest.raises(ValueError, match="reach must be above 0"):
        statistics.denoiser(reach=0.0)


def test_cubic_scores_sample_without_diverging(digits):
    statistics = collect(digits[0], "independent", 3)
    levels = torch.cat([torch.logspace(1.9, -1.7, 40, dtype=torch.float64), torch.zeros(1)])
    noise = torch.randn(300, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    samples = solve(statistics.denoiser(), float(levels[0]) * noise, levels)
    assert float(samples.abs().max()) < 2 * float(digits[0].abs().max())
    with pytest.raises(FloatingPointError):
        solve(statistics.denoiser(reach=math.inf), float(levels[0]) * noise, levels)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_denoiser_is_differentiable_both_ways(family):
    fitted = collect(skewed_images(80), family, NATURAL[family]).at(0.5)
    y, v, u = (skewed_images(2, seed=seed) for seed in (1, 2, 3))
    _, forward = torch.func.jvp(fitted.denoise, (y,), (v,))
    _, pull = torch.func.vjp(fitted.denoise, y)
    step = 1e-5
    expected = (fitted.denoise(y + step * v) - fitted.denoise(y - step * v)) / (2 * step)
    close(forward, expected, 1e-7)
    close((pull(u)[0] * v).sum(), (u * forward).sum(), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_scores_come_in_the_type_of_their_images(dtype, tolerance):
    fitted = collect(skewed_images()).at(0.5)
    y = skewed_images(3, seed=1).to(dtype)
    assert fitted.denoise(y).dtype == dtype
    close(fitted.denoise(y).double(), fitted.denoise(y.double()), tolerance)


def test_response_curves_show_the_polynomial_beside_the_line():
    data = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    fitted = collect(data, "independent", 3, levels=0).at(1.0, 0.0)
    curves = response_curves(fitted, [0])
    close(curves.score, -11 / 26 * curves.w - (curves.w**3 - 3 * curves.w) / 26)
    close(curves.linear, -curves.w / 2)
    close(curves.shrinkage, curves.w + curves.score)
    assert float(curves.w.max()) == pytest.approx(4 * 2**0.5)
    wide = collect(skewed_images(80, 2)).at(0.5)
    centres = band_centres(wide, channel=1)
    curves = response_curves(wide, centres.values(), num_points=7)
    assert curves.score.shape == (7, 7)
    w = wide.statistics.mean.clone()
    w[centres["H1"]] = curves.w[4, 2]
    close(curves.score[4, 2], wide.coefficient_score(w[None])[0, centres["H1"]], 1e-12)


# Bad input


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_levels_must_be_positive(sigma):
    statistics = collect(skewed_images())
    with pytest.raises(ValueError, match="sigma must be above 0"):
        statistics.at(sigma)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        statistics.denoiser()(skewed_images(2), sigma)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="images do not vary"):
        collect(torch.full((20, 1, 8, 8), 0.1)).at(0.5)
    with pytest.raises(ValueError, match="images do not vary"):
        collect(skewed_images(1)).denoiser()(skewed_images(2), 0.5)
    with pytest.raises(ValueError, match="images do not vary"):
        first_pass(skewed_images(1).expand(4, -1, -1, -1), WaveletModel()).check_varies()
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        collect(skewed_images()[:, 0])
    with pytest.raises(ValueError, match="floating point"):
        collect(torch.ones(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="not finite"):
        collect(torch.full((4, 1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="height 10 is not divisible"):
        collect(skewed_images(side=10))
    with pytest.raises(ValueError, match="do not fit statistics"):
        collect(skewed_images()).at(0.5).score(skewed_images(side=4))


def test_coefficients_that_never_vary_are_harmless():
    """Flat images: every detail is constant, and its exact score is that of the noise alone."""
    values = skewed_images(50, side=1)
    flat = values.expand(-1, 1, 8, 8)
    fitted = collect(flat).at(0.5)
    y = flat[:5] + skewed_images(5, seed=1)
    assert fitted.denoise(y).isfinite().all()
    assert fitted.risk() < 0.25 / 15
    assert fitted.risk(flat + 0.1 * skewed_images(50, seed=2)) < 0.25


def test_missing_neighbours_are_harmless_without_a_ridge():
    """The approximation is alone in a band-tied triple: its score is that of `independent`."""
    images = skewed_images(80)
    tied, alone = (
        collect(images, family, 2).at(0.5, 0.0) for family in ("band-tied", "independent")
    )
    w = tied.statistics.layout.basis.analyse(skewed_images(5, seed=1))
    close(tied.coefficient_score(w)[:, :4], alone.coefficient_score(w)[:, :4], 1e-12)
    assert float((tied.coefficient_score(w) - alone.coefficient_score(w)).abs().max()) > 1e-3


def test_bad_settings_name_the_remedy():
    images = skewed_images(10)
    cases = [
        ({"family": "locl"}, "did you mean 'local'"),
        ({"degree": 0}, "degree must be a whole number"),
        ({"degree": 2.0}, "degree must be a whole number"),
        ({"family": "full"}, "pass degree=1"),
        ({"wavelet": "db99"}, "did you mean"),
        ({"wavelet": "bior2.2"}, "allow_biorthogonal=True"),
        ({"wavelet": "dmey"}, "not orthonormal"),
        ({"wavelet": "bior2.2", "allow_biorthogonal": True}, "family='full'"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            collect(images, **settings)
    statistics = collect(images)
    with pytest.raises(ValueError, match="ridge must be 0 or above"):
        statistics.at(0.5, -1.0)
    with pytest.raises(ValueError, match="degree 1 only"):
        statistics.at(0.5, penalty="raw")
    with pytest.raises(ValueError, match="penalty 'l1' is unknown"):
        statistics.at(0.5, penalty="l1")
    with pytest.raises(ValueError, match="needs family 'full'"):
        collect(images, degree=1).at(0.5, penalty="pixel")


def test_memory_is_predicted_before_the_fit():
    big = torch.zeros(5, 3, 64, 64)
    with pytest.raises(ValueError, match="What fits instead: family='local', degree=2") as error:
        collect(big, degree=3)
    assert "5.10 GiB" in str(error.value)  # 12,288 groups of 220 x 220 float64 and buffers
    with pytest.raises(ValueError, match="only smaller images; or raise max_bytes"):
        collect(big, max_bytes=1000)
    with pytest.raises(ValueError, match=r"degree=2 .*GiB"):
        WaveletModel(degree=3).check_memory((1, 64, 64), copies=7)
    WaveletModel(degree=3).check_memory((1, 64, 64))  # 1.6 GiB


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coupled", [False, True])
def test_the_predicted_size_is_that_of_the_statistics(family, coupled):
    statistics = collect(
        skewed_images(4, 3), family, NATURAL[family], couple_channels=coupled, max_bytes=8 * GIB
    )
    predicted = statistics.model.statistics_bytes((3, 8, 8))
    assert predicted == statistics.moments.numel() * 8
