"""The EDM training loss: Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1 (training).

y = x0 + sigma eps in EDM coordinates; a denoiser D(y, sigma) predicts x0 and is trained on
lambda(sigma) |D - x0|^2 with ln sigma normal and lambda = 1 / c_out^2, so that the network inside
the preconditioning has targets of unit variance at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.methods.losses import Batch, LossTerms, check_fraction, dropped_labels


@dataclass(frozen=True)
class Loss:
    """Weighted denoising error; calling it on a network and a batch gives its mean.

    sigma_data: standard deviation of the data, in the images' units, as in the network's
    preconditioning. p_mean, p_std: mean and standard deviation of ln sigma in training.
    label_dropout: probability of training on the null class, in [0, 1]. uncertainty: the network
    also gives u(sigma), the logarithm of its error, and is trained on error exp(-u) + u (Karras et
    al. 2024, equation 21), so that every level counts alike.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    label_dropout: float = 0.1
    uncertainty: bool = False

    def __post_init__(self):
        for name in ("sigma_data", "p_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """The mean of `denoising` over a batch, its draws being those of the batch."""
        noise = batch.draws.noise(batch.images.shape[1:])
        drop = dropped_labels(batch, self.label_dropout)
        condition = {} if batch.labels is None else {"labels": batch.labels, "drop": drop}
        sigma = self.sigma(batch.draws.time())
        if not self.uncertainty:
            denoising = self.denoising(network, batch.images, sigma, noise, **condition).mean()
            return LossTerms(denoising, {"denoising": denoising})
        said: list[Tensor] = []

        def denoiser(y: Tensor, sigma: Tensor, **condition: Tensor | None) -> Tensor:
            denoised, log_variance = network(y, sigma, **condition, uncertainty=True)
            said.append(log_variance.flatten())
            return denoised

        error = self.denoising(denoiser, batch.images, sigma, noise, **condition)
        total = (error * (-said[0]).exp() + said[0]).mean()
        return LossTerms(total, {"denoising": error.mean()})

    def sigma(self, uniform: Tensor) -> Tensor:
        """Noise levels (B,) at the quantiles `uniform` (B,) in [0, 1] of their log-normal density.

        Quantiles are kept 2^-24 away from 0 and 1, where the level would be 0 or infinite.
        """
        edge = 2.0**-24
        normal = torch.special.ndtri(uniform.clamp(edge, 1 - edge))
        return (self.p_mean + self.p_std * normal).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoising(
        self,
        denoiser: Callable[..., Tensor],
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        **condition: Tensor | None,
    ) -> Tensor:
        """lambda(sigma) times the mean squared error over an image's values, (B,).

        denoiser(y, sigma, **condition) -> (B, C, H, W); images (B, C, H, W) in [-1, 1]; sigma
        (B,) > 0; noise as images, standard normal. Raises ValueError for shapes that do not fit.
        """
        if sigma.shape != images.shape[:1] or noise.shape != images.shape:
            raise ValueError(
                f"images {tuple(images.shape)} need sigma ({len(images)},) and noise of their own "
                f"shape, not {tuple(sigma.shape)} and {tuple(noise.shape)}"
            )
        denoised = denoiser(images + sigma.view(-1, 1, 1, 1) * noise, sigma, **condition)
        return self.weight(sigma) * (denoised - images).square().flatten(1).mean(dim=1)
