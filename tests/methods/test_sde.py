"""The SDE sampler against a Gaussian's exact moments and the papers' loop written out."""

import math

import pytest
import torch

from stages.methods.draws import Draws
from stages.methods.path import Guidance, Packing, VelocityDenoiser
from stages.methods.solvers import sde
from stages.nets.sit import SiT

MEAN, STD = 0.7, 0.5


def gaussian(y, s):
    """E[x0 | y] for x0 ~ N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + s**2) * (y - MEAN)


def exact_moments(num_steps: int, last_time: float = 0.04) -> tuple[float, float]:
    """Mean and standard deviation after the scheme's steps, which are affine for a Gaussian."""
    times = [1 + (last_time - 1) * k / (num_steps - 1) for k in range(num_steps)] + [0.0]
    mean, variance = 0.0, 1.0
    for k in range(num_steps):
        t, dt = times[k], times[k + 1] - times[k]
        # v = E[eps - x0 | x] is affine in x: slope a, and -MEAN at x = (1-t) MEAN.
        total = (1 - t) ** 2 * STD**2 + t**2
        a = (t - (1 - t) * STD**2) / total
        slope = 1 + (2 - t) * a
        mean = mean + dt * (slope * mean - (2 - t) * (MEAN + a * (1 - t) * MEAN))
        noise = 2 * t * -dt if k < num_steps - 1 else 0
        variance = (1 + dt * slope) ** 2 * variance + noise
    return mean, math.sqrt(variance)


def test_samples_have_the_schemes_exact_moments():
    draws = Draws(0, torch.arange(4000))
    x = sde.sample(gaussian, draws.at(0).noise((25,)).double(), draws, num_steps=40)
    mean, std = exact_moments(40)
    assert abs(x.mean() - mean) < 4 * STD / 100_000**0.5 + 1e-3  # starts at t=.999 instead of 1
    assert abs(x.std() - std) < 4 * STD / 200_000**0.5 + 1e-3


def test_the_scheme_approaches_the_data_as_steps_grow():
    errors = [abs(exact_moments(n, last_time=10 / n)[1] - STD) for n in (250, 500, 1000)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]
    assert abs(exact_moments(1000, 0.01)[0] - MEAN) < 1e-2


def test_a_sample_does_not_depend_on_its_batch():
    draws = Draws(0, torch.arange(7))

    def run(which):
        return sde.sample(gaussian, draws[which].at(0).noise((2, 3)), draws[which], num_steps=5)

    whole = run(slice(None))
    assert torch.equal(torch.cat([run(slice(0, 3)), run(slice(3, 7))]), whole)
    assert not torch.equal(whole[0], whole[1])


def drift_velocity(x, t, shift):
    """A stand-in for a network: any smooth function of x and t."""
    return torch.sin(3 * x + shift) * (1 - t.reshape(-1, *[1] * (x.ndim - 1))) + shift


def network(image, t, labels, class_token):
    velocity = drift_velocity(image, t, labels) + class_token.mean(1)[:, None, None, None]
    return velocity, drift_velocity(class_token, t, 2 * labels)


def test_guidance_in_an_interval_and_the_class_token_follow_the_papers_loop():
    """The published sampler, written out with separate states and guided drifts."""
    S, scale, (low, high) = 12, 1.8, (0.2, 0.7)
    draws = Draws(3, torch.arange(4))
    packing = Packing((1, 2, 2))
    start = draws.at(0).noise((7,)).double()

    def denoiser(labels):
        return VelocityDenoiser(network, {"labels": labels}, packing)

    guided = Guidance(denoiser(0.4), denoiser(0.1), scale, (low, high))
    result = sde.sample(guided, start, draws, num_steps=S)

    x, c = packing.unpack(start)
    times = [*torch.linspace(1, 0.04, S, dtype=torch.float64).tolist(), 0.0]
    for k in range(S):
        t, dt = times[k], times[k + 1] - times[k]
        at = torch.full((4,), min(t, 0.999), dtype=torch.float64)
        drifts = []
        for labels in (0.4, 0.1):
            v, v_cls = network(x, at, labels, c)
            drifts.append((x + (2 - t) * v, c + (2 - t) * v_cls))
        (d, d_cls), (d_u, d_cls_u) = drifts
        if low <= t <= high:
            d, d_cls = d_u + scale * (d - d_u), d_cls_u + scale * (d_cls - d_cls_u)
        xi, xi_cls = packing.unpack(draws.at(k + 1).noise((7,)).double())
        noise = math.sqrt(2 * t * abs(dt)) if k < S - 1 else 0
        x, c = x + d * dt + noise * xi, c + d_cls * dt + noise * xi_cls
    torch.testing.assert_close(result, packing.pack(x, c), rtol=1e-9, atol=1e-9)
    unguided = sde.sample(denoiser(0.4), start, draws, num_steps=S)
    assert (result - unguided).abs().max() > 0.1


@pytest.mark.parametrize("class_token_dim", [0, 6])
def test_it_samples_from_a_sit(class_token_dim):
    torch.manual_seed(0)
    sit = SiT(8, 1, 2, 16, 2, 2, num_classes=10, class_token_dim=class_token_dim).eval()
    for parameter in sit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    draws, packing = Draws(0, torch.arange(3)), Packing((1, 8, 8)) if class_token_dim else None
    shape = (64 + class_token_dim,) if class_token_dim else (1, 8, 8)
    labels = {"labels": torch.arange(3)}
    null = {"labels": torch.full((3,), sit.num_classes)}
    conditional = VelocityDenoiser(sit, labels, packing)
    guided = Guidance(conditional, VelocityDenoiser(sit, null, packing), 2.0, (0.1, 0.8))
    plain = sde.sample(conditional, draws.at(0).noise(shape), draws, num_steps=6)
    other = sde.sample(guided, draws.at(0).noise(shape), draws, num_steps=6)
    assert plain.shape == (3, *shape)
    assert plain.isfinite().all()
    assert not torch.allclose(plain, other)


def test_it_evaluates_the_network_once_a_step_by_default_250_times():
    calls = []

    def counted(y, s):
        calls.append(float(s))
        return gaussian(y, s)

    sde.sample(counted, torch.zeros(2, 3), Draws(0, torch.arange(2)))
    assert len(calls) == 250
    assert calls[-1] == pytest.approx(0.04 / 0.96)
    grid = sde.time_grid()
    assert grid[0] == 1
    assert grid[-1] == 0
    assert len(grid) == 251


@pytest.mark.parametrize("options", [{"num_steps": 1}, {"last_time": 0.0}, {"last_time": 1.0}])
def test_impossible_grids_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        sde.time_grid(**options)


def test_a_denoiser_that_returns_something_else_is_named():
    x, draws = torch.ones(2, 3), Draws(0, torch.arange(2))
    with pytest.raises(ValueError, match="returned tuple; it must return one torch tensor"):
        sde.sample(lambda y, s: (y, s), x, draws, num_steps=3)
    with pytest.raises(FloatingPointError, match="NaN or infinity at step 3 of 3"):
        sde.sample(lambda y, s: y / (s > 1), x, draws, num_steps=3)
    with pytest.raises(ValueError, match="x is list"):
        sde.sample(lambda y, s: y, [1.0], draws)
    with pytest.raises(ValueError, match="last_time is 1e-40"):
        sde.time_grid(10, 1e-40)
