"""What the wavelet tests and benchmarks share: digits, photograph patches, exact Gaussian moments,
folds for the ridge, and the risk of any denoiser by sampling."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.methods.wavelet import WaveletStatistics, first_pass, second_pass
from stages.methods.wavelet.model import WaveletModel


def standardised_digits(side: int = 16) -> tuple[Tensor, Tensor]:
    """Digits at 8x8, or 16x16 by interpolation, in float64: 1,500 to train and 297 held out, in
    units of the training pixels' standard deviation about their mean."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16)[:, None]
    if side != images.shape[-1]:
        images = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
    images = images[np.random.RandomState(0).permutation(len(images))]
    train, held_out = images[:1500], images[1500:]
    mean, std = train.mean(), train.std(correction=0)
    return (train - mean) / std, (held_out - mean) / std


def photograph_patches(
    side: int = 16, num_train: int = 3000, num_held_out: int = 600, colour: bool = False
) -> tuple[Tensor, Tensor]:
    """Patches of scikit-learn's two photographs in float64, standardised like the digits: train
    from their left three quarters, held out from the right quarter, so that none overlap."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(x / 255.0).movedim(-1, 0) for x in load_sample_images().images]
    if not colour:
        photographs = [x.mean(0, keepdim=True) for x in photographs]
    generator = torch.Generator().manual_seed(0)

    def patches(left: float, right: float, count: int) -> Tensor:
        found = []
        for i in range(count):
            image = photographs[i % 2]
            height, width = image.shape[1:]
            y, x = torch.rand(2, generator=generator).tolist()
            row = int(y * (height - side))
            column = int(left * width + x * ((right - left) * width - side))
            found.append(image[:, row : row + side, column : column + side])
        return torch.stack(found)

    train, held_out = patches(0, 0.75, num_train), patches(0.75, 1, num_held_out)
    mean, std = train.mean(), train.std(correction=0)
    return (train - mean) / std, (held_out - mean) / std


def gaussian_nodes(half: int = 16) -> Tensor:
    """2 * half equally weighted points whose moments up to the seventh are those of N(0, 1)."""
    quantiles = (torch.arange(half, dtype=torch.float64) + 0.5) / (2 * half)
    squares = torch.special.ndtri(0.5 + quantiles) ** 2
    target = torch.tensor([1.0, 3.0, 15.0], dtype=torch.float64)
    orders = torch.arange(1, 4)
    for _ in range(50):
        error = target - (squares[:, None] ** orders).mean(0)
        jacobian = (orders * squares[:, None] ** (orders - 1)).T / half
        squares = squares + torch.linalg.pinv(jacobian) @ error
    assert error.abs().max() < 1e-12
    assert squares.min() > 0
    points = squares.sqrt()
    return torch.cat([points, -points])


def collect_folds(
    images: Tensor, model: WaveletModel, num_folds: int = 5
) -> list[WaveletStatistics]:
    """Statistics of interleaved shards (image i goes to fold i mod num_folds) about one
    reference, for `choose_ridge`."""
    reference = first_pass(images, model)
    return [second_pass(images[i::num_folds], model, reference) for i in range(num_folds)]


@dataclass(frozen=True)
class MonteCarloRisk:
    """mean: squared error per coordinate; standard_error: over images."""

    mean: float
    standard_error: float


def monte_carlo_risk(
    denoiser: Callable[[Tensor, float], Tensor],
    images: Tensor,
    sigma: float,
    generator: torch.Generator,
    num_draws: int = 1,
) -> MonteCarloRisk:
    """Mean squared error of denoiser(y, sigma) on clean images (B, C, H, W), per coordinate.

    The error is averaged over `num_draws` noises per image. Its standard error is that of the
    noise alone, from the spread of draws within images, when num_draws > 1, and that of noise
    and images together when it is 1.
    """
    errors = []
    for _ in range(num_draws):
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        y = images + sigma * noise.to(images.device)
        errors.append(((denoiser(y, sigma) - images) ** 2).flatten(1).mean(1).double())
    errors = torch.stack(errors)
    spread = errors.var(0) / num_draws if num_draws > 1 else errors.var()
    standard_error = float((spread.mean() / errors.shape[1]).sqrt())
    return MonteCarloRisk(float(errors.mean()), standard_error)
