"""Networks of other conventions as denoisers: exact on data of one point, and on diffusers' own."""

import pytest
import torch
from torch import nn

from stages.nets.adapters import (
    PATHS,
    Interpolant,
    NoisePredictor,
    coefficients,
    levels_of,
    linear_levels,
    time_of,
)

POINT = 0.3
SIGMAS = [0.02, 0.5, 4.0, 80.0]


class Exact(nn.Module):
    """What a perfect network predicts of data of one point, from x and what `of` makes of it."""

    def __init__(self, of):
        super().__init__()
        self.one, self.of = nn.Parameter(torch.ones(1)), of

    def forward(self, x, times, labels):
        return self.of(x.double(), times.double().reshape(-1, 1, 1, 1)).to(x.dtype)


def noisy(sigma):
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    return POINT + sigma * noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_predictions_of_discrete_diffusion(prediction, sigma):
    norm = (1 + sigma**2) ** 0.5

    def of(x, times):
        eps = (x * norm - POINT) / sigma
        answers = {
            "epsilon": eps,
            "sample": POINT + 0 * x,
            "v_prediction": (eps - sigma * POINT) / norm,
        }
        return torch.cat([answers[prediction], torch.ones_like(x)], dim=1)

    network = NoisePredictor(Exact(of).double(), linear_levels(), prediction)
    y = noisy(sigma)
    torch.testing.assert_close(network(y, sigma), torch.full_like(y, POINT), rtol=0, atol=1e-9)


def test_clipping_is_of_the_clean_image():
    network = NoisePredictor(Exact(lambda x, t: 3 + 0 * x), linear_levels(), "sample", clip=1.0)
    assert network(noisy(1.0), 1.0).unique().tolist() == [1.0]


def test_times_are_exact_at_levels_and_between_them_monotone():
    levels = linear_levels()
    network = NoisePredictor(nn.Identity(), levels)
    at = torch.tensor([levels[0], levels[17], levels[512], levels[999]], dtype=torch.float64)
    torch.testing.assert_close(network.time(at), torch.tensor([0, 17, 512, 999.0]).double())
    halfway = (levels[10] * levels[11]) ** 0.5
    assert network.time(torch.tensor([halfway])).item() == pytest.approx(10.5, abs=1e-4)
    assert network.time(torch.tensor([1e-9, 1e9])).tolist() == [0, 999]
    assert levels[500] == pytest.approx(3.44, abs=0.005)
    infinite = levels_of(torch.tensor([0.9, 0.5, 0.0]))  # a schedule of zero terminal SNR
    assert NoisePredictor(nn.Identity(), infinite).time(torch.tensor([1e9])).item() == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_predictions_of_the_sit_family(path, prediction, sigma):
    def of(x, times):
        (alpha, dalpha), (s, ds) = coefficients(times, path)
        eps = (x - alpha * POINT) / s
        answers = {"velocity": dalpha * POINT + ds * eps, "noise": eps, "score": -eps / s}
        return answers[prediction]

    network, y = Interpolant(Exact(of).double(), path, prediction), noisy(sigma)
    torch.testing.assert_close(network(y, sigma), torch.full_like(y, POINT), rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_paths_meet_their_levels_and_their_derivatives(path):
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    t = time_of(sigma, path)
    (alpha, dalpha), (s, ds) = coefficients(t, path)
    torch.testing.assert_close(s / alpha, sigma)
    (alpha2, _), (s2, _) = coefficients(t + 1e-6, path)
    torch.testing.assert_close((alpha2 - alpha) / 1e-6, dalpha, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((s2 - s) / 1e-6, ds, rtol=1e-4, atol=1e-5)


def test_unknown_conventions_are_refused():
    with pytest.raises(ValueError, match="prediction 'eps' is none of epsilon, v_pred"):
        NoisePredictor(nn.Identity(), linear_levels(), "eps")
    with pytest.raises(ValueError, match="path 'straight' is none of linear, cosine, vp"):
        Interpolant(nn.Identity(), "straight")
