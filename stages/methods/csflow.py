"""CSFlow (arXiv 2606.08833): time weights from what the human eye sees.

While noise turns into an image, each spatial frequency appears at its own time: the coarse ones
early, the fine ones late. CSFlow spends time where the frequencies that appear are those to which
the eye is sensitive. The steps are the power spectrum of the data (`radial_power`, which lives in
`spectrum.py`), the eye (`contrast_sensitivity`), one weight for each interval of time
(`interval_weights`), and from them a density for training (`time_density`) and a grid for solvers
(`time_grid`).

The paper has noise at t = 0. Here t = 1 is noise; its variable is the clean fraction tau = 1 - t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.density import Mixture, PiecewiseConstant, TimeDensity, Uniform
from stages.methods.spectrum import check_pixels, radial_power

__all__ = [
    "NothingSeenError",
    "check_pixels",
    "contrast_sensitivity",
    "cycles_per_degree",
    "figure_data",
    "from_spectrum",
    "generated",
    "interval_weights",
    "radial_power",
    "retained_signal",
    "time_density",
    "time_grid",
]

PIXEL_SIZE_M = 0.000114
"""Side of a display pixel in metres, the paper's screen."""

DISTANCE_M = 0.5
"""Distance between eye and screen in metres."""

DISPLAY_PIXELS = 256
"""Display pixels that the longer side of an image fills: the paper's images have this size."""

SIZE_TOLERANCE = 1e-5
"""Relative error of frequencies from which the size of images is read."""


class NothingSeenError(ValueError):
    """The eye sees nothing of the images on a display."""


# --- the eye ----------------------------------------------------------------------------------


