"""REPA's training loss (Yu et al. 2025): velocity regression and alignment with a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from stages.methods import path
from stages.methods.losses import (
    Batch,
    LossTerms,
    alignment_loss,
    alignment_targets,
    check_fraction,
    check_weight,
    dropped_labels,
    mean_squared_error,
)

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
        check_weight("alignment_weight", self.alignment_weight)
        check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """Raises ValueError when the batch or the network lacks what the loss needs."""
        targets = alignment_targets(batch, class_token=False)
        t = batch.draws.time(self.time_density)
        eps = batch.draws.noise(batch.images.shape[1:])
        x = path.interpolate(batch.images, eps, t)
        drop = dropped_labels(batch, self.label_dropout)
        output = network(x, t, batch.labels, drop=drop, align=True)

        velocity = mean_squared_error(output.velocity, path.velocity(batch.images, eps))
        alignment = alignment_loss(output.projection, targets)
        total = velocity + self.alignment_weight * alignment
        return LossTerms(total, {"velocity": velocity, "alignment": alignment})
