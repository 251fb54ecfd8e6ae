"""REG's training loss (Wu et al. 2025): REPA's, with the teacher's class token generated beside
the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from stages.methods import losses, path

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity


@dataclass(frozen=True)
class Loss:
    """L_velocity + beta L_class + lambda L_alignment, aligned over the class token and patches.

    The class token is the teacher's, raw and unscaled, noised with the image's t and its own
    noise: c_t = alpha r + sigma eps_cls; L_class is the squared error of its velocity.
    class_weight: beta. alignment_weight: lambda. label_dropout: probability of the null class,
    in [0, 1]. time_density: of t; uniform if None. The network needs a class token and a
    projector.
    """

    class_weight: float = 0.03
    alignment_weight: float = 0.5
    label_dropout: float = 0.1
    time_density: TimeDensity | None = None

    def __post_init__(self):
        losses.check_weight("class_weight", self.class_weight)
        losses.check_weight("alignment_weight", self.alignment_weight)
        losses.check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: losses.Batch) -> losses.LossTerms:
        """Raises ValueError when the batch or the network lacks what the loss needs."""
        targets = losses.alignment_targets(batch)
        t = batch.draws.time(self.time_density)
        eps = batch.draws.noise(batch.images.shape[1:])
        x = path.interpolate(batch.images, eps, t)
        r = losses.class_features(batch)
        eps_cls = batch.draws.class_noise(r.shape[1])
        c = path.interpolate(r, eps_cls, t)
        drop = losses.dropped_labels(batch, self.label_dropout)
        output = network(x, t, batch.labels, c, drop=drop, align=True)

        velocity = losses.mean_squared_error(output.velocity, path.velocity(batch.images, eps))
        class_loss = losses.mean_squared_error(output.class_velocity, path.velocity(r, eps_cls))
        alignment = losses.alignment_loss(output.projection, targets)
        total = velocity + self.class_weight * class_loss + self.alignment_weight * alignment
        terms = {"velocity": velocity, "alignment": alignment, "class": class_loss}
        return losses.LossTerms(total, terms)
