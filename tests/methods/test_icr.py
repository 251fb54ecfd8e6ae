"""ICR against Gaussians whose ratio is known, and the guards against bad input."""

import pytest
import torch

from stages.methods.icr import ViewMoments, icr, merge

TRUE_RATIO = 0.754


def gaussian_views(num_images, num_views, ratios, seed, dtype=torch.float64):
    """Features with Sigma_xi = I and Sigma_s = diag(ratios)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, num_views, len(ratios))
    signal = torch.randn(num_images, 1, len(ratios), generator=generator, dtype=dtype)
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    return signal * ratios.to(dtype).sqrt() + noise


def spread_ratios(dimension=32, value=TRUE_RATIO):
    """Eigenvalues lambda, a factor of nine apart, whose ICR is `value`."""
    ratios = torch.linspace(0.2, 1.8, dimension, dtype=torch.float64)
    return ratios * (1 / value - 1)


@pytest.mark.filterwarnings("ignore:ICR from few degrees")
@pytest.mark.parametrize(
    ("num_views", "num_images", "naive"), [(2, 64, 0.366), (4, 16, 0.351), (8, 256, 0.687)]
)
def test_unbiased_where_the_naive_form_is_not(num_views, num_images, naive):
    runs = [
        icr(gaussian_views(num_images, num_views, spread_ratios(), seed), tau=1e-3)
        for seed in range(60)
    ]
    mean = torch.tensor([run.mean_snr for run in runs])
    standard_error = mean.std() / len(runs) ** 0.5
    assert abs(mean.mean() - (1 / TRUE_RATIO - 1)) < 3 * standard_error + 1e-3
    assert sum(run.value for run in runs) / len(runs) == pytest.approx(TRUE_RATIO, abs=0.012)
    assert sum(run.naive_value for run in runs) / len(runs) == pytest.approx(naive, abs=0.012)


def test_traces_estimate_the_covariances():
    ratios = spread_ratios()
    traces = icr(gaussian_views(4000, 3, ratios, seed=0)).traces
    signal, noise = ratios.sum().item(), 32.0
    assert traces.signal == pytest.approx(signal, rel=0.03)
    assert traces.noise == pytest.approx(noise, rel=0.03)
    assert traces.between == pytest.approx(signal + noise / 3, rel=0.03)


def test_equals_the_definition_by_generalised_eigenvalues():
    import scipy.linalg

    features = gaussian_views(60, 3, spread_ratios(6), seed=1)
    n, V, d = features.shape
    means = features.mean(1)
    within = (features - means[:, None]).reshape(-1, d)
    sigma_xi = (within.T @ within / (n * (V - 1))).numpy()
    between = torch.cov(means.T).numpy()
    eigenvalues = scipy.linalg.eigh(between, sigma_xi, eigvals_only=True)
    f = n * (V - 1)
    found = icr(features, tau=0)
    assert found.naive_value == pytest.approx(1 / (1 + eigenvalues.mean()), rel=1e-12)
    expected = (f - d - 1) / f * eigenvalues - 1 / V
    assert found.value == pytest.approx(1 / (1 + expected.mean()), rel=1e-12)


def test_invariant_to_invertible_maps_without_tau():
    features = gaussian_views(64, 4, spread_ratios(), seed=3)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        mix = torch.randn(32, 32, generator=generator, dtype=torch.float64)
        shift = torch.randn(32, generator=generator, dtype=torch.float64)
        mapped, plain = icr(features @ mix + 100 * shift, tau=0), icr(features, tau=0)
        assert mapped.value == pytest.approx(plain.value, abs=1e-6)
        assert mapped.naive_value == pytest.approx(plain.naive_value, abs=1e-6)


def test_default_tau_scales_with_the_features():
    features = gaussian_views(64, 4, spread_ratios(), seed=3)
    assert icr(1e-5 * features).value == pytest.approx(icr(features).value, rel=1e-9)


def test_shards_merge_exactly_despite_a_large_offset():
    plain = gaussian_views(300, 6, spread_ratios(), seed=5)
    features = plain + 1e4
    reference = features[0, 0]
    shards = [ViewMoments.collect(part, reference) for part in features.split([7, 100, 1, 192])]
    merged, whole = merge(shards).icr(), icr(features)
    for name in ("value", "mean_snr", "naive_value"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert tuple(merged.traces) == pytest.approx(tuple(whole.traces), rel=1e-12)
    assert whole.value == pytest.approx(icr(plain).value, rel=1e-9)
    assert merge(shards).icr() == merged, "the same order must give the same bits"


def test_shards_with_their_own_references_merge_too():
    features = gaussian_views(300, 6, spread_ratios(), seed=5) + 1e4
    merged = merge([ViewMoments.collect(part) for part in features.split(100)])
    assert merged.icr().value == pytest.approx(icr(features).value, rel=1e-12)
    torch.testing.assert_close(merged.reference, features[0, 0])


def test_unpacks_as_its_four_results():
    features = gaussian_views(64, 4, spread_ratios(), seed=3)
    value, mean_snr, naive_value, traces = icr(features)
    assert value == 1 / (1 + mean_snr)
    assert naive_value < value < 1
    assert traces.noise > 0


def test_no_signal_is_clipped_at_one_and_says_so():
    for seed in range(6):
        found = icr(gaussian_views(100, 3, torch.zeros(16), seed))
        assert found.value <= 1
        assert (found.value == 1) == any("clipped" in guard for guard in found.guards)
    clipped = [icr(gaussian_views(100, 3, torch.zeros(16), seed)).value == 1 for seed in range(20)]
    assert 4 <= sum(clipped) <= 16, "an unbiased estimate of zero is negative half of the time"


def test_components_keep_the_leading_directions_and_say_how_many():
    ratios = torch.tensor([30.0, 20.0, 0.0, 0.0, 0.0, 0.0])
    features = gaussian_views(3000, 3, ratios, seed=6)
    found = icr(features, components=2)
    assert (found.dimension, found.components, found.guards) == (2, 2, ())
    assert found.mean_snr == pytest.approx(25, rel=0.1)
    assert found.retained == pytest.approx(52 / 56, abs=0.01)
    whole = icr(features, components=6)
    assert whole.value == pytest.approx(icr(features).value, rel=1e-9)
    assert icr(features).components is None
    with pytest.raises(ValueError, match="components is 7; the features allow 1 to 6"):
        icr(features, components=7)
    with pytest.raises(ValueError, match=r"components is 2.5; the features allow 1 to 6 in whole"):
        icr(features, components=2.5)


def test_a_large_sample_of_many_views_needs_no_guard():
    assert icr(gaussian_views(64, 4, spread_ratios(), seed=3)).guards == ()


def test_few_degrees_of_freedom_warn_then_raise_tau_then_refuse():
    with pytest.warns(RuntimeWarning, match="f = n \\(V - 1\\) = 100 is below 4 d = 128"):
        found = icr(gaussian_views(100, 2, spread_ratios(), seed=7))
    assert found.tau == pytest.approx(1e-6 * found.traces.noise / 32)
    with pytest.warns(RuntimeWarning, match="below 4 d"):
        found = icr(gaussian_views(63, 2, spread_ratios(), seed=7))
    assert found.tau == pytest.approx(1e-3 * found.traces.noise / 32)
    assert any("tau raised to 1e-3" in guard for guard in found.guards)
    with pytest.raises(ValueError, match=r"33 degrees of freedom for d = 32.*components below 32"):
        icr(gaussian_views(33, 2, spread_ratios(), seed=7))


def test_refuses_too_few_views_or_images():
    with pytest.raises(ValueError, match="at least two views"):
        icr(torch.randn(50, 1, 4))
    with pytest.raises(ValueError, match="give at least two"):
        icr(torch.randn(1, 50, 4))
    with pytest.raises(ValueError, match="images, views, dimension"):
        icr(torch.randn(50, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refuses_constant_features(dtype):
    constant = torch.full((50, 6, 4), 0.1, dtype=dtype) + 1e4
    with pytest.raises(ValueError, match="constant over images and views"):
        icr(constant)
    # A few units of rounding are no signal either.
    wobble = constant * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, constant.shape))
    with pytest.raises(ValueError, match="constant over images and views"):
        icr(wobble)
    with pytest.raises(ValueError, match="do not vary between the views"):
        icr(torch.arange(50.0, dtype=dtype)[:, None, None].expand(50, 6, 4) + 0.1)


def test_refuses_values_that_are_not_finite():
    features = gaussian_views(64, 4, spread_ratios(), seed=3)
    features[5, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        icr(features)


def test_singular_covariance_says_which_guard_acted():
    features = gaussian_views(64, 4, spread_ratios(8), seed=8)
    doubled = torch.cat([features, features[..., :3]], dim=-1)
    found = icr(doubled)
    assert any("stands in for the view noise in about 3 of 11" in guard for guard in found.guards)
    with pytest.raises(ValueError, match=r"singular \(rank 8 of 11\) at tau = 0.*at most 8 comp"):
        icr(doubled, tau=0)
    assert icr(doubled, tau=0, components=8).value == pytest.approx(icr(features, tau=0).value)


def test_a_copied_feature_is_refused_also_where_rounding_hides_it():
    """Rounding leaves the last pivot positive in some of these, and the ratio without meaning."""
    for seed in range(12):
        features = gaussian_views(64, 4, spread_ratios(8), seed)
        with pytest.raises(ValueError, match="singular"):
            icr(torch.cat([features, features[..., :1]], dim=-1), tau=0)


def test_refuses_a_negative_tau():
    with pytest.raises(ValueError, match="tau is -1"):
        icr(gaussian_views(64, 4, spread_ratios(), seed=3), tau=-1)


def test_refuses_to_merge_shards_of_different_layers():
    first = ViewMoments.collect(torch.randn(5, 3, 4))
    with pytest.raises(ValueError, match="3 views of 4 features and 2 views of 4"):
        first + ViewMoments.collect(torch.randn(5, 2, 4))
    with pytest.raises(ValueError, match="no shards"):
        merge([])
