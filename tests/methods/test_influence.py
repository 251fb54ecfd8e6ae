"""Influence values: exact derivatives of the scores, and errors that cover."""

import math

import pytest
import torch

from stages.methods import influence
from stages.methods.frechet import distance_from_features, frechet_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted_frechet(samples, weights, reference):
    """The distance of samples with weights that sum to 1; covariances as of (n - 1)."""
    n = len(samples)
    mean = weights @ samples
    centred = samples - mean
    covariance = (centred * weights[:, None]).T @ centred * n / (n - 1)
    return frechet_distance(mean, covariance, reference.mean(0), torch.cov(reference.T))


@pytest.mark.parametrize("dimension", [3, 8])
def test_frechets_values_are_its_derivatives(dimension):
    mixing = normal(dimension, dimension, seed=5)
    samples, reference = normal(60, dimension) @ mixing + 0.3, normal(200, dimension, seed=1)
    psi, n, e = influence.frechet(samples, reference), len(samples), 1e-5
    assert psi.sum().abs() < 1e-8
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    for i in (0, 7, 31):
        moved = []
        for sign in (1, -1):
            weights = uniform * (1 - sign * e)
            weights[i] += sign * e
            moved.append(weighted_frechet(samples, weights, reference))
        assert psi[i].item() == pytest.approx((moved[0] - moved[1]) / (2 * e), rel=1e-4, abs=1e-4)


def test_fewer_samples_than_dimensions_work_in_their_span():
    """Further dimensions in which the samples never move add to the distance and nothing else."""
    samples, reference = normal(30, 4), normal(100, 4, seed=1)
    wide = torch.cat([samples, torch.zeros(30, 60, dtype=torch.float64)], dim=1)
    beside = torch.cat([reference, 1e-9 * normal(100, 60, seed=2)], dim=1)
    torch.testing.assert_close(
        influence.frechet(wide, beside), influence.frechet(samples, reference), rtol=1e-5, atol=1e-5
    )


def test_kernels_values_are_its_derivatives():
    """Of sum_(i != j) w_i w_j k / (1 - sum w^2) + ... - 2 sum w_i mean_j k(x_i, y_j)."""
    samples, reference = normal(40, 3), 0.5 + normal(50, 3, seed=1)
    own, across = influence.kernel_means(samples), influence.kernel_means(samples, reference)
    psi, n, e = influence.kernel(own, across), 40, 1e-6

    def value(weights):
        own = (samples @ samples.T / 3 + 1) ** 3
        across = ((samples @ reference.T / 3 + 1) ** 3).mean(1)
        pairs = torch.outer(weights, weights).fill_diagonal_(0)
        return ((pairs * own).sum() / pairs.sum() - 2 * weights @ across).item()

    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    for i in (0, 11):
        moved = []
        for sign in (1, -1):
            weights = uniform * (1 - sign * e)
            weights[i] += sign * e
            moved.append(value(weights))
        assert psi[i].item() == pytest.approx((moved[0] - moved[1]) / (2 * e), rel=1e-3, abs=1e-4)


def test_a_root_of_a_mean():
    squares = normal(50).square()
    psi, e = influence.of_root(squares), 1e-6
    more = squares.mean() + e * (squares[3] - squares.mean())
    assert psi[3].item() == pytest.approx(
        (more.sqrt() - squares.mean().sqrt()).item() / e, rel=1e-4
    )
    assert influence.of_root(torch.zeros(4)).tolist() == [0] * 4


def test_labels_in_fixed_shares_are_strata():
    """What labels differ in is no error: it is the same in every draw."""
    labels = torch.arange(600) % 3
    values = 10.0 * labels + normal(600)
    psi = influence.of_mean(values)
    within = influence.standard_error(psi, labels)
    assert within == pytest.approx(1 / math.sqrt(600), rel=0.1)
    assert influence.standard_error(psi) > 7 * within
    # As of a stratified sample: sum_c (n_c / n)^2 s_c^2 / n_c.
    uneven = torch.tensor([0] * 100 + [1] * 20)
    both = torch.cat([normal(100), 5 * normal(20, seed=1)])
    parts = [both[:100].var() / 100 * (100 / 120) ** 2, both[100:].var() / 20 * (20 / 120) ** 2]
    given = influence.standard_error(influence.of_mean(both), uneven)
    assert given == pytest.approx(math.sqrt(sum(parts)), rel=1e-9)


@pytest.mark.parametrize("balanced", [True, False])
def test_errors_of_distances_cover(balanced):
    """Two sets from the same noise, one a little off: of 120 draws of 500, the 95 % intervals of
    their difference hold the mean difference in 90 to 99 %."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * normal(4, 6, seed=9)
    reference = centres[torch.arange(4000) % 4] + normal(4000, 6, seed=8)
    values, errors, singles = [], [], []
    for _ in range(120):
        labels = torch.arange(500) % 4
        if not balanced:
            labels = torch.randint(4, (500,), generator=generator)
        noise = torch.randn(500, 6, generator=generator, dtype=torch.float64)
        a, b = centres[labels] + 1.1 * noise, centres[labels] + 1.05 * noise
        shift = [influence.frechet(x, reference) for x in (a, b)]
        strata = labels if balanced else None
        distances = [distance_from_features(x, reference) for x in (a, b)]
        values.append(distances[0] - distances[1])
        errors.append(influence.standard_error(shift[0] - shift[1], strata))
        singles.append(influence.standard_error(shift[0], strata))
    values, errors = torch.tensor(values), torch.tensor(errors)
    held = ((values - values.mean()).abs() < 1.96 * errors).double().mean().item()
    assert 0.9 <= held <= 0.99
    # Paired, the error is far below that of one set.
    assert errors.mean() < 0.5 * torch.tensor(singles).mean()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) for 4 influence values"):
        influence.standard_error(torch.zeros(4), torch.zeros(3, dtype=torch.long))
    assert math.isnan(influence.standard_error(torch.zeros(1)))
