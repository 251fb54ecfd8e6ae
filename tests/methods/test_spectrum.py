"""The radial power spectrum against the plain transform, and its independence of batches."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from stages.methods.spectrum import (
    RadialPower,
    _exact_sums,
    _radial_bins,
    check_pixels,
    radial_power,
)


def make_images(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1


def loop_power(grey):
    """The definition as plain loops over all frequencies of the whole plane: (frequency, power)."""
    _, height, width = grey.shape
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(0) / (height * width)
    fy, fx = np.abs(np.fft.fftfreq(height)), np.abs(np.fft.fftfreq(width))
    bin_width = math.hypot(fy.max(), fx.max()) / (max(height, width) // 2)
    bins = [[] for _ in range(max(height, width) // 2)]
    for i, j in itertools.product(range(height), range(width)):
        k = math.floor(math.hypot(fy[i], fx[j]) / bin_width + 1e-9)
        bins[min(k, len(bins) - 1)].append(power[i, j])
    return (np.arange(len(bins)) + 0.5) * bin_width, np.array([np.mean(b) for b in bins])


SIZES = [(16, 16), (8, 8), (9, 9), (12, 20), (20, 12), (15, 8), (1, 8), (2, 3), (64, 64)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_power_is_the_definition_written_as_loops(height, width):
    images = make_images(3, 1, height, width, dtype=torch.float64)
    frequency, power = radial_power(images)
    expected = loop_power(images[:, 0].numpy())
    np.testing.assert_allclose(frequency, expected[0], rtol=1e-14)
    np.testing.assert_allclose(power, expected[1], rtol=1e-12)
    float32 = radial_power(images.float())[1]
    np.testing.assert_allclose(float32, expected[1], rtol=2e-5)


def test_rgb_is_grey_by_rec_601_and_not_the_mean_of_the_channels():
    images = make_images(4, 3, 16, 16, dtype=torch.float64)
    red, green, blue = images.unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = loop_power(grey.numpy())[1]
    np.testing.assert_allclose(radial_power(images)[1], expected, rtol=1e-12)
    same = grey[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(radial_power(same), radial_power(grey[:, None]))


def test_square_images_have_bins_up_to_the_corner_and_none_is_empty():
    frequency, _ = radial_power(make_images(1, 1, 256, 256))
    np.testing.assert_allclose(frequency, (np.arange(128) + 0.5) * math.sqrt(0.5) / 128)
    for height, width in itertools.product(range(1, 33), repeat=2):
        if max(height, width) > 1:
            counts = _radial_bins.__wrapped__(height, width).counts
            assert min(counts) > 0
            assert sum(counts) == height * width


def test_a_wave_falls_into_its_bin_on_images_that_are_not_square():
    x = torch.arange(48)
    wave = torch.cos(2 * math.pi * 12 / 48 * x).expand(1, 1, 16, 48)  # 0.25 cycles a pixel
    for images in (wave, wave.transpose(2, 3)):
        frequency, power = radial_power(images)
        assert len(frequency) == 24
        assert frequency[power.argmax()] == pytest.approx(0.25, abs=math.sqrt(0.5) / 48)


def test_white_noise_has_power_one():
    noise = torch.randn(600, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    power = radial_power(noise)[1]
    counts = torch.tensor(_radial_bins(32, 32).counts)
    # |FFT|^2 is exponential; a frequency and its mirror image are one draw.
    standard_error = (2 / counts / 600).sqrt()
    assert ((power - 1) / standard_error).abs().max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(41, 1, 64, 64), (41, 1, 28, 28), (41, 3, 9, 7), (300, 1, 8, 8)])
def test_batches_and_shards_change_no_bit(shape, dtype):
    images = make_images(*shape, dtype=dtype)
    whole = RadialPower.collect(images)
    for size in (1, 3, 16):
        shards = [RadialPower.collect(batch) for batch in images.split(size)]
        shards = [RadialPower.from_state(json.loads(json.dumps(s.state()))) for s in shards]
        assert sum(shards[1:], shards[0]) == whole
        half = len(shards) // 2
        left, right = sum(shards[1:half], shards[0]), sum(shards[half + 1 :], shards[half])
        assert right + left == whole
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert RadialPower.collect(images[order]) == whole
    assert all(map(torch.equal, radial_power(images.split(5)), radial_power(images)))


def test_sums_are_exact():
    values = np.array([[0.1, 1e300], [1e-20, 1.0], [1e20, 1e-300], [5e-324, 3.0]])
    sums = _exact_sums(values)
    assert sums == [sum(_units(v) for v in column) for column in values.T]
    random = np.exp(np.random.default_rng(0).normal(scale=20, size=(50, 3)))
    assert _exact_sums(random) == [sum(_units(v) for v in column) for column in random.T]
    assert _exact_sums(np.zeros((2, 2))) == [0, 0]


def _units(value):
    numerator, denominator = float(value).as_integer_ratio()
    return numerator * (2**1074 // denominator)


def test_latents_are_refused_with_the_reason_unless_allowed():
    latents = make_images(5, 4, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"derived for pixels.*luminance.*allow_latent"):
        radial_power(latents)
    channels = [radial_power(latents[:, c : c + 1])[1] for c in range(4)]
    allowed = radial_power(latents, allow_latent=True)[1]
    torch.testing.assert_close(allowed, torch.stack(channels).mean(0))
    # Three channels that are known to be latents are neither accepted nor turned into grey.
    with pytest.raises(ValueError, match="latents"):
        radial_power(latents[:, :3], latent=True)
    three = radial_power(latents[:, :3], latent=True, allow_latent=True)[1]
    torch.testing.assert_close(three, torch.stack(channels[:3]).mean(0))
    assert not check_pixels(1)
    assert not check_pixels(3, allow_latent=True)
    assert check_pixels(16, allow_latent=True)


def test_pixels_of_0_to_255_are_refused_and_latents_have_any_scale():
    images = torch.rand(3, 1, 4, 4) * 255
    with pytest.raises(ValueError, match=r"images reach 2\d\d.*; give pixels in \[-1, 1\], as"):
        radial_power(images)
    radial_power(images, latent=True, allow_latent=True)
    radial_power(16 * (images / 255))  # noise and drawn images reach beyond 1


def test_errors():
    images = make_images(2, 1, 8, 8)
    with pytest.raises(ValueError, match="floating-point"):
        radial_power((images * 255).to(torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        radial_power(images[:, 0])
    with pytest.raises(ValueError, match="no channels"):
        radial_power(images[:, :0], allow_latent=True)
    with pytest.raises(ValueError, match="not finite"):
        radial_power(images / 0)
    with pytest.raises(ValueError, match="too small"):
        radial_power(images[..., :1, :1])
    with pytest.raises(ValueError, match="at least one batch"):
        radial_power([])
    with pytest.raises(ValueError, match="spectrum of no images"):
        radial_power(images[:0])
    with pytest.raises(ValueError, match="cannot be added"):
        RadialPower.collect(images) + RadialPower.collect(images[..., :4])
    empty = RadialPower.collect(images[:0])
    assert empty + RadialPower.collect(images) == RadialPower.collect(images)


def test_small_batches_are_joined_to_whole_chunks(monkeypatch):
    images, transformed = make_images(300, 1, 64, 64), []
    whole, transform = radial_power(images), torch.fft.rfft2

    def counted(grey):
        transformed.append(len(grey))
        return transform(grey)

    monkeypatch.setattr(torch.fft, "rfft2", counted)
    for size in (1, 2, 17, 270):
        transformed.clear()
        assert all(map(torch.equal, radial_power(iter(images.split(size))), whole))
        assert sum(transformed) == 304  # whole chunks of 16


def test_batches_of_other_sizes_are_refused_when_joined():
    with pytest.raises(ValueError, match="cannot be added"):
        radial_power([make_images(2, 1, 8, 8), make_images(2, 1, 8, 6)])
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        radial_power([make_images(2, 1, 8, 8), make_images(2, 1, 8, 8)[:, 0]])
    mixed = [make_images(2, 1, 8, 8), make_images(3, 1, 8, 8, dtype=torch.float64)]
    parts = [RadialPower.collect(batch) for batch in mixed]
    assert all(map(torch.equal, radial_power(mixed), (parts[0] + parts[1]).spectrum()))
