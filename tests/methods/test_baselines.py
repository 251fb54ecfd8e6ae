import math

import pytest
import torch

from stages.methods.wavelet import baselines
from stages.methods.wavelet.baselines import (
    BayesShrink,
    EmpiricalBayes,
    FullWiener,
    Identity,
    PixelMean,
)
from tests.methods.wavelet_data import monte_carlo_risk


def images(n, seed=0, side=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, side, side, generator=generator, dtype=torch.float64)
    return x + x.roll(1, -1) + 0.2


@pytest.mark.parametrize("count", [10, 60])  # fewer and more images than the 16 pixels
def test_wiener_equals_the_matrix_formula(count):
    train, y = images(count), images(5, seed=1)
    x = train.flatten(1)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / count
    gain = covariance @ torch.linalg.inv(covariance + 0.49 * torch.eye(16, dtype=torch.float64))
    expected = mean + (y.flatten(1) - mean) @ gain.T
    wiener = FullWiener.fit(train)
    torch.testing.assert_close(wiener(y, 0.7).flatten(1), expected, rtol=0, atol=1e-12)
    rest = torch.eye(16, dtype=torch.float64) - gain
    held_out = images(30, seed=2).flatten(1) - mean
    risk = ((held_out @ rest.T) ** 2).sum(1).mean() + 0.49 * (gain**2).sum()
    assert wiener.risk(images(30, seed=2), 0.7) == pytest.approx(float(risk) / 16, abs=1e-13)


@pytest.mark.parametrize("count", [10, 60])
def test_wiener_reads_images_in_blocks(count, monkeypatch):
    class Stored:
        """Images of a disk, of which a few are read at once."""

        shape = (count, 1, 4, 4)

        def __len__(self):
            return count

        def __getitem__(self, which):
            assert len(range(*which.indices(count))) <= 7
            return images(count)[which]

    whole, y = FullWiener.fit(images(count)), images(5, seed=1)
    monkeypatch.setattr(baselines, "BLOCK_BYTES", 7 * 16 * 8)
    torch.testing.assert_close(FullWiener.fit(Stored())(y, 0.7), whole(y, 0.7), rtol=0, atol=1e-12)


def test_empirical_bayes_is_the_posterior_mean_over_the_training_images():
    train, y = images(12), images(7, seed=1)
    bayes = EmpiricalBayes(train, block=3)
    expected = []
    for noisy in y:
        weights = [math.exp(-float(((noisy - x) ** 2).sum()) / (2 * 0.81)) for x in train]
        expected.append(sum(w * x for w, x in zip(weights, train, strict=True)) / sum(weights))
    torch.testing.assert_close(bayes(y, 0.9), torch.stack(expected), rtol=0, atol=1e-12)
    # At a low level it returns the nearest training image, with no overflow.
    torch.testing.assert_close(bayes(train + 1e-3, 1e-3), train, rtol=0, atol=1e-12)
    # Two points: x tanh(x y / sigma^2)
    pair = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    w = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(EmpiricalBayes(pair)(w, 0.8), torch.tanh(w / 0.64))


def test_empirical_bayes_loses_no_digits_to_an_offset():
    """Images as float32 about 1e4: their inner products alone would be off by whole units."""
    train, y = images(12), images(7, seed=1)
    expected = EmpiricalBayes(train)(y, 0.9)
    far = EmpiricalBayes((train + 1e4).float())((y + 1e4).float(), 0.9) - 1e4
    torch.testing.assert_close(far.double(), expected, rtol=0, atol=0.01)


def test_exact_risks_are_what_sampling_finds():
    train, held_out = images(50), images(40, seed=1)
    for baseline in (Identity(), PixelMean.fit(train), FullWiener.fit(train)):
        exact = baseline.risk(held_out, 0.6)
        sampled = monte_carlo_risk(
            baseline, held_out, 0.6, torch.Generator().manual_seed(3), num_draws=50
        )
        assert abs(sampled.mean - exact) <= max(3 * sampled.standard_error, 1e-12)


def test_the_standard_error_is_that_of_repeated_estimates():
    clean = images(20)
    runs = [
        monte_carlo_risk(Identity(), clean, 0.6, torch.Generator().manual_seed(i), num_draws=3)
        for i in range(200)
    ]
    spread = float(torch.tensor([run.mean for run in runs]).std())
    mean_error = float(torch.tensor([run.standard_error for run in runs]).mean())
    assert mean_error == pytest.approx(spread, rel=0.15)


def test_bayes_shrink_beats_the_noise_on_smooth_images_and_scales_with_them():
    ramp = torch.linspace(-1, 1, 32, dtype=torch.float64)
    clean = (ramp[:, None] * ramp)[None, None].repeat(4, 2, 1, 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).double()
    y = clean + 0.3 * noise
    shrink = BayesShrink()
    denoised = shrink(y, 0.3)
    assert denoised.shape == y.shape
    assert float(((denoised - clean) ** 2).mean()) < 0.4 * 0.09
    torch.testing.assert_close(shrink(7 * y, 2.1), 7 * denoised, rtol=0, atol=1e-10)  # no clipping
    torch.testing.assert_close(shrink(y, 1e-6), y, rtol=0, atol=1e-4)


def test_bad_input_is_refused():
    y = images(2)
    for baseline in (Identity(), PixelMean.fit(y), FullWiener.fit(y), EmpiricalBayes(y)):
        with pytest.raises(ValueError, match="sigma must be above 0"):
            baseline(y, 0.0)
    with pytest.raises(ValueError, match="floating point"):
        FullWiener.fit(torch.ones(3, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        PixelMean.fit(torch.ones(3, 4))