def cycles_per_degree(
    frequency: Tensor,
    pixel_size: float = PIXEL_SIZE_M,
    distance: float = DISTANCE_M,
    display_pixels: int | None = None,
    image_pixels: int | None = None,
) -> Tensor:
    """Cycles per image pixel -> cycles per degree of visual angle, on the screen described.

    pixel_size and distance are in metres; one display pixel covers 2 atan(pixel_size /
    (2 distance)), 0.01306 degrees by default. display_pixels: how many display pixels the longer
    side of the image fills, by default 256, as the paper's images do: an 8x8 digit is looked at
    enlarged (ours; the paper shows images pixel by pixel). image_pixels: how many pixels that
    side has; by default what the frequencies tell, if they are those of `radial_power`.
    Raises ValueError for lengths or counts that are not positive, and for frequencies that do
    not tell the size.
    """
    frequency = given.tensor(frequency, "frequency", torch.float64)
    display_pixels = DISPLAY_PIXELS if display_pixels is None else display_pixels
    image_pixels = _longer_side(frequency) if image_pixels is None else image_pixels
    for name, value, unit in (
        ("pixel_size", pixel_size, "metres"),
        ("distance", distance, "metres"),
        ("display_pixels", display_pixels, "pixels"),
        ("image_pixels", image_pixels, "pixels"),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number of {unit}, got {value}")
    degrees_per_pixel = math.degrees(2 * math.atan(pixel_size / (2 * distance)))
    return frequency * (image_pixels / display_pixels / degrees_per_pixel)


def _longer_side(frequency: Tensor) -> int:
    """The longer side of the images whose K radial bins these are: 2 K or 2 K + 1 pixels.

    The bins end at the corner frequency, sqrt(f_h^2 + f_w^2) with f = 1/2 along an even side and
    1/2 - 1/(2 n) along an odd one of n pixels, which differs between the two (a square of side n
    has 1 - sqrt(2) corner = 1/n where n is odd, and 0 where it is even). Sides that are not square
    are tried, too.
    """
    num_bins = len(frequency) if frequency.ndim == 1 else 0
    sides = torch.arange(1, 2 * num_bins + 2, dtype=torch.float64)
    highest = torch.where(sides % 2 == 0, 0.5, 0.5 - 0.5 / sides)
    longer, shorter = highest[-2:, None], highest[None]  # a shorter side of 2 K + 1 is a square
    corner = torch.hypot(longer, shorter)
    corner[0, -1:] = math.inf  # 2 K pixels are not the longer side beside 2 K + 1
    if num_bins:
        centres = (torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins
        edge = frequency[-1] / centres[-1]
        off = (corner / edge - 1).abs()
        if off.min() < SIZE_TOLERANCE and (frequency / edge - centres).abs().max() < SIZE_TOLERANCE:
            return 2 * num_bins + int(off.min(1).values.argmin())
    raise ValueError(
        "frequency does not tell the size of the images, since these are not the bins that "
        "radial_power returns; set image_pixels, the pixels of their longer side"
    )


def contrast_sensitivity(frequency_cpd: Tensor | float) -> Tensor:
    """Contrast sensitivity of the human eye, Barten 1999, with CSFlow's constants; float64.

    frequency_cpd: cycles per degree, any shape, not negative. The value is one over the smallest
    visible contrast; 0 at frequency 0, at most 715, near 2.35 cycles per degree.
    Raises ValueError for a negative frequency.
    """
    u = given.tensor(frequency_cpd, "frequency_cpd", torch.float64)
    if not (u >= 0).all():
        raise ValueError("frequency_cpd must not be negative or NaN")
    s = 0.5 / 60  # standard deviation of the eye's line spread, degrees
    k = 3  # signal-to-noise ratio at the threshold
    T = 0.1  # integration time of the eye, seconds
    X0, Xmax = 60, 12  # size of the object, and the largest area of integration, degrees
    Nmax = 15  # cycles over which the eye integrates, at most
    n = 0.03  # quantum efficiency
    p = 1.2e6  # photons per second, square degree and troland
    E = 500  # retinal illuminance, troland
    phi0 = 3e-8  # spectral density of neural noise, seconds square degrees
    u0 = 7  # above this the lateral inhibition ceases, cycles per degree
    optics = torch.exp(-2 * math.pi**2 * s**2 * u**2)
    integration = 2 / T * (1 / X0**2 + 1 / Xmax**2 + u**2 / Nmax**2)
    noise = 1 / (n * p * E) + phi0 / -torch.expm1(-((u / u0) ** 2))
    return optics / k / torch.sqrt(integration * noise)


# --- the weights ------------------------------------------------------------------------------


def retained_signal(power: Tensor, clean_fraction: Tensor) -> Tensor:
    """r = tau^2 P / (tau^2 P + (1 - tau)^2): the share of signal in the power of x_t.

    The power of the noise, P_n in the paper, is 1 at every frequency.

    power: (F,); clean_fraction: (M,), tau = 1 - t; returns (M, F) in [0, 1].
    """
    tau = clean_fraction[:, None]
    signal, noise = tau**2 * power, (1 - tau) ** 2
    return torch.where(signal > 0, signal / (signal + noise), 0.0)


def generated(power: Tensor, num_intervals: int = 500) -> Tensor:
    """What is generated when: the gain of r in each of `num_intervals` equal intervals of tau.

    power: (F,); returns (num_intervals, F), not negative, interval 0 starting from pure noise.
    A column sums to 1, or to 0 where the power is 0. float64.

    Ours: the difference in closed form, with n = 1 - tau and d = tau^2 P + n^2 at both ends,

        r_2 - r_1 = P (tau_2 n_1 - tau_1 n_2) (tau_2 n_1 + tau_1 n_2) / (d_1 d_2),

    which is never negative and keeps its digits where r is near 1; no clipping is needed.
    """
    if num_intervals < 1:
        raise ValueError(f"num_intervals must be at least 1, got {num_intervals}")
    power = given.tensor(power, "power", torch.float64)
    tau = torch.arange(num_intervals + 1, dtype=torch.float64)[:, None] / num_intervals
    noise = 1 - tau
    total = tau**2 * power + noise**2
    width = 1 / num_intervals  # tau_2 n_1 - tau_1 n_2
    cross = tau[1:] * noise[:-1] + tau[:-1] * noise[1:]
    return torch.where(power > 0, power / total[:-1] / total[1:] * (width * cross), 0.0)


def interval_weights(
    frequency: Tensor,
    power: Tensor,
    num_intervals: int = 500,
    pixel_size: float = PIXEL_SIZE_M,
    distance: float = DISTANCE_M,
    display_pixels: int | None = None,
    image_pixels: int | None = None,
) -> Tensor:
    """The weight of each interval of the clean fraction 0..1: (num_intervals,) float64, sum 1.

    The weight of interval i is the eye's mean sensitivity over what is generated in it: the
    integral over u of S dr_i, divided by that of dr_i, by the trapezoidal rule, u in cycles per
    degree. A flat spectrum of any height
    gives equal weights, since all frequencies then appear together.

    frequency: (F,), cycles per pixel, increasing, F >= 2; power: (F,), as from `radial_power`.
    The other arguments are those of `cycles_per_degree`. Raises ValueError for spectra that are
    malformed or zero, and NothingSeenError for a display on which nothing in the images can be
    seen.
    """
    frequency, power = _checked_spectrum(frequency, power)
    u = cycles_per_degree(frequency, pixel_size, distance, display_pixels, image_pixels)
    dr = generated(power, num_intervals)
    seen = torch.trapezoid(contrast_sensitivity(u) * dr, u, dim=1)
    gained = torch.trapezoid(dr, u, dim=1)
    weights = torch.where(gained > 0, seen / gained, 0.0)
    if not weights.sum() > 0:
        raise NothingSeenError(
            f"the eye sees none of the images' frequencies ({u[0]:.3g} to {u[-1]:.3g} cycles per "
            "degree) on this display; change display_pixels, pixel_size or distance"
        )
    return weights / weights.sum()


def _checked_spectrum(frequency: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    frequency = given.tensor(frequency, "frequency", torch.float64)
    power = given.tensor(power, "power", torch.float64)
    if frequency.ndim != 1 or frequency.shape != power.shape or len(frequency) < 2:
        raise ValueError(
            "frequency and power must have one shape (F,) with F >= 2 (images of 4 pixels or "
            f"more), got {(*frequency.shape,)} and {(*power.shape,)}"
        )
    if not (frequency[0] >= 0 and (frequency.diff() > 0).all() and frequency.isfinite().all()):
        raise ValueError("frequency must be finite, increase, and not be negative")
    if not (power.isfinite().all() and (power >= 0).all() and (power > 0).any()):
        raise ValueError("power must be finite, not negative, and not zero at every frequency")
    return frequency, power


# --- their use --------------------------------------------------------------------------------


def from_spectrum(
    frequency: Tensor, power: Tensor, num_intervals: int = 500, **display
) -> PiecewiseConstant:
    """CSFlow's density over t before mixing, from the data's spectrum.

    The arguments, and the errors, are those of `interval_weights`.
    """
    return _over_time(interval_weights(frequency, power, num_intervals, **display))


def _over_time(weights: Tensor) -> PiecewiseConstant:
    """The density over t = 1 - tau of weights over the clean fraction tau."""
    return PiecewiseConstant(weights.flip(0))


def time_density(weights: Tensor, mix: float = 0.4, base: TimeDensity | None = None) -> TimeDensity:
    """CSFlow's density over t: mix of the weights, (1 - mix) of the base (uniform by default).

    weights: (K,) over the clean fraction, as from `interval_weights`; of any scale, and zeros
    are allowed. Weights that are all zero carry no density: at any mix they leave the base alone
    (ours; the mixture's limit, which `interval_weights` never gives). For training, base is the
    density the model was trained with. Errors as `PiecewiseConstant` and `Mixture`.
    """
    weights = given.tensor(weights, "weights", torch.float64)
    base = Uniform() if base is None else base
    if weights.numel() and (weights == 0).all():
        return Mixture(base, base, mix)
    return Mixture(_over_time(weights), base, mix)


def time_grid(weights: Tensor, num_steps: int, mix: float = 0.4) -> Tensor:
    """Times of a solver: (num_steps + 1,) float64, from exactly 1 (noise) down to exactly 0.

    Equal quantiles of `time_density` over a uniform base; errors as `TimeDensity.grid`.
    """
    return time_density(weights, mix).grid(num_steps)


@dataclass(frozen=True)
class FigureData:
    """The curves by which CSFlow is shown; all float64.

    sensitivity_frequency_cpd, sensitivity: (M,), the eye, on a logarithmic axis.
    frequency_cpd: (F,), the bins of the spectrum on the display; power: (F,).
    t: (K,), centres of the intervals, from noise to data.
    generated: (K, F), the gain of retained signal per unit of time: an integral of 1 over t.
    weights: (K,), CSFlow's density over t before mixing: its mean is 1.
    grids: mix a -> times (num_steps + 1,).
    """

    sensitivity_frequency_cpd: Tensor
    sensitivity: Tensor
    frequency_cpd: Tensor
    power: Tensor
    t: Tensor
    generated: Tensor
    weights: Tensor
    grids: dict[float, Tensor]


def figure_data(
    frequency: Tensor,
    power: Tensor,
    num_steps: int = 10,
    mixes: Sequence[float] = (0.0, 0.4, 1.0),
    num_intervals: int = 500,
    **display,
) -> FigureData:
    """Everything that the figures of a spectrum show.

    display: pixel_size, distance, display_pixels and image_pixels, as for `interval_weights`,
    whose errors apply.
    """
    frequency, power = _checked_spectrum(frequency, power)
    weights = interval_weights(frequency, power, num_intervals, **display)
    u = torch.logspace(-1, math.log10(60), 400, dtype=torch.float64)
    centres = (torch.arange(num_intervals, dtype=torch.float64) + 0.5) / num_intervals
    return FigureData(
        sensitivity_frequency_cpd=u,
        sensitivity=contrast_sensitivity(u),
        frequency_cpd=cycles_per_degree(frequency, **display),
        power=power,
        t=1 - centres,
        generated=generated(power, num_intervals) * num_intervals,
        weights=weights * num_intervals,
        grids={mix: time_grid(weights, num_steps, mix) for mix in mixes},
    )
