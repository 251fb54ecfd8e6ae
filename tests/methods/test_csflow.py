"""CSFlow's weights, grids and densities against the paper's spectrum and against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from stages.methods import csflow
from stages.methods.density import LogitNormal, Uniform

# Radially averaged power of ImageNet at 256 x 256, images in [-1, 1], six digits.
# fmt: off
IMAGENET_POWER = (
    1996.42, 187.772, 48.3398, 18.4689, 11.4901, 6.11531, 3.85541, 3.11128,
    1.89312, 1.69487, 1.13671, 0.908302, 0.821565, 0.603643, 0.577516, 0.431885,
    0.406493, 0.329014, 0.278157, 0.275658, 0.21476, 0.21502, 0.176289, 0.155321,
    0.160993, 0.127362, 0.133533, 0.109517, 0.109058, 0.0967462, 0.085355, 0.0896584,
    0.0746408, 0.0769698, 0.0675299, 0.0620513, 0.0656055, 0.0551564, 0.0577483, 0.0503395,
    0.0469598, 0.0504712, 0.0428544, 0.0451595, 0.0390534, 0.0404683, 0.0368535, 0.0343699,
    0.0364608, 0.0316946, 0.0331452, 0.0295229, 0.0281002, 0.0300119, 0.0261419, 0.0272409,
    0.0243553, 0.0248343, 0.0231953, 0.0217927, 0.0229786, 0.0201471, 0.0211234, 0.0190677,
    0.0181996, 0.0190044, 0.016961, 0.0175926, 0.015778, 0.0151539, 0.0158478, 0.0140593,
    0.0147246, 0.0130928, 0.0133862, 0.0123084, 0.0116179, 0.012137, 0.0107836, 0.0112779,
    0.0100151, 0.00960737, 0.0101775, 0.00896834, 0.00946318, 0.00841439, 0.00870017, 0.00800406,
    0.00766443, 0.00816137, 0.00688772, 0.00608207, 0.00582762, 0.00563174, 0.00545039, 0.00530104,
    0.0051338, 0.00497958, 0.00481888, 0.00466439, 0.00450853, 0.00436091, 0.00421155, 0.00405483,
    0.00390829, 0.0037682, 0.00361971, 0.00348546, 0.00334133, 0.00321108, 0.00307587, 0.00295611,
    0.00283723, 0.00272949, 0.00261907, 0.00250935, 0.00241892, 0.00233368, 0.00225034, 0.0021771,
    0.00210801, 0.00206163, 0.00201108, 0.00198231, 0.00195067, 0.00194375, 0.00199469, 0.0022795,
)
# fmt: on
IMAGENET_FREQUENCY = (np.arange(128) + 0.5) * math.sqrt(0.5) / 128
DEGREES_PER_PIXEL = math.degrees(2 * math.atan(0.000114 / 2 / 0.5))


@pytest.fixture(scope="module")
def imagenet_weights():
    return csflow.interval_weights(IMAGENET_FREQUENCY, IMAGENET_POWER)


def barten(u):
    """The contrast sensitivity function, written down once more from its constants."""
    if u == 0:
        return 0.0
    optics = math.exp(-2 * (math.pi * 0.5 / 60 * u) ** 2)
    area = 1 / 60**2 + 1 / 12**2 + (u / 15) ** 2
    noise = 1 / (0.03 * 1.2e6 * 500) + 3e-8 / (1 - math.exp(-((u / 7) ** 2)))
    return optics / 3 / math.sqrt(20 * area * noise)


def retained(power, tau):
    if power == 0:
        return 0.0
    return tau**2 * power / (tau**2 * power + (1 - tau) ** 2)


def loop_weights(frequency, power, num_intervals, scale):
    """The definition of the weights as plain loops; scale: cycles per degree over cycles/pixel."""
    weights = []
    for i in range(num_intervals):
        lower, upper = i / num_intervals, (i + 1) / num_intervals
        dr = [retained(p, upper) - retained(p, lower) for p in power]
        seen = gained = 0.0
        for j in range(len(frequency) - 1):
            du = (frequency[j + 1] - frequency[j]) * scale
            s = [barten(frequency[j] * scale), barten(frequency[j + 1] * scale)]
            seen += (s[0] * dr[j] + s[1] * dr[j + 1]) / 2 * du
            gained += (dr[j] + dr[j + 1]) / 2 * du
        weights.append(seen / gained)
    return np.array(weights) / sum(weights)


def test_weights_match_the_published_spectrum(imagenet_weights):
    tau = [0, 0.02, 0.05, 0.1, 0.168, 0.3, 0.5, 0.8, 0.998]
    expected = [0.6530, 0.9122, 1.3728, 1.6332, 1.7161, 1.5670, 1.1261, 0.4038, 0.0459]
    got = 500 * imagenet_weights[[round(500 * x) for x in tau]]
    np.testing.assert_allclose(got, expected, rtol=0, atol=5.1e-5)
    assert imagenet_weights.argmax() == round(500 * 0.168)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (1, [0, 0.08403, 0.14435, 0.20276, 0.26261, 0.32598, 0.39504, 0.47289, 0.5653, 0.68712, 1]),
        (
            0.4,
            [0, 0.09178, 0.17033, 0.24863, 0.32964, 0.41519, 0.50707, 0.6075, 0.71961, 0.8482, 1],
        ),
    ],
)
def test_grids_match_the_published_spectrum(imagenet_weights, mix, expected):
    t = csflow.time_grid(imagenet_weights, 10, mix)
    np.testing.assert_allclose(1 - t, expected, rtol=0, atol=5.1e-6)
    assert t[0] == 1
    assert t[-1] == 0


def test_sensitivity_of_the_eye():
    u = torch.tensor([0.0, 0.1, 1.0, 2.354, 10.0, 54.0, 1e4])
    expected = [barten(float(x)) for x in u]
    torch.testing.assert_close(csflow.contrast_sensitivity(u), torch.tensor(expected).double())
    fine = torch.linspace(0, 60, 60001, dtype=torch.float64)
    sensitivity = csflow.contrast_sensitivity(fine)
    assert fine[sensitivity.argmax()] == pytest.approx(2.354, abs=2e-3)
    assert sensitivity.max() == pytest.approx(714.93, abs=0.01)
    with pytest.raises(ValueError, match="must not be negative"):
        csflow.contrast_sensitivity(torch.tensor([-1.0]))


def test_weights_are_the_definition_written_as_loops():
    frequency, power = [0.02, 0.1, 0.15, 0.4, 0.6], [900.0, 3.0, 0.5, 0.0, 0.01]
    expected = loop_weights(frequency, power, 20, scale=5 * 2 / 256 / DEGREES_PER_PIXEL)
    weights = csflow.interval_weights(frequency, power, 20, image_pixels=10)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def test_display_scale():
    frequency, power = torch.tensor(IMAGENET_FREQUENCY[:16] * 8), IMAGENET_POWER[:16]
    u = csflow.cycles_per_degree(frequency, 0.0002, 0.4, display_pixels=128)
    degrees = math.degrees(2 * math.atan(0.0002 / 2 / 0.4)) * 128  # the image's width
    torch.testing.assert_close(u, frequency * 32 / degrees)
    # By default every image fills the same 256 pixels, so that the same picture at a lower
    # resolution keeps its cycles per degree.
    full = csflow.cycles_per_degree(torch.tensor(IMAGENET_FREQUENCY))
    torch.testing.assert_close(csflow.cycles_per_degree(frequency), full[:16])
    pixel_by_pixel = csflow.interval_weights(frequency, power, display_pixels=32)
    assert not torch.allclose(pixel_by_pixel, csflow.interval_weights(frequency, power))
    for name in ("pixel_size", "distance", "display_pixels", "image_pixels"):
        with pytest.raises(ValueError, match=name):
            csflow.cycles_per_degree(frequency, **{name: 0})


def test_the_frequencies_tell_the_size_of_the_images():
    sides = [2, 3, 4, 5, 8, 9, 14, 15, 27, 33, 64]
    for height, width in itertools.product(sides, sides):
        frequency, _ = csflow.radial_power(torch.rand(1, 1, height, width).double())
        told = csflow.cycles_per_degree(frequency)
        given = csflow.cycles_per_degree(frequency, image_pixels=max(height, width))
        assert torch.equal(told, given), (height, width)
    frequency, power = csflow.radial_power(torch.rand(3, 1, 9, 9))
    weights = csflow.interval_weights(frequency.float(), power)
    torch.testing.assert_close(weights, csflow.interval_weights(frequency, power, image_pixels=9))
    even = csflow.interval_weights(frequency, power, image_pixels=8)
    assert (weights / even - 1).abs().max() > 0.01


@pytest.mark.parametrize("frequency", [[0.1, 0.2, 0.3], [0.1], [], 0.1, IMAGENET_FREQUENCY[:64]])
def test_frequencies_that_do_not_tell_the_size_ask_for_it(frequency):
    with pytest.raises(ValueError, match="set image_pixels"):
        csflow.cycles_per_degree(frequency)
    csflow.cycles_per_degree(frequency, image_pixels=7)


@pytest.mark.parametrize("height", [1.0, 1e-30, 700.0, 1e30])
def test_flat_spectrum_weighs_all_intervals_alike(height):
    frequency = torch.tensor(IMAGENET_FREQUENCY)
    weights = csflow.interval_weights(frequency, torch.full((128,), height).double(), 50)
    torch.testing.assert_close(weights, torch.full((50,), 1 / 50, dtype=torch.float64))
    grid = csflow.time_grid(weights, 7, mix=1)
    torch.testing.assert_close(grid, torch.linspace(1, 0, 8, dtype=torch.float64))


def test_gains_are_the_differences_of_the_retained_signal():
    power = torch.tensor([0.0, 1e-8, 0.1, 1.0, 30.0, 1e6], dtype=torch.float64)
    tau = torch.linspace(0, 1, 31, dtype=torch.float64)
    gains = csflow.generated(power, 30)
    torch.testing.assert_close(gains, csflow.retained_signal(power, tau).diff(dim=0))
    torch.testing.assert_close(gains.sum(0), (power > 0).double())
    # Far below the rounding of r itself, the gain still follows 2 n dn / P.
    gain = float(csflow.generated([1e40], 1000)[500])
    assert gain == pytest.approx(8e-43, rel=0.01, abs=0)


@pytest.mark.parametrize("power", [5e-324, 1e-300, 1e300])
def test_extreme_powers_give_finite_weights(power):
    powers = [power, power / 2, power]
    weights = csflow.interval_weights([0.1, 0.2, 0.3], powers, 10, image_pixels=6)
    assert weights.isfinite().all()
    assert weights.sum() == pytest.approx(1)


def test_white_noise_as_data_weighs_all_intervals_alike():
    images = torch.randn(2000, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = csflow.interval_weights(*csflow.radial_power(images), 50)
    assert (50 * weights - 1).abs().max() < 0.02


def test_scaled_images_scale_the_power_and_move_the_weights():
    images = torch.rand(9, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    c = 0.3
    frequency, power = csflow.radial_power(images)
    scaled = csflow.radial_power(c * images)[1]
    torch.testing.assert_close(scaled, c**2 * power, rtol=1e-12, atol=0)
    weights = csflow.interval_weights(frequency, scaled, 40)
    expected = loop_weights(
        frequency.tolist(), (c**2 * power).tolist(), 40, 16 / 256 / DEGREES_PER_PIXEL
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    # Signal scaled by c at tau is seen like the signal itself where tau/(1-tau) is c times as big.
    tau = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    odds = c * tau / (1 - tau)
    torch.testing.assert_close(
        csflow.retained_signal(scaled, tau), csflow.retained_signal(power, odds / (1 + odds))
    )


WEIGHTS = {
    "zeros inside": [0, 0, 3, 0, 0, 1, 0],
    "only the first": [1] + [0] * 499,
    "only the last": [0] * 499 + [1],
    "far apart": [1e-300, 1, 1e-300, 1e300],
    "huge": [1e308, 1e308, 1e308],
    "one interval": [2.0],
    "random": torch.rand(500, generator=torch.Generator().manual_seed(2)).tolist(),
}


@pytest.mark.parametrize("mix", [0, 0.4, 1])
@pytest.mark.parametrize("name", WEIGHTS)
def test_grids_descend_from_one_to_zero_for_any_weights(name, mix):
    for num_steps in (1, 2, 10, 1000):
        grid = csflow.time_grid(WEIGHTS[name], num_steps, mix)
        assert grid.shape == (num_steps + 1,)
        assert grid[0] == 1
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()
        # Equal quantiles: the cumulative distribution rises by 1 / num_steps from point to point.
        # (With mix=1 and no weight at an end, the end point stands beyond the support.)
        steps = csflow.time_density(WEIGHTS[name], mix).cdf(grid).diff()
        torch.testing.assert_close(steps, torch.full_like(steps, -1 / num_steps))


def test_grid_points_avoid_intervals_without_weight():
    grid = csflow.time_grid([0, 1, 0, 1], 4, mix=1)  # over tau: nothing below 1/4, or in 1/2..3/4
    # Half of the weight lies on either side of the gap; the point stands at its clean end.
    torch.testing.assert_close(1 - grid, torch.tensor([0, 0.375, 0.75, 0.875, 1]).double())


@pytest.mark.parametrize("base", [None, LogitNormal(0.5, 1.2)])
def test_sampled_times_follow_the_density(imagenet_weights, base):
    density = csflow.time_density(imagenet_weights, 0.4, base)
    u = torch.rand(20000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    levels = np.concatenate([[0], np.cumsum(imagenet_weights.numpy())])

    def truth(t):
        theirs = t if base is None else stats.norm.cdf((np.log(t / (1 - t)) - 0.5) / 1.2)
        return 0.4 * (1 - np.interp(1 - t, np.linspace(0, 1, 501), levels)) + 0.6 * theirs

    t = density.sample(u).numpy()
    np.testing.assert_allclose(truth(t), u, rtol=0, atol=1e-12)
    assert stats.kstest(t, truth).pvalue > 0.01
    assert stats.kstest(t, lambda t: t).pvalue < 1e-6  # the test can tell


@pytest.mark.parametrize(
    ("frequency", "power", "message"),
    [
        ([0.1], [1.0], "F >= 2"),
        ([0.1, 0.2], [1.0], "one shape"),
        ([0.2, 0.1], [1.0, 1.0], "increase"),
        ([0.1, 0.2], [1.0, -1.0], "power must be finite"),
        ([0.1, 0.2], [1.0, math.nan], "power must be finite"),
        ([0.1, 0.2], [0.0, 0.0], "not zero at every"),
    ],
)
def test_malformed_spectra_are_refused(frequency, power, message):
    with pytest.raises(ValueError, match=message):
        csflow.interval_weights(frequency, power)


def test_a_display_on_which_nothing_can_be_seen_is_refused():
    with pytest.raises(ValueError, match="change display_pixels"):
        csflow.interval_weights(IMAGENET_FREQUENCY, IMAGENET_POWER, distance=1e4)


def test_figure_data(imagenet_weights):
    data = csflow.figure_data(IMAGENET_FREQUENCY, IMAGENET_POWER, num_steps=5, mixes=(0.4, 1.0))
    u = csflow.cycles_per_degree(torch.tensor(IMAGENET_FREQUENCY))
    torch.testing.assert_close(data.frequency_cpd, u)
    assert data.sensitivity.max() == pytest.approx(714.93, abs=0.5)
    # t runs from noise to data, and each frequency is generated once over it.
    assert data.t[0] == 1 - 1 / 1000
    assert data.t[-1] == pytest.approx(1 / 1000)
    torch.testing.assert_close(data.generated.mean(0), torch.ones(128).double())
    # In the middle of the time in which a frequency appears, signal and noise are alike:
    # tau^2 P = (1 - tau)^2, so t = sqrt(P) / (1 + sqrt(P)) is where r = 1/2.
    half = (data.generated.cumsum(0) / 500 < 0.5).sum(0)
    expected = torch.tensor(IMAGENET_POWER).double().sqrt()
    torch.testing.assert_close(data.t[half], expected / (1 + expected), rtol=0, atol=2.1e-3)
    torch.testing.assert_close(data.weights, 500 * imagenet_weights)
    torch.testing.assert_close(data.grids[0.4], csflow.time_grid(imagenet_weights, 5))


@pytest.mark.parametrize("mix", [0, 0.4, 1])
def test_weights_of_zero_leave_the_base_alone(mix):
    for num_steps in (1, 10, 1000):
        grid = csflow.time_grid(torch.zeros(500), num_steps, mix)
        torch.testing.assert_close(grid, Uniform().grid(num_steps), rtol=0, atol=1e-15)
    base, u = LogitNormal(0.5, 1.2), torch.rand(100, dtype=torch.float64)
    drawn = csflow.time_density([0, 0], mix, base).sample(u)
    torch.testing.assert_close(drawn, base.sample(u))


def test_bad_weights_and_counts_of_grids_are_refused():
    for weights in ([], [float("nan"), 0], [-1, 0], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="weights must"):
            csflow.time_grid(weights, 4)
    for num_steps in (2.5, 0, -1):
        with pytest.raises(ValueError, match=f"whole number of at least 1, got {num_steps}"):
            csflow.time_grid([1, 2], num_steps)
