"""Fréchet distances against closed forms, scipy, and the libraries that people use."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from stages.methods import frechet
from stages.methods.torchvision_shim import prepare_torchvision

DOUBLE = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(n, d, seed=0, scale=1.0, shift=0.0):
    spectrum = torch.linspace(1, 0.1, d, dtype=DOUBLE) * scale
    return torch.randn(n, d, generator=generator(seed), dtype=DOUBLE) * spectrum + shift


def covariance(d, seed, rank=None):
    factor = torch.randn(d, rank or 2 * d, generator=generator(seed), dtype=DOUBLE)
    return factor @ factor.T / factor.shape[1]


def scipy_distance(mean1, cov1, mean2, cov2):
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy())
    traces = cov1.trace() + cov2.trace() - 2 * np.trace(root).real
    return ((mean1 - mean2).square().sum() + traces).item()


def test_closed_form_of_axis_aligned_gaussians():
    s1, s2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 0.5])
    mean1, mean2 = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    expected = 5.0 + (s1 - s2).square().sum().item()
    found = frechet.frechet_distance(mean1, s1.square().diag(), mean2, s2.square().diag())
    assert found == pytest.approx(expected, rel=1e-12)


def test_closed_form_in_one_and_two_dimensions():
    one = frechet.frechet_distance(
        np.zeros(1), np.full((1, 1), 4.0), np.ones(1), np.full((1, 1), 9.0)
    )
    assert one == pytest.approx(2.0)
    # 2x2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    a, b = covariance(2, 1), covariance(2, 2)
    product = a @ b
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    zero = torch.zeros(2)
    expected = (a.trace() + b.trace()).item() - 2 * root
    assert frechet.frechet_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [3, 64, 200])
def test_agrees_with_scipys_square_root(d):
    mean1, mean2 = features(2, d, seed=3)
    cov1, cov2 = covariance(d, 1), covariance(d, 2)
    found = frechet.frechet_distance(mean1, cov1, mean2, cov2)
    assert found == pytest.approx(scipy_distance(mean1, cov1, mean2, cov2), rel=1e-10)


def test_singular_covariances():
    # Disjoint supports: nothing overlaps. Same support of lower rank: closed form there.
    d = 12
    low = torch.zeros(d, d, dtype=DOUBLE)
    high = low.clone()
    low[:5, :5], high[5:, 5:] = covariance(5, 1), covariance(7, 2)
    zero = torch.zeros(d, dtype=DOUBLE)
    assert frechet.frechet_distance(zero, low, zero, high) == pytest.approx(
        (low.trace() + high.trace()).item(), rel=1e-12
    )
    cov = covariance(d, 4, rank=5)
    assert frechet.frechet_distance(zero, cov, zero, 4 * cov) == pytest.approx(
        cov.trace().item(), rel=1e-10
    )


def test_spectrum_over_many_decades_keeps_its_small_part():
    # Eigenvalues of C1 C2 from 1 to 1e-24: square roots of eigenvalues lose those below 1e-8.
    s = torch.logspace(0, -6, 40, dtype=DOUBLE)
    q = torch.linalg.qr(torch.randn(40, 40, generator=generator(), dtype=DOUBLE)).Q
    cov = (q * s.square()) @ q.T
    cov = (cov + cov.T) / 2
    factor = q * s
    found = frechet._nuclear_norm(factor.T @ (2 * factor))
    assert found == pytest.approx(2 * s.square().sum().item(), rel=1e-13)
    zero = torch.zeros(40)
    assert frechet.frechet_distance(zero, cov, zero, cov) == pytest.approx(0, abs=1e-12)


def test_properties_of_a_distance():
    x, y = features(300, 8), features(200, 8, seed=1, scale=1.3, shift=0.2)
    distance = frechet.from_features(x, y).distance
    assert frechet.from_features(y, x).distance == pytest.approx(distance, rel=1e-12)
    assert frechet.from_features(x, x).distance == pytest.approx(0, abs=1e-12)
    q = torch.linalg.qr(torch.randn(8, 8, generator=generator(5), dtype=DOUBLE)).Q
    moved = frechet.from_features(3 * x @ q + 7, 3 * y @ q + 7).distance
    assert moved == pytest.approx(9 * distance, rel=1e-10)


@pytest.mark.parametrize(("n1", "n2", "d"), [(400, 300, 64), (40, 30, 64), (40, 300, 64)])
def test_features_agree_with_clean_fid_and_torch_fidelity(n1, n2, d):
    prepare_torchvision()
    from cleanfid.fid import fid_from_feats
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(n1, d), features(n2, d, seed=1, shift=0.1)
    found = frechet.from_features(x, y).distance
    assert frechet.distance_from_features(x, y) == pytest.approx(found, rel=1e-12)
    assert found == pytest.approx(fid_from_feats(x.numpy(), y.numpy()), rel=1e-5)
    statistics = (fid_features_to_statistics(z) for z in (x, y))
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("n1", "n2"), [(30, 30), (20, 100), (100, 20), (50, 51), (49, 50)])
def test_few_samples_agree_with_the_covariances(n1, n2):
    x, y = features(n1, 50), features(n2, 50, seed=1, shift=0.3)
    expected = frechet.frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert frechet.from_features(x, y).distance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [5, 60])
def test_infinity_is_extrapolated_from_the_distances_without_each_block(d):
    x, y = features(61, d), features(45, d, seed=1, shift=0.2)
    result = frechet.from_features(x, y, blocks=7, generator=generator(9))
    dealt = generator(9)
    left = [torch.randperm(n, generator=dealt).tensor_split(7) for n in (61, 45)]
    values = []
    for b in range(7):
        pair = [
            z[torch.isin(torch.arange(len(z)), blocks[b], invert=True)]
            for z, blocks in zip((x, y), left, strict=True)
        ]
        values.append(frechet.from_features(*pair).distance)
    values = torch.tensor(values, dtype=DOUBLE)
    sizes = [torch.tensor([len(b) for b in blocks], dtype=DOUBLE) for blocks in left]
    factor = sum((n / (n - s) - 1).mean() for n, s in zip((61, 45), sizes, strict=True)) / 2
    infinity = result.distance - (values.mean() - result.distance) / factor
    assert result.infinity == pytest.approx(infinity.item(), rel=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_infinity_is_unbiased_and_the_error_bar_is_right(scale):
    d, n, repeats = 24, 200, 60
    spread = torch.linspace(1, 0.1, d, dtype=DOUBLE)
    true = ((scale - 1) * spread).square().sum().item()
    results = [
        frechet.from_features(features(n, d, 2 * i), features(n, d, 2 * i + 1, scale=scale))
        for i in range(repeats)
    ]
    raw = torch.tensor([r.distance for r in results]) - true
    infinity = torch.tensor([r.infinity for r in results]) - true
    uncertainty = infinity.std().item() / math.sqrt(repeats)
    assert abs(infinity.mean()) < 4 * uncertainty
    assert raw.mean() > 20 * uncertainty  # what the extrapolation removes


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_error_is_that_of_the_first_set(scale):
    """Right where the distance is not zero; cautious where it is: its first-order term vanishes."""
    d, n = 24, 400
    reference = features(2000, d, 9999, scale=scale)
    results = [frechet.from_features(features(n, d, i), reference) for i in range(60)]
    error = torch.tensor([r.standard_error for r in results]).mean()
    for name in ("distance", "infinity"):
        spread = torch.tensor([getattr(r, name) for r in results]).std()
        assert 0.75 < error / spread < (1.7 if scale == 1 else 1.3), name


def test_order_of_the_images_does_not_matter_to_the_error():
    centres = 5 * torch.randn(10, 6, generator=generator(3), dtype=DOUBLE)
    by_class = centres.repeat_interleave(60, 0) + features(600, 6)
    other = centres.repeat(60, 1) + features(600, 6, seed=1)
    mixed = by_class[torch.randperm(600, generator=generator(4))]
    in_order = frechet.from_features(by_class, other)
    shuffled = frechet.from_features(mixed, other)
    assert in_order.standard_error == pytest.approx(shuffled.standard_error, rel=1e-9)


def test_labels_in_fixed_shares_are_no_part_of_the_bias():
    """Blocks that have them by chance would find a bias that is not there."""
    centres = 5 * torch.randn(10, 6, generator=generator(3), dtype=DOUBLE)
    labels = torch.arange(600) % 10
    found = {"given": [], "unknown": []}
    for seed in range(20):
        x, y = (centres[labels] + features(600, 6, 2 * seed + i) for i in (0, 1))
        found["given"].append(frechet.from_features(x, y, labels=labels, labels2=labels).infinity)
        found["unknown"].append(frechet.from_features(x, y).infinity)
    given, unknown = (torch.tensor(found[name]) for name in ("given", "unknown"))
    assert abs(given.mean()) < 4 * given.std() / 20**0.5
    assert unknown.mean() < -0.3


def test_floor_of_real_images():
    real = features(1200, 16)
    floor = frechet.real_floor(real, 300, 300, repeats=20)
    fresh = [
        frechet.distance_from_features(features(300, 16, i + 50), features(300, 16, i + 90))
        for i in range(20)
    ]
    assert floor == pytest.approx(np.mean(fresh), rel=0.1)
    # 1,200 images cannot be split 1,200 : 1,200; the floor scales as 1/n1 + 1/n2.
    larger = frechet.real_floor(real, 1200, 1200, repeats=20)
    fresh = [
        frechet.distance_from_features(features(1200, 16, i + 50), features(1200, 16, i + 90))
        for i in range(20)
    ]
    assert larger == pytest.approx(np.mean(fresh), rel=0.15)


def test_the_floor_has_labels_in_their_shares():
    """By chance they are most of the distance between two sets of real images."""
    centres = 5 * torch.randn(10, 6, generator=generator(3), dtype=DOUBLE)
    labels = torch.arange(900) % 10
    real = centres[labels] + features(900, 6)
    by_chance = frechet.real_floor(real, 300, 500, repeats=20)
    given = frechet.real_floor(real, 300, 500, repeats=20, labels=labels)
    assert given < 0.5 * by_chance
    # A second set with labels of its own is off by them for real images and samples alike.
    skewed = torch.cat([torch.zeros(60, dtype=torch.long), torch.arange(240) % 10])
    off = frechet.real_floor(real, 300, 300, 5, generator(), labels, skewed)
    shift = frechet.distance_from_features(centres[labels], centres[skewed])
    assert off > 0.8 * shift > 10 * given
    order = frechet._in_shares_first(labels[torch.randperm(900, generator=generator())], 33)
    assert sorted(order.tolist()) == list(range(900))


def test_results_depend_on_arguments_alone():
    x, y = features(200, 6), features(200, 6, seed=1)
    before = torch.get_rng_state()
    first = frechet.from_features(x, y)
    torch.rand(3)
    assert frechet.from_features(x, y) == first
    torch.set_rng_state(before)
    frechet.real_floor(x, 50, 50)
    assert torch.equal(torch.get_rng_state(), before)
    single = frechet.from_features(x.float(), y.float().numpy())
    assert single.distance == pytest.approx(first.distance, rel=1e-5)
    distance, standard_error, infinity = first
    assert (distance, standard_error, infinity) == (
        first.distance,
        first.standard_error,
        first.infinity,
    )


def test_large_offsets_cost_no_precision():
    x, y = features(300, 8), features(300, 8, seed=1, shift=0.1)
    near, far = frechet.from_features(x, y), frechet.from_features(x + 1e6, y + 1e6)
    assert far.distance == pytest.approx(near.distance, rel=1e-7)
    assert far.standard_error == pytest.approx(near.standard_error, rel=1e-6)


def test_too_few_images_for_the_dimension_are_flagged():
    assert frechet.from_features(features(65, 64), features(65, 64, 1)).caution == ""
    for pair in ((64, 200), (200, 64)):
        caution = frechet.from_features(*(features(n, 64, n) for n in pair)).caution
        assert "64 images" in caution
        assert "64 feature dimensions" in caution


def test_bad_features_are_refused_by_name():
    good = features(30, 4)
    bad = good.clone()
    bad[17, 2], bad[3, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"x2 has NaN .* 2 of 30 images \(rows 3, 17\)"):
        frechet.from_features(good, bad)
    with pytest.raises(ValueError, match=r"4 features and x2 has 3"):
        frechet.from_features(good, features(30, 3))
    with pytest.raises(ValueError, match="at least 4"):
        frechet.from_features(good[:3], good)
    with pytest.raises(ValueError, match=r"shape \(30,\)"):
        frechet.from_features(good[:, 0], good)
    with pytest.raises(ValueError, match="extrapolation needs at least 2"):
        frechet.from_features(good, good, blocks=1)
    with pytest.raises(ValueError, match="too few to split"):
        frechet.real_floor(good, 500, 10)


def test_bad_covariances_are_refused_by_name():
    zero, eye = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match=r"cov2 has the eigenvalue -1"):
        frechet.frechet_distance(zero, eye, zero, torch.diag(torch.tensor([1.0, 1.0, -1.0])))
    with pytest.raises(ValueError, match="cov1 is not symmetric"):
        frechet.frechet_distance(zero, eye + torch.tensor([0.0, 0, 1]), zero, eye)
    with pytest.raises(ValueError, match="mean2 has 2"):
        frechet.frechet_distance(zero, eye, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"must be \(d,\) and \(d, d\)"):
        frechet.frechet_distance(zero, eye[:2], zero, eye)
    with pytest.raises(ValueError, match="mean1 or cov1 has NaN"):
        frechet.frechet_distance(zero * math.nan, eye, zero, eye)
