"""Nearest neighbours against brute force, where rounding would mislead a search by products."""

import math

import pytest
import torch

from stages.methods import memorization


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, seed=0, shape=(1, 8, 8)):
    return torch.rand(n, *shape, generator=generator(seed)) * 2 - 1


def brute_force(x, y, k):
    x, y = x.flatten(1).double(), y.flatten(1).double()
    distances = torch.stack([(y - row).norm(dim=1) for row in x])
    distances, indices = distances.sort(dim=1, stable=True)
    return indices[:, :k], distances[:, :k]


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_agrees_with_brute_force(k, dtype):
    x, y = (((z + 1) * 100).to(dtype) for z in (images(70), images(300, 1)))
    indices, distances = brute_force(x, y, k)
    found = memorization.nearest(x, y, k)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, distances, rtol=1e-14, atol=0)


def test_batches_change_nothing():
    x, y = images(150), images(700, 1)
    whole = memorization.nearest(x, y)
    small = memorization.nearest(x, y, memory_mib=0)
    assert memorization._rows_that_fit(0, 64, 2) == 16
    assert torch.equal(whole.indices, small.indices)
    assert torch.equal(whole.distances, small.distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_where_products_cannot_resolve_the_distances(dtype):
    # Clusters far from the centre whose members differ in the last digits only.
    eps = torch.finfo(dtype).eps
    centres = torch.randn(6, 30, generator=generator(), dtype=dtype)
    steps = torch.randint(-40, 41, (6, 40, 30), generator=generator(1)).to(dtype)
    y = (centres[:, None] + steps * eps).flatten(0, 1)
    x = (centres + torch.randint(-40, 41, (6, 30), generator=generator(2)) * eps).to(dtype)
    indices, distances = brute_force(x, y, 3)
    found = memorization.nearest(x, y, 3)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, distances, rtol=1e-14, atol=0)


def test_reduced_precision_products_are_not_trusted(monkeypatch):
    dtypes = []
    candidates = memorization._candidates

    def recorded(x, y, width, rows, dtype):
        dtypes.append(dtype)
        return candidates(x, y, width, rows, dtype)

    monkeypatch.setattr(memorization, "_candidates", recorded)
    x, y = images(20), images(400, 1)
    before = torch.get_float32_matmul_precision()
    expected = memorization.nearest(x, y)
    torch.set_float32_matmul_precision("medium")
    try:
        found = memorization.nearest(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    assert dtypes == [torch.float32, torch.float64]
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.distances, expected.distances)


def test_copies_and_ties():
    y = images(50)
    y[[3, 30, 31]] = y[17].clone()
    found = memorization.nearest(y[17:18], y, 5)
    assert found.indices[0, :4].tolist() == [3, 17, 30, 31]
    assert found.distances[0, :4].tolist() == [0, 0, 0, 0]
    # Twice the same training image: its copies cannot be told by the ratio.
    assert memorization.ratio(y[17:18], y) == 0
    assert memorization.ratio(y[5:9], y) == 1


def test_many_ties_beyond_the_candidates():
    y = images(1).repeat(40, 1, 1, 1)
    found = memorization.nearest(images(3, 5), y, 4)
    assert found.indices.tolist() == [[0, 1, 2, 3]] * 3


def test_ratio_counts_by_its_definition():
    training = torch.tensor([[0.0], [1.0], [10.0]])
    # Distances to the nearest two: .2/.8, .3/.7, 4/5, 0/9.
    samples = torch.tensor([[0.2], [0.3], [5.0], [10.0]])
    assert memorization.ratio(samples, training) == 0.5
    assert memorization.ratio(samples, training, threshold=0.5) == 0.75
    assert memorization.ratio(samples, training, threshold=0.1) == 0.25


def test_noise_hides_copies_only_when_it_is_large():
    training = images(400)
    noise = torch.randn(training.shape, generator=generator(2))
    shares = [memorization.ratio(training + s * noise, training) for s in (0.01, 0.2, 1.0)]
    assert shares[0] == 1
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] == 0


def test_bad_input():
    x, y = images(4), images(9, 1)
    with pytest.raises(ValueError, match="64 values each and training_images 32"):
        memorization.ratio(x, images(9, 1, (2, 4, 4)))
    with pytest.raises(ValueError, match="k is 2, but there are 1"):
        memorization.ratio(x, y[:1])
    with pytest.raises(ValueError, match="threshold is 0"):
        memorization.ratio(x, y, threshold=0)
    with pytest.raises(ValueError, match=r"samples has shape \(0, 1, 8, 8\)"):
        memorization.ratio(x[:0], y)
    y[6, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"training_images has NaN .* in image 6"):
        memorization.ratio(x, y)
