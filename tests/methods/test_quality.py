"""Quality scores against the libraries they come from, and their error bars against truth."""

import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from stages.methods import influence, quality
from stages.methods.frechet import from_features
from stages.methods.torchvision_shim import prepare_torchvision


def normal(n, d, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_of_one_subset_is_clean_fids_and_torch_fidelitys():
    prepare_torchvision()
    from cleanfid.fid import kernel_distance
    from torch_fidelity.metric_kid import mmd2

    x, y = normal(40, 8).double(), normal(40, 8, 1, shift=0.5).double()
    theirs = kernel_distance(y.numpy(), x.numpy(), num_subsets=1, max_subset_size=40)
    kernels = [((a @ b.T / 8 + 1) ** 3).numpy() for a, b in ((x, x), (x, y), (y, y))]
    assert theirs == pytest.approx(mmd2(*kernels), rel=1e-10)
    assert quality.kernel_distance(x, y).value == pytest.approx(theirs, rel=1e-10)
    # Of unequal numbers, a batch of rows at a time.
    own, across = ((x @ z.T / 8 + 1) ** 3 for z in (x, y[:30]))
    means = influence.kernel_means(x, rows=7), influence.kernel_means(x, y[:30], rows=7)
    torch.testing.assert_close(means[0], (own.sum(1) - own.diagonal()) / 39)
    torch.testing.assert_close(means[1], across.mean(1))


def test_kernel_distance_is_unbiased_and_its_error_is_that_of_the_samples():
    reference = normal(600, 6, 999)
    draws = [normal(300, 6, i, shift=0.3) for i in range(60)]
    found = [quality.kernel_distance(x, reference) for x in draws]
    values = torch.tensor([f.value for f in found])
    errors = torch.tensor([f.standard_error for f in found])
    assert 0.8 < errors.mean() / values.std() < 1.2
    equal = torch.tensor(
        [
            quality.kernel_distance(normal(300, 6, 2 * i), normal(300, 6, 2 * i + 1)).value
            for i in range(60)
        ]
    )
    assert abs(equal.mean()) < 4 * equal.std() / 60**0.5


def test_manifolds_by_hand():
    # Reference on a line at 0..9, so k=1 balls have radius 1; half of the samples far away.
    reference = torch.arange(10.0)[:, None]
    samples = torch.cat([torch.arange(4)[:, None] + 0.25, torch.full((4, 1), 100.0)])
    samples[4:, 0] += torch.arange(4) * 0.01
    found = quality.precision_recall(samples, reference, neighbours=1, errors=False)
    assert found.precision.value == 0.5
    # 0.25 lies in the balls of 0 and 1; so does each of the four: two balls each, eight samples.
    assert found.density.value == pytest.approx(1.0)
    # Balls that hold a sample: 0, 1, 2, 3 and 4 (3.25).
    assert found.coverage.value == pytest.approx(0.5)
    # Sample balls have radius 1 around .25, 1.25, 2.25, 3.25: they hold 0, 1, 2, 3, 4.
    assert found.recall.value == pytest.approx(0.5)
    assert found.precision.standard_error is None


def test_manifolds_are_prdcs():
    for seed, k in ((0, 1), (1, 5)):
        x, y = normal(80, 3, seed, 0.4), normal(70, 3, seed + 9)
        expected = compute_prdc(y.numpy(), x.numpy(), nearest_k=k)
        given, bare = (quality.precision_recall(x, y, k, errors) for errors in (True, False))
        for name in ("precision", "recall", "density", "coverage"):
            for found in (given, bare):
                assert getattr(found, name).value == pytest.approx(expected[name], abs=1e-12), name


def test_manifolds_see_fidelity_and_diversity():
    reference = normal(300, 4)
    same = quality.precision_recall(normal(300, 4, 1), reference, errors=False)
    narrow = quality.precision_recall(0.3 * normal(300, 4, 1), reference, errors=False)
    wide = quality.precision_recall(3 * normal(300, 4, 1), reference, errors=False)
    assert narrow.precision.value > same.precision.value > wide.precision.value
    assert wide.recall.value > same.recall.value > narrow.recall.value
    assert same.coverage.value > max(narrow.coverage.value, wide.coverage.value)


def test_errors_of_manifolds_are_those_of_the_samples():
    """The spread over draws of samples against one reference, labels in fixed shares and not."""
    reference = normal(200, 3, 999)
    labels = torch.arange(200) % 2
    for strata in (labels, None):
        found = [
            quality.precision_recall(
                normal(200, 3, i, 0.5) + (0 if strata is None else labels[:, None]),
                reference,
                errors=i < 4,
                labels=strata,
            )
            for i in range(40)
        ]
        for name in ("precision", "recall", "density", "coverage"):
            estimates = [getattr(f, name) for f in found]
            spread = np.std([e.value for e in estimates], ddof=1)
            error = np.mean([e.standard_error for e in estimates[:4]])
            assert 0.6 < error / spread < 1.7, (name, error / spread)


def test_inception_score_is_torch_fidelitys():
    prepare_torchvision()
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * normal(200, 10)
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert quality.inception_score(logits).value == pytest.approx(theirs, rel=1e-10)


def test_inception_score_at_its_ends():
    certain = 100 * torch.eye(5).repeat(20, 1)
    assert quality.inception_score(certain).value == pytest.approx(5)
    assert quality.inception_score(certain[::5]).value == pytest.approx(1)
    assert quality.inception_score(torch.zeros(50, 5)).value == pytest.approx(1)


def test_inception_scores_error_bar_is_of_the_right_size():
    found = [quality.inception_score(2 * normal(200, 5, i)) for i in range(40)]
    values = np.array([f.value for f in found])
    errors = np.array([f.standard_error for f in found])
    assert 0.6 < errors.mean() / values.std(ddof=1) < 1.6


def test_spatial_distance_notices_where_things_are():
    maps = normal(400, 2 * 3 * 3).reshape(400, 2, 3, 3)
    moved = maps.clone()
    moved[:, :, 0] += 1  # the mean over places moves by 1/3 in both
    everywhere = maps + 1 / 3
    other = normal(400, 18, 1).reshape(400, 2, 3, 3)
    distance = from_features(moved.flatten(1), other.flatten(1)).infinity
    assert distance == pytest.approx(6, rel=0.15)
    elsewhere = from_features(everywhere.flatten(1), other.flatten(1)).infinity
    assert elsewhere == pytest.approx(2, rel=0.2)


def test_bad_input():
    x, y = normal(60, 4), normal(60, 4, 1)
    bad = x.clone()
    bad[11, 0] = math.nan
    calls = (quality.kernel_distance, quality.precision_recall)
    for call in calls:
        with pytest.raises(ValueError, match=r"samples has NaN .* first in image 11"):
            call(bad, y)
        with pytest.raises(ValueError, match="reference has NaN"):
            call(x, bad)
        with pytest.raises(ValueError, match="4 features and reference 3"):
            call(x, y[:, :3])
    with pytest.raises(ValueError, match="logits has NaN"):
        quality.inception_score(bad)
    with pytest.raises(ValueError, match="logits has 1 class"):
        quality.inception_score(x[:, :1])
    with pytest.raises(ValueError, match="2 images are too few for neighbours among them"):
        quality.precision_recall(torch.randn(2, 3), torch.randn(9, 3), 1)
    with pytest.raises(ValueError, match="neighbours is 59 with 60 images; use 1 to 58"):
        quality.precision_recall(x, y, neighbours=59)
