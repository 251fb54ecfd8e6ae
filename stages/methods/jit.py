"""JiT's training loss (Li and He 2025, "Back to Basics: Let Denoising Generative Models Denoise"):
a network that predicts the clean image, trained on the error of the velocity that this gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.methods.losses import Batch, LossTerms, check_fraction, dropped_labels

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity

LEAST = 1e-5  # of JiT's own time, where sigma is still finite


@dataclass(frozen=True)
class Loss:
    """E |v_hat - v|^2 with v = (x0 - z) / max(1 - t, t_eps), t running from 0, noise, to 1, data.

    noise_scale: n of z = t x0 + (1 - t) n eps, as in the network. t_eps: least 1 - t that errors
    are divided by. label_dropout: probability of training on the null class, in [0, 1].
    time_density: of 1 - t, as everywhere here; uniform if None.
    """

    noise_scale: float = 1.0
    t_eps: float = 0.05
    label_dropout: float = 0.1
    time_density: TimeDensity | None = None

    def __post_init__(self):
        check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """The mean of `velocity` over a batch, its draws being those of the batch."""
        noise = batch.draws.noise(batch.images.shape[1:])
        drop = dropped_labels(batch, self.label_dropout)
        condition = {} if batch.labels is None else {"labels": batch.labels, "drop": drop}
        t = 1 - batch.draws.time(self.time_density)
        velocity = self.velocity(network, batch.images, t, noise, **condition).mean()
        return LossTerms(velocity, {"velocity": velocity})

    def velocity(
        self,
        denoiser: Callable[..., Tensor],
        images: Tensor,
        t: Tensor,
        noise: Tensor,
        **condition: Tensor | None,
    ) -> Tensor:
        """The mean squared error of an image's velocity, (B,).

        denoiser(y, sigma, **condition) in EDM coordinates, y = z / t and sigma = n (1 - t) / t;
        images (B, C, H, W); t (B,) in [0, 1], JiT's own; noise as images, standard normal.
        """
        t = t.clamp(min=LEAST)
        sigma = self.noise_scale * (1 - t) / t
        denoised = denoiser(images + sigma.view(-1, 1, 1, 1) * noise, sigma, **condition)
        error = (denoised - images).square().flatten(1).mean(dim=1)
        return error / torch.clamp(1 - t, min=self.t_eps) ** 2
