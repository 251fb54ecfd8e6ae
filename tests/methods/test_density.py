"""Densities over t against scipy, closed forms and quadrature."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from stages.methods.density import (
    LogitNormal,
    Mixture,
    PiecewiseConstant,
    Shifted,
    Uniform,
    from_loss_weight,
    min_snr,
    p2,
)


def logit_normal_cdf(mean, std):
    return lambda t: stats.norm.cdf((np.log(t) - np.log1p(-t) - mean) / std)


def min_snr_cdf(gamma):
    """Integral of min((1-t)^2, gamma t^2): it changes branch at t = 1 / (1 + sqrt(gamma))."""
    switch = 1 / (1 + math.sqrt(gamma))
    at_switch = gamma * switch**3 / 3

    def integral(t):
        above = at_switch + ((1 - switch) ** 3 - (1 - t) ** 3) / 3
        return np.where(t < switch, gamma * t**3 / 3, above)

    return lambda t: integral(t) / integral(1.0)


def p2_cdf(t):
    """Quadrature of (1-t)^2 / (1 + SNR), P2 with gamma = k = 1, in steps between sorted times."""

    def weight(t):
        return (1 - t) ** 2 * t**2 / (t**2 + (1 - t) ** 2)

    order = np.argsort(t)
    edges = np.concatenate([[0], np.atleast_1d(t)[order]])
    pieces = [integrate.fixed_quad(weight, a, b, n=12)[0] for a, b in itertools.pairwise(edges)]
    cdf = np.empty(len(pieces))
    cdf[order] = np.cumsum(pieces) / integrate.quad(weight, 0, 1)[0]
    return cdf


def shifted_cdf(cdf, shift):
    return lambda t: cdf(t / (shift + (1 - shift) * t))


STEPS = (2.0, 0.0, 1.0, 5.0)  # interval weights with a gap


def steps_cdf(t):
    return np.interp(t, np.linspace(0, 1, 5), np.cumsum([0, *STEPS]) / 8)


# A density, its cumulative distribution from elsewhere, and the accuracy of the comparison.
CASES = {
    "uniform": (Uniform(), lambda t: t, 1e-12),
    "logit-normal": (LogitNormal(), logit_normal_cdf(0, 1), 1e-12),
    "logit-normal, towards noise": (LogitNormal(0.8, 0.6), logit_normal_cdf(0.8, 0.6), 1e-12),
    "min-snr": (min_snr(), min_snr_cdf(5), 1e-5),
    "min-snr 1": (min_snr(1), min_snr_cdf(1), 1e-5),
    "p2": (p2(), p2_cdf, 1e-5),
    "steps": (PiecewiseConstant(STEPS), steps_cdf, 1e-12),
    "steps in logit-normal": (
        Mixture(PiecewiseConstant(STEPS), LogitNormal(), 0.7),
        lambda t: 0.7 * steps_cdf(t) + 0.3 * logit_normal_cdf(0, 1)(t),
        1e-12,
    ),
    "min-snr in uniform": (
        Mixture(min_snr(), mix=0.4),
        lambda t: 0.4 * min_snr_cdf(5)(t) + 0.6 * t,
        1e-5,
    ),
    "narrow in narrow": (
        Mixture(LogitNormal(6, 0.05), LogitNormal(-6, 0.05), 0.3),
        lambda t: 0.3 * logit_normal_cdf(6, 0.05)(t) + 0.7 * logit_normal_cdf(-6, 0.05)(t),
        1e-11,
    ),
    "shifted logit-normal": (
        Shifted(LogitNormal(), 3.0),
        shifted_cdf(logit_normal_cdf(0, 1), 3.0),
        1e-12,
    ),
    "shifted steps": (
        Shifted(PiecewiseConstant(STEPS), 0.5),
        shifted_cdf(steps_cdf, 0.5),
        1e-12,
    ),
}
every_density = pytest.mark.parametrize(("density", "truth", "atol"), CASES.values(), ids=CASES)


@every_density
def test_cdf_and_its_inverse(density, truth, atol):
    t = torch.linspace(0.001, 0.999, 501, dtype=torch.float64)
    np.testing.assert_allclose(density.cdf(t), truth(t.numpy()), rtol=0, atol=atol)
    assert density.cdf(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    assert density.cdf(torch.tensor([-0.5, 1.5])).tolist() == [0, 1]
    u = torch.linspace(0.003, 0.997, 401, dtype=torch.float64)
    inverse = density.inverse_cdf(u)
    np.testing.assert_allclose(density.cdf(inverse), u, rtol=0, atol=1e-12)
    assert (inverse.diff() > 0).all()


@pytest.mark.parametrize(("density", "truth"), [(min_snr(), min_snr_cdf(5)), (p2(), p2_cdf)])
def test_intervals_hold_the_integral_of_the_loss_weight(density, truth):
    edges = torch.linspace(0, 1, 501, dtype=torch.float64)[1:]
    np.testing.assert_allclose(density.cdf(edges), truth(edges.numpy()), rtol=0, atol=2e-7)


@every_density
def test_pdf_is_the_slope_of_the_cdf(density, truth, atol):
    edges = torch.linspace(0, 1, 2001, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    h = 1e-7
    slope = (density.cdf(middle + h) - density.cdf(middle - h)) / (2 * h)
    # The steps of 500 intervals do not fall on the middles of 2000.
    torch.testing.assert_close(density.pdf(middle), slope, rtol=1e-5, atol=1e-6)
    assert density.pdf(torch.tensor([-0.1, 1.1])).tolist() == [0, 0]


@every_density
def test_sampled_times_pass_a_kolmogorov_smirnov_test(density, truth, atol):
    u = torch.rand(4000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    t = density.sample(u)
    assert ((t >= 0) & (t <= 1)).all()
    assert stats.kstest(t.numpy(), truth).pvalue > 0.01


@every_density
def test_grids_have_exact_ends_and_equal_quantiles(density, truth, atol):
    for num_steps in (1, 7, 50):
        grid = density.grid(num_steps)
        assert grid[0] == 1
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()
        inner = grid[1:-1]
        expected = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)[1:-1]
        np.testing.assert_allclose(density.cdf(inner), expected, rtol=0, atol=1e-12)


def test_known_grids():
    torch.testing.assert_close(Uniform().grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())
    logistic = LogitNormal().grid(2)
    torch.testing.assert_close(logistic, torch.tensor([1, 0.5, 0]).double())
    torch.testing.assert_close(Shifted(Uniform(), 3.0).grid(2), torch.tensor([1, 0.75, 0]).double())


def test_the_inverse_at_the_ends_of_a_narrow_support():
    density = PiecewiseConstant([0, 1, 0])
    u = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    torch.testing.assert_close(density.inverse_cdf(u), torch.tensor([0, 1 / 2, 2 / 3]).double())
    mixed = Mixture(density, Uniform(), 0.5)
    torch.testing.assert_close(mixed.inverse_cdf(u), torch.tensor([0, 0.5, 1]).double())


def test_samples_keep_shape_and_dtype():
    u = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    for density, _, _ in CASES.values():
        t = density.sample(u)
        assert t.dtype == torch.float32
        assert t.shape == u.shape
        torch.testing.assert_close(t[1, 1], density.sample(u[1, 1]))


def test_mixture_ends_are_its_parts():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    target, base = PiecewiseConstant(STEPS), LogitNormal()
    assert torch.equal(Mixture(target, base, 0).inverse_cdf(u), base.inverse_cdf(u))
    assert torch.equal(Mixture(target, base, 1).inverse_cdf(u), target.inverse_cdf(u))


def test_a_density_from_a_loss_weight_gives_the_weighted_loss():
    """E over the density of a loss is the weighted mean of the loss over uniform t."""

    def loss(t):
        return np.cos(3 * t) + 2

    weight = integrate.quad(lambda t: t * (1 - t) ** 3 * loss(t), 0, 1)[0]
    expected = weight / integrate.quad(lambda t: t * (1 - t) ** 3, 0, 1)[0]
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = from_loss_weight(lambda t: t * (1 - t) ** 3).sample(u).numpy()
    assert loss(t).mean() == pytest.approx(expected, abs=1e-5)


def test_equal_densities_compare_equal_and_hash():
    first, second = PiecewiseConstant([1, 2]), PiecewiseConstant(torch.tensor([1.0, 2.0]))
    first.cdf(torch.tensor([0.5]))
    assert first == second
    assert hash(Mixture(first)) == hash(Mixture(second))


def test_errors():
    for weights in ([], [[1.0]], [1, -1], [0, 0], [1, math.inf], [math.nan]):
        with pytest.raises(ValueError, match="weights must"):
            PiecewiseConstant(weights)
    with pytest.raises(ValueError, match="positive std"):
        LogitNormal(0, 0)
    with pytest.raises(ValueError, match="mix must be between"):
        Mixture(Uniform(), mix=1.5)
    with pytest.raises(ValueError, match="shift must be positive"):
        Shifted(Uniform(), 0)
    with pytest.raises(ValueError, match="num_steps"):
        Uniform().grid(0)
    with pytest.raises(ValueError, match="gamma"):
        min_snr(0)
    with pytest.raises(ValueError, match="k > 0"):
        p2(k=0)
    with pytest.raises(ValueError, match="num_intervals"):
        p2(num_intervals=0)
    with pytest.raises(ValueError, match="u must"):
        Uniform().sample(torch.tensor([1.2]))
    with pytest.raises(ValueError, match="too concentrated"):
        LogitNormal(60, 1e-3).grid(10)
