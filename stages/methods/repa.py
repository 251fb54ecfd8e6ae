"""REPA's training loss (Yu et al. 2025): velocity regression and alignment with a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from stages.methods import losses, path

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity


@dataclass(frozen=True)
class Loss:
    """L_velocity + lambda L_alignment (REPA, eq. 9), over all patches.

    alignment_weight: lambda. label_dropout: probability of the null class, in [0, 1].
    time_density: of t; uniform if None. The network needs a projector.
    """

    alignment_weight: float = 0.5
    label_dropout: float = 0.1
    time_density: TimeDensity | None = None

    def __post_init__(self):
        losses.check_weight("alignment_weight", self.alignment_weight)
        losses.check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: losses.Batch) -> losses.LossTerms:
        """Raises ValueError when the batch or the network lacks what the loss needs."""
        targets = losses.alignment_targets(batch, class_token=False)
        t = batch.draws.time(self.time_density)
        eps = batch.draws.noise(batch.images.shape[1:])
        x = path.interpolate(batch.images, eps, t)
        drop = losses.dropped_labels(batch, self.label_dropout)
        output = network(x, t, batch.labels, drop=drop, align=True)

        velocity = losses.mean_squared_error(output.velocity, path.velocity(batch.images, eps))
        alignment = losses.alignment_loss(output.projection, targets)
        total = velocity + self.alignment_weight * alignment
        return losses.LossTerms(total, {"velocity": velocity, "alignment": alignment})
