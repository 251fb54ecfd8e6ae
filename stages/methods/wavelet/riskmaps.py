"""What any denoiser does, measured on noisy images: its risk by wavelet coefficient, its filter.

A fitted wavelet score has its risk in closed form (stages.methods.wavelet); networks and other
baselines are measured here, with the noise passed in, so that all can share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.methods.path import Denoiser
from stages.methods.wavelet.basis import WaveletBasis


@dataclass(frozen=True, eq=False)
class MeasuredRisk:
    """mean: squared error per coordinate; standard_error: over images, noise and images together;
    per_image: (B,) squared error per coordinate of each image, over its draws, which denoisers on
    the same noise are compared by; coefficients: (num_coefficients,) squared error of each, whose
    mean is `mean` for an orthonormal basis. float64."""

    mean: float
    standard_error: float
    per_image: Tensor = field(repr=False)
    coefficients: Tensor = field(repr=False)


def measured_risk(
    denoiser_for: Callable[[slice], Denoiser],
    images: Tensor,
    noise: Tensor,
    sigma: float,
    basis: WaveletBasis,
    batch_size: int = 256,
) -> MeasuredRisk:
    """Squared error of denoising images + sigma noise.

    denoiser_for: the denoiser of images[which], batch by batch; the same one for every batch
    unless it is told something of the images, such as their labels. images: (B, C, H, W) clean.
    noise: (draws, B, C, H, W), standard normal. An image's errors are averaged over its draws
    before the spread over images is taken; with one image the standard error is NaN.
    """
    if noise.shape[1:] != images.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; it must be (draws, "
            f"{', '.join(map(str, images.shape))}), one or more draws for every image"
        )
    per_image = torch.zeros(len(images), dtype=torch.float64)
    squares = torch.zeros(basis.num_coefficients, dtype=torch.float64)
    for draw in noise:
        for start in range(0, len(images), batch_size):
            which = slice(start, start + batch_size)
            clean = images[which].double()
            y = clean + sigma * draw[which].double()
            with torch.no_grad():
                error = denoiser_for(which)(y, sigma).double() - clean
            per_image[which] += (error**2).flatten(1).mean(1).cpu()
            squares += (basis.analyse(error) ** 2).sum(0).cpu()
    per_image /= len(noise)
    spread = float(per_image.std() / len(images) ** 0.5)
    coefficients = squares / (len(noise) * len(images))
    return MeasuredRisk(float(per_image.mean()), spread, per_image, coefficients)


def mean_filter(
    denoiser: Denoiser, images: Tensor, noise: Tensor, sigma: float, pixel: tuple[int, int, int]
) -> Tensor:
    """How the denoised `pixel` (channel, row, column) answers to every noisy pixel, (C, H, W).

    The row of the Jacobian dD/dy, averaged over the noisy images images + sigma noise
    (B, C, H, W): for a linear denoiser its filter. The denoiser must be differentiable.
    """
    y = (images.double() + sigma * noise.double()).requires_grad_()
    with torch.enable_grad():
        out = denoiser(y, sigma)[(slice(None), *pixel)].sum()
    (gradient,) = torch.autograd.grad(out, y)
    return gradient.mean(0)
