"""SiT's training loss (Ma et al. 2024): plain velocity regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from stages.methods import losses, path

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity


@dataclass(frozen=True)
class Loss:
    """E |v(x_t, t) - (eps - x0)|^2, mean over all elements, no weighting in t.

    label_dropout: probability of training on the null class, in [0, 1].
    time_density: of t; uniform if None.
    """

    label_dropout: float = 0.1
    time_density: TimeDensity | None = None

    def __post_init__(self):
        losses.check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: losses.Batch) -> losses.LossTerms:
        """Raises ValueError when the batch does not fit the network."""
        t = batch.draws.time(self.time_density)
        eps = batch.draws.noise(batch.images.shape[1:])
        x = path.interpolate(batch.images, eps, t)
        drop = losses.dropped_labels(batch, self.label_dropout)
        v = network(x, t, batch.labels, drop=drop)
        velocity = losses.mean_squared_error(v, path.velocity(batch.images, eps))
        return losses.LossTerms(velocity, {"velocity": velocity})
