"""The EDM loss against closed forms and the preconditioning it belongs to."""

import math

import pytest
import torch

from stages.methods import edm
from stages.methods.draws import Draws
from stages.methods.losses import Batch
from stages.methods.path import EDMDenoiser


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_levels_are_log_normal():
    loss = edm.Loss(p_mean=-0.7, p_std=0.9)
    logs = loss.sigma(Draws(0, torch.arange(40_000)).time()).log()
    assert logs.mean().item() == pytest.approx(-0.7, abs=0.02)
    assert logs.std().item() == pytest.approx(0.9, abs=0.02)
    quantiles = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.isfinite(loss.sigma(quantiles)).all()
    assert loss.sigma(quantiles)[1].item() == pytest.approx(math.exp(-0.7))


def test_the_inner_network_has_targets_of_unit_variance():
    """With lambda = 1 / c_out^2 a network that answers 0 has a loss of 1 at every level."""
    sigma_data = 0.4
    images, noise = sigma_data * randn(20_000, 1, 2, 2), randn(20_000, 1, 2, 2, seed=1)
    loss = edm.Loss(sigma_data=sigma_data)
    silent = EDMDenoiser(lambda x, c_noise: torch.zeros_like(x), sigma_data)
    for sigma in (0.01, 0.3, 5.0):
        levels = torch.full((20_000,), sigma, dtype=torch.float64)
        per_image = loss.denoising(silent, images, levels, noise)
        assert per_image.mean().item() == pytest.approx(1, abs=0.03)


def test_the_best_denoiser_of_gaussian_data_reaches_its_risk():
    """D = sd^2 / (sd^2 + s^2) y has the risk s^2 sd^2 / (s^2 + sd^2) = 1 / lambda."""
    images, noise = 0.5 * randn(20_000, 1, 2, 2), randn(20_000, 1, 2, 2, seed=1)
    sigma = randn(20_000, seed=2).exp()
    loss = edm.Loss(sigma_data=0.5)

    def wiener(y, s):
        s = s.view(-1, 1, 1, 1)
        return 0.25 / (0.25 + s**2) * y

    assert loss.denoising(wiener, images, sigma, noise).mean().item() == pytest.approx(1, abs=0.02)


def test_takes_a_batch_with_its_draws():
    images = torch.rand(16, 1, 4, 4) * 2 - 1
    draws = Draws(3, torch.arange(16), step=7)
    seen = {}

    def network(y, sigma, labels=None, drop=None):
        seen.update(y=y, sigma=sigma, labels=labels, drop=drop)
        return 0.5 * y

    loss = edm.Loss(label_dropout=0.5)
    terms = loss(network, Batch(images, None, draws))
    sigma, noise = loss.sigma(draws.time()), draws.noise((1, 4, 4))
    torch.testing.assert_close(seen["y"], images + sigma.view(-1, 1, 1, 1) * noise)
    expected = loss.denoising(lambda y, s: 0.5 * y, images, sigma, noise).mean()
    torch.testing.assert_close(terms.total, expected)
    assert set(terms.terms) == {"denoising"}
    assert seen["labels"] is None
    loss(network, Batch(images, torch.arange(16), draws))
    torch.testing.assert_close(seen["drop"], draws.drop(0.5))
    torch.testing.assert_close(seen["labels"], torch.arange(16))


def test_equal_shares_of_a_batch_average_to_the_whole():
    images = torch.rand(16, 1, 4, 4) * 2 - 1
    batch = Batch(images, None, Draws(3, torch.arange(16), step=7))
    loss = edm.Loss()
    halves = [loss(lambda y, s: 0.5 * y, part).total for part in (batch[:8], batch[8:])]
    whole = loss(lambda y, s: 0.5 * y, batch).total
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edm.Loss(sigma_data=0), "sigma_data is 0"),
        (lambda: edm.Loss(p_std=-1), "p_std is -1"),
        (lambda: edm.Loss(label_dropout=2), "label_dropout is 2"),
        (
            lambda: edm.Loss().denoising(
                lambda y, s: y, torch.zeros(3, 1, 2, 2), torch.ones(3, 1), torch.zeros(3, 1, 2, 2)
            ),
            r"need sigma \(3,\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
