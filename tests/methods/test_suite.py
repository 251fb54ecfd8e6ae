"""ADM's definitions against computations of another kind, and TensorFlow's resize."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional as F

from stages.methods import balls, gaussians, influence, suite, tf_resize
from stages.methods.frechet import distance_to, frechet_distance, reference_gaussian
from tests import oracle


def features(count, width, seed):
    return oracle.noise((count, width), seed) @ oracle.noise((width, width), 9) / width**0.5


def test_the_distance_is_the_suites_formula():
    x, y = features(200, 6, 0), features(150, 6, 1) * 1.3 + 0.2
    mean, cov = suite.moments(y)
    assert np.allclose(cov, np.cov(y.numpy(), rowvar=False))
    own = np.cov(x.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(own @ cov.numpy()).real
    apart = x.numpy().mean(0) - mean.numpy()
    expected = apart @ apart + np.trace(own + cov.numpy() - 2 * root)
    assert distance_to(x, reference_gaussian(mean, cov)) == pytest.approx(expected, rel=1e-9)
    small = suite.moments(x[:5])  # fewer images than dimensions
    assert distance_to(x[:5], reference_gaussian(mean, cov)) == pytest.approx(
        frechet_distance(*small, mean, cov), rel=1e-9
    )
    sums = suite.Sums()
    for part in (x[:70] + 1e3).split(32):
        sums.add(part)
    for found, whole in zip(sums.moments(), suite.moments(x[:70] + 1e3), strict=True):
        assert torch.allclose(found, whole, atol=1e-9)


def test_maps_are_flattened_place_by_place_and_the_wrong_way_round_is_seen():
    maps = oracle.noise((400, 7, 5, 4), 0) * torch.linspace(0.2, 2, 7)[:, None, None]
    maps = maps + torch.linspace(0, 3, 20).view(1, 1, 5, 4)
    rows = suite.flattened(maps)
    for place, channel in ((0, 3), (7, 6), (19, 0)):
        row, column = divmod(place, 4)
        assert torch.equal(rows[:, 7 * place + channel], maps[:, channel, row, column])
    mean, cov = suite.moments(rows)
    right, wrong = (distance_to(x, reference_gaussian(mean, cov)) for x in (rows, maps.flatten(1)))
    assert right == pytest.approx(0, abs=1e-6)
    assert wrong > 10


def test_the_inception_score_is_a_mean_over_consecutive_splits():
    logits = 2 * oracle.noise((230, 12), 3)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    scores = []
    for start in (0, 100, 200):
        part = p[start : start + 100]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    assert suite.inception_score(logits, 100).value == pytest.approx(np.mean(scores), rel=1e-12)
    assert suite.inception_score(logits, 230).value != pytest.approx(np.mean(scores), rel=1e-3)
    assert suite.inception_score(torch.zeros(10, 5)).value == pytest.approx(1)


def shares(*sets, **options):
    return tuple(one.value for one in suite.precision_recall(*sets, **options))


def by_loops(samples, reference, k=3):
    """Precision and recall one point at a time."""

    def squares(a, b):
        return ((a[None] - b) ** 2).sum(1)

    def radii(x):
        return [np.sort(np.delete(squares(x[i], x), i))[k - 1] for i in range(len(x))]

    def share(points, centres, within):
        inside = [any(squares(p, centres) <= within) for p in points]
        return np.mean(inside)

    return (
        share(samples, reference, np.array(radii(reference))),
        share(reference, samples, np.array(radii(samples))),
    )


def test_precision_and_recall_of_sets_of_different_sizes(monkeypatch):
    monkeypatch.setattr(balls, "BLOCK", 17)
    monkeypatch.setattr(balls, "COLUMNS", 23)
    samples, reference = features(90, 3, 0) * 1.4, features(40, 3, 1)
    found = shares(samples, reference)
    assert found == pytest.approx(by_loops(samples.numpy(), reference.numpy()))
    assert min(found) > 0
    assert max(found) < 1
    assert found != shares(samples, reference, neighbours=1)


def test_a_point_at_a_balls_edge_counts_and_a_point_is_not_its_own_neighbour():
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # Every ball of the line has radius 2 or 3: at 6 the last one's edge is met exactly.
    samples = torch.tensor([[6.0], [6.01], [-3.0], [-3.01]])
    assert shares(samples, line)[0] == 0.5
    with pytest.raises(ValueError, match="reference are 3 images; 3 neighbours need more"):
        suite.precision_recall(samples, line[:3])


def weighted_distance(x, weights, mean, cov):
    """The distance of weighted samples, whose weights sum to n."""
    n = len(x)
    center = weights @ x / n
    z = x - center
    own = (z.T * weights) @ z / (n - 1)
    root = scipy.linalg.sqrtm(own @ cov).real
    apart = center - mean
    return apart @ apart + np.trace(own + cov - 2 * root)


@pytest.mark.parametrize("count", [60, 30_000])
def test_what_a_sample_contributes_to_the_distance_is_the_derivative_by_its_weight(
    count, monkeypatch
):
    monkeypatch.setattr(gaussians, "ROWS", 7_000)
    x, (mean, cov) = features(count, 6, 0).float(), suite.moments(features(150, 6, 1) * 1.3 + 0.2)
    found = suite.distance(x, reference_gaussian(mean, cov))
    assert found.value == pytest.approx(distance_to(x, reference_gaussian(mean, cov)))
    assert found.psi.sum() == pytest.approx(0, abs=1e-6 * count)
    mean, cov, x = mean.numpy(), cov.numpy(), x.double().numpy()
    for i in (0, 17, 59):
        ends = []
        for step in (1, -1):
            weights = np.full(count, 1 - step * 1e-3 / count)
            weights[i] += step * 1e-3
            ends.append(weighted_distance(x, weights * count / weights.sum(), mean, cov))
        assert found.psi[i] / count == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-3, abs=1e-8)


def test_the_distances_psi_is_that_of_the_features_whatever_their_number():
    for count, width in ((40, 6), (6, 9)):
        x, y = features(count, width, 0), features(50, width, 1) + 0.1
        gaussian = reference_gaussian(*suite.moments(y))
        expected = influence.frechet(x, y)
        assert torch.allclose(suite.distance(x, gaussian).psi, expected, atol=1e-7)


def test_what_a_sample_contributes_to_the_inception_score():
    logits = 2 * oracle.noise((250, 12), 3)
    found = suite.inception_score(logits, split=100)

    def weighted(weights):
        scores = []
        for part, own in zip(logits.split(100), weights.split(100), strict=True):
            p, own = part.softmax(1), own / own.sum()
            mean = own @ p
            scores.append((own @ (p * (p.log() - mean.log())).sum(1)).exp())
        return torch.stack(scores).mean()

    assert found.psi.sum() == pytest.approx(0, abs=1e-9)
    weights = torch.ones(250, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(weighted(weights), weights)
    assert torch.allclose(found.psi, 250 * slopes, atol=1e-9)


def test_what_a_sample_contributes_to_precision_and_recall(monkeypatch):
    monkeypatch.setattr(balls, "BLOCK", 17)
    monkeypatch.setattr(balls, "COLUMNS", 23)
    samples, reference = features(60, 3, 0) * 1.4, features(40, 3, 1)
    precision, recall = suite.precision_recall(samples, reference)
    others = [torch.cat([samples[:i], samples[i + 1 :]]) for i in range(60)]
    without = torch.tensor([shares(rest, reference) for rest in others], dtype=torch.float64)
    # Precision's ball are the reference's: its mean without a sample is exact.
    assert torch.allclose(precision.value - without[:, 0], precision.psi / 59)
    changes = 59 * (recall.value - without[:, 1])
    assert torch.allclose(recall.psi, changes - changes.mean())
    assert changes.abs().max() > 0
    few = suite.precision_recall(samples[:4], reference)[1]  # there is no further neighbour
    assert few.psi.shape == (4,)


def test_rounding_to_eight_bits():
    x = torch.tensor([-1.2, -1.0, 0.0, 2 / 255, 0.999, 1.0, 1.3], dtype=torch.float64)
    # Computed with exact fractions: 127.5 x + 128 and 127.5 x + 127.5, rounded down.
    assert suite.rounded(x, "nearest").tolist() == [0, 0, 128, 129, 255, 255, 255]
    assert suite.rounded(x, "down").tolist() == [0, 0, 127, 128, 254, 255, 255]
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert suite.rounded(levels, "nearest").tolist() == list(range(256))
    with pytest.raises(ValueError, match="rounding is 'up'; choose one of nearest, down"):
        suite.rounded(x, "up")


@pytest.mark.parametrize("shape", [(8, 8), (64, 48), (299, 299), (256, 512), (700, 33)])
def test_tensorflows_resize_has_the_points_of_the_published_file(shape):
    """The file's affine grid, half a pixel off on purpose, in double precision."""
    images = torch.rand(
        2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    height, width = shape
    theta = torch.eye(2, 3, dtype=torch.float64)
    theta[0, 2] += 1 / width - 1 / 299
    theta[1, 2] += 1 / height - 1 / 299
    grid = F.affine_grid(theta.expand(2, 2, 3), [2, 3, 299, 299], align_corners=False)
    expected = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    assert (tf_resize.resized(images) - expected).abs().max() < 1e-5
    assert (tf_resize.resized(images.float()) - expected).abs().max() < 1e-5
    plain = F.interpolate(images, (299, 299), mode="bilinear", align_corners=False)
    if shape != (299, 299):
        assert (plain - expected).abs().max() > 1e-2


def test_the_sampling_points_are_those_of_tensorflow_1():
    """Place by place with exact fractions."""
    first, second, weight = tf_resize.sampling_points(5, 8)
    exact = [(i * 5 // 8, i * 5 % 8 / 8) for i in range(8)]
    assert list(zip(first.tolist(), weight.tolist(), strict=True)) == exact
    assert second.tolist() == [min(low + 1, 4) for low, _ in exact]
    with pytest.raises(ValueError, match="give floats"):
        tf_resize.resized(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
