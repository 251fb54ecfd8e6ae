"""Samplers that add noise, against their formulas with stored noise and a Gaussian's moments."""

import math

import pytest
import torch

from stages.methods import grids, solvers
from stages.methods.draws import Draws
from stages.methods.path import Guidance, Packing, VelocityDenoiser
from stages.methods.solvers.stochastic import Churn, ancestral, ancestral_step, churned
from tests import oracle

MEAN, STD = 0.7, 0.5


def gaussian(y, s):
    """E[x0 | y] for x0 ~ N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + s**2) * (y - MEAN)


def test_ancestral_is_its_formula_with_stored_noise():
    mixture, levels, draws = (
        oracle.bench_mixture(0),
        grids.edm(7, 80, 0.02),
        Draws(5, torch.arange(6)),
    )
    y = start = 80 * draws.at(0).noise((16,)).double()
    grid = levels.tolist()
    for k in range(7):
        s, s_next = grid[k], grid[k + 1]
        # q(y_next | y, x0): mean and variance of the forward chain with independent increments.
        variance = s_next**2 * (s**2 - s_next**2) / s**2
        down = math.sqrt(s_next**2 - variance)
        eps = (y - mixture.denoiser(y, s)) / s
        y = y + (down - s) * eps
        if s_next > 0:
            y = y + math.sqrt(variance) * draws.at(k + 1).noise((16,)).double()
    assert torch.allclose(ancestral(mixture.denoiser, start, levels, draws), y, atol=1e-9)
    assert not torch.allclose(solvers.solve(mixture.denoiser, start, levels, "euler"), y)


def test_churn_is_algorithm_2_with_stored_noise():
    mixture, levels, draws = (
        oracle.bench_mixture(0),
        grids.edm(9, 80, 0.002),
        Draws(5, torch.arange(6)),
    )
    churn = Churn(amount=3.0, lowest=0.05, highest=50.0, noise=1.003)
    x = start = 80 * draws.at(0).noise((16,)).double()
    t, raised = levels.tolist(), 0
    for i in range(9):
        gamma = min(3.0 / 9, math.sqrt(2) - 1) if 0.05 <= t[i] <= 50 else 0
        raised += gamma > 0
        hat = t[i] + gamma * t[i]
        noise = 1.003 * draws.at(i + 1).noise((16,)).double()
        x = x + math.sqrt(hat**2 - t[i] ** 2) * noise
        d = (x - mixture.denoiser(x, hat)) / hat
        x_next = x + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            d_next = (x_next - mixture.denoiser(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - hat) * (d / 2 + d_next / 2)
        x = x_next
    assert 0 < raised < 9
    assert torch.allclose(churned(mixture.denoiser, start, levels, draws, churn), x, atol=1e-9)


def test_without_churn_it_is_heun():
    mixture, levels, draws = (
        oracle.bench_mixture(0),
        grids.edm(9, 80, 0.002),
        Draws(5, torch.arange(6)),
    )
    start = 80 * draws.at(0).noise((16,)).double()
    plain = churned(mixture.denoiser, start, levels, draws, Churn(amount=0))
    assert torch.allclose(plain, solvers.solve(mixture.denoiser, start, levels, "heun"), atol=1e-9)


def test_churn_has_order_two_where_noise_is_the_same():
    """Noise is added at the first level alone, so that the rest is the flow from what it gave."""
    data = oracle.Gaussian(oracle.noise((4,), 2), torch.eye(4, dtype=torch.float64))
    draws, errors = Draws(1, torch.arange(64)), []
    y = 10 * draws.at(0).noise((4,)).double()
    for n in (80, 160):
        raised = 10 * (1 + 1 / n)
        risen = y + math.sqrt(raised**2 - 100) * draws.at(1).noise((4,)).double()
        levels = torch.cat([torch.linspace(10, 1, n).double(), torch.zeros(1)])
        churn = Churn(amount=1.0, lowest=9.99, highest=10.01, noise=1.0)
        seen = []

        def watched(state, s, seen=seen):
            seen.append((s, state))
            return data.denoiser(state, s)

        churned(watched, y, levels, draws, churn)
        last = next(state for s, state in reversed(seen) if s == 1.0)
        errors.append(oracle.rms(last - data.flow(risen, raised, 1.0)))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.4


def test_churn_has_order_two_on_the_exact_mixture():
    """Noise at the first level alone, as above; uniform log-SNR, short of s=0."""
    mixture, draws, errors = oracle.bench_mixture(0), Draws(1, torch.arange(16)), []
    y = 80 * draws.at(0).noise((16,)).double()
    for n in (80, 160):
        raised = 80 * (1 + 1 / n)
        risen = y + math.sqrt(raised**2 - 80**2) * draws.at(1).noise((16,)).double()
        levels, seen = grids.log_snr(n, 80, 0.1), []

        def watched(state, s, seen=seen):
            seen.append((s, state))
            return mixture.denoiser(state, s)

        churned(watched, y, levels, draws, Churn(1.0, lowest=79.9, highest=80.1, noise=1.0))
        last = next(state for s, state in reversed(seen) if s == levels[-2].item())
        end = oracle.runge_kutta(mixture.denoiser, risen, raised, 0.1, 1000)
        errors.append(oracle.rms(last - end))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3


def moments(levels, step):
    """Mean and standard deviation that an affine step leaves of N(0, levels[0]^2)."""
    mean, variance = 0.0, levels[0] ** 2
    for k in range(len(levels) - 1):
        slope, added = step(levels[k], levels[k + 1])
        mean = MEAN + slope * (mean - MEAN)
        variance = slope**2 * variance + added**2
    return mean, math.sqrt(variance)


def test_ancestral_samples_have_the_schemes_exact_moments_and_approach_the_data():
    def step(s, s_next):
        down, up = ancestral_step(s, s_next)
        gain = STD**2 / (STD**2 + s**2)
        return gain + down / s * (1 - gain), up

    levels, draws = grids.edm(30, 80, 0.02), Draws(0, torch.arange(4000))
    y = ancestral(gaussian, 80 * draws.at(0).noise((25,)).double(), levels, draws)
    mean, std = moments(levels.tolist(), step)
    assert abs(y.mean() - mean) < 4 * STD / 100_000**0.5
    assert abs(y.std() - std) < 4 * STD / 200_000**0.5
    errors = [abs(moments(grids.edm(n, 80, 0.02).tolist(), step)[1] - STD) for n in (100, 200, 400)]
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]  # of first order


def test_churned_samples_of_many_steps_have_the_datas_moments():
    draws = Draws(0, torch.arange(4000))
    start = 80 * draws.at(0).noise((25,)).double()
    y = churned(gaussian, start, grids.edm(100, 80, 0.002), draws, Churn(noise=1.0))
    assert abs(y.mean() - MEAN) < 5 * STD / 100_000**0.5 + 1e-3
    assert abs(y.std() - STD) < 5 * STD / 200_000**0.5 + 3e-3


@pytest.mark.parametrize("sampler", [ancestral, churned])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    draws, levels = Draws(0, torch.arange(7)), grids.edm(5, 80, 0.02)

    def run(which):
        return sampler(gaussian, 80 * draws[which].at(0).noise((2, 3)), levels, draws[which])

    assert torch.equal(torch.cat([run(slice(0, 3)), run(slice(3, 7))]), run(slice(None)))


@pytest.mark.parametrize("sampler", [ancestral, churned])
def test_guidance_and_class_tokens_come_with_the_denoiser(sampler):
    def network(image, t, labels, class_token):
        velocity = torch.sin(image + labels) + class_token.mean(1)[:, None, None, None]
        return velocity, torch.cos(class_token + 2 * labels)

    packing, draws = Packing((1, 2, 2)), Draws(3, torch.arange(4))
    start = 20 * draws.at(0).noise((7,)).double()
    one, other = (VelocityDenoiser(network, {"labels": x}, packing) for x in (0.4, 0.1))
    levels = grids.edm(6, 20, 0.05)
    guided = sampler(Guidance(one, other, 1.8, (0.2, 0.7)), start, levels, draws)
    plain = sampler(one, start, levels, draws)
    assert guided.shape == plain.shape == (4, 7)
    assert (guided - plain)[:, :4].abs().max() > 1e-3
    assert (guided - plain)[:, 4:].abs().max() > 1e-3


@pytest.mark.parametrize("sampler", [ancestral, churned])
def test_errors_of_the_denoiser_name_the_step(sampler):
    y, draws, levels = torch.ones(2, 3), Draws(0, torch.arange(2)), torch.tensor([2.0, 1.0, 0.0])
    with pytest.raises(FloatingPointError, match="NaN or infinity at step"):
        sampler(lambda y, s: y * math.nan, y, levels, draws)
    with pytest.raises(ValueError, match="do not descend"):
        sampler(gaussian, y, torch.tensor([1.0, 2.0, 0.0]), draws)
