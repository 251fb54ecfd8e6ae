import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import eval_hermitenorm

from stages.methods.wavelet.hermite import (
    affine,
    hermite,
    num_features,
    polynomial_features,
    powers,
)


def test_polynomials_are_scipys_normalised_ones():
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)[None]
    psi = hermite(u, 5)[0]
    for n in range(1, 6):
        expected = eval_hermitenorm(n, u[0].numpy()) / math.sqrt(math.factorial(n))
        np.testing.assert_allclose(psi[n - 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("m", "degree"), [(1, 5), (3, 2), (3, 3), (9, 2), (4, 4)])
def test_features_are_all_products_up_to_the_degree(m, degree):
    features = polynomial_features(m, degree)
    exponents = {tuple(dict(term).get(v, 0) for v in range(m)) for term in features.terms}
    expected = {a for a in itertools.product(range(degree + 1), repeat=m) if sum(a) <= degree}
    assert exponents == expected
    assert len(features) == num_features(m, degree) == math.comb(m + degree, degree)
    x = torch.rand(2, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = features.products(powers(x, degree)[..., None])[..., 0]
    for index, term in enumerate(features.terms):
        value = torch.stack([x[:, v] ** n for v, n in term]).prod(0) if term else torch.ones(2)
        torch.testing.assert_close(products[:, index], value.double(), rtol=1e-13, atol=0)


def test_additive_features_have_no_products_of_two_variables():
    features = polynomial_features(9, 3, additive=True)
    assert len(features) == num_features(9, 3, additive=True) == 28
    assert max(len(term) for term in features.terms) == 1


@pytest.mark.parametrize(("degree", "additive"), [(1, False), (2, False), (3, False), (3, True)])
def test_moments_under_noise_equal_quadrature_over_the_noise(degree, additive):
    """An independent truth: Gauss-Hermite quadrature of the noise, exact for polynomials."""
    generator = torch.Generator().manual_seed(1)
    m, sigma = 3, 0.7
    features = polynomial_features(m, degree, additive)
    data = torch.rand(11, m, generator=generator, dtype=torch.float64) ** 2 - 0.2  # skewed
    data[:, 1] += 0.5 * data[:, 0] ** 2  # dependent
    scale = torch.tensor([0.4, 1.3, 0.2], dtype=torch.float64)
    tau = (scale**2 + sigma**2).sqrt()
    kappa, rho = scale / tau, sigma / tau

    clean = features.products(hermite((data / scale).T, degree)[None])[0]
    moments = clean @ clean.T / len(data)
    kappa_powers = features.products(powers(kappa[None], degree)[..., None])[..., 0]
    rho_powers = features.products(powers(rho[None] ** 2, degree)[..., None])[..., 0]
    scaled = kappa_powers[0][:, None] * moments * kappa_powers[0]
    gram = features.noisy_gram(scaled[None], rho_powers)[0]

    points, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = torch.tensor(list(itertools.product(points, repeat=m)))
    weight = torch.tensor([math.prod(w) for w in itertools.product(weights, repeat=m)])
    weight = weight / weight.sum()
    noisy = (data[:, None] + sigma * grid) / tau  # (n, grid, m)
    y = noisy.flatten(0, 1).T.clone().requires_grad_()
    psi = features.products(hermite(y, degree)[None])[0]
    repeated = weight.repeat(len(data)) / len(data)
    torch.testing.assert_close(gram, (psi * repeated) @ psi.T, rtol=1e-11, atol=1e-11)

    target, feature, lower, root = features.derivatives(m)
    slopes = torch.zeros(m, len(features), dtype=torch.float64)
    slopes[target, feature] = root * scaled[lower, 0]
    for index in range(len(features)):
        (gradient,) = torch.autograd.grad(
            (psi[index] * repeated).sum(), y, retain_graph=True, allow_unused=True
        )
        expected = torch.zeros(m) if gradient is None else gradient.sum(1)
        torch.testing.assert_close(slopes[:, index], expected.double(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("degree", "additive"), [(1, False), (3, False), (3, True), (5, False)])
def test_features_of_a_shifted_and_scaled_variable_are_linear_in_the_old_ones(degree, additive):
    generator = torch.Generator().manual_seed(0)
    m = 2
    features = polynomial_features(m, degree, additive)
    x = torch.randn(m, 20, generator=generator, dtype=torch.float64)
    c = torch.tensor([[0.7, 1.3]], dtype=torch.float64)
    d = torch.tensor([[-0.4, 0.2]], dtype=torch.float64)
    change = features.substitution(affine(c, d, degree))[0]
    old = features.products(hermite(x, degree)[None])[0]
    new = features.products(hermite(c.T * x + d.T, degree)[None])[0]
    torch.testing.assert_close(change @ old, new, rtol=0, atol=1e-11)
