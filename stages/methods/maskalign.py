"""MaskAlign's training loss (arXiv 2606.08788): REG's, on a random part of the tokens.

The mixing blocks, which see all tokens before the mask, belong to the network:
`SiT(..., mix_layers=2)`. At inference nothing is masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from stages.methods import losses, path
from stages.methods.patches import num_kept, patchify, take_tokens

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity


@dataclass(frozen=True)
class Loss:
    """L_velocity + beta L_class + lambda L_alignment over a fresh random subset of patches.

    Only the kept patches and the class token run through the SiT blocks; the velocity loss is
    the mean over kept patches, the alignment over the class token and the kept patches. The
    number of kept patches is fixed, so shapes are static.

    mask_ratio: share of the patches left out, in [0, 1); 0 is REG. class_weight: beta.
    alignment_weight: lambda. label_dropout: probability of the null class, in [0, 1].
    time_density: of t; uniform if None. The network needs a class token and a projector.
    """

    mask_ratio: float = 0.25
    class_weight: float = 0.03
    alignment_weight: float = 0.5
    label_dropout: float = 0.1
    time_density: TimeDensity | None = None

    def __post_init__(self):
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}; it must lie in [0, 1)")
        losses.check_weight("class_weight", self.class_weight)
        losses.check_weight("alignment_weight", self.alignment_weight)
        losses.check_fraction("label_dropout", self.label_dropout)

    def __call__(self, network: nn.Module, batch: losses.Batch) -> losses.LossTerms:
        """Raises ValueError when the batch or the network lacks what the loss needs; whether the
        teacher's grid is the network's is for `losses.check_fit` to say, before training."""
        keep = self.keep(batch)
        targets = losses.alignment_targets(batch, keep)
        t = batch.draws.time(self.time_density)
        eps = batch.draws.noise(batch.images.shape[1:])
        x = path.interpolate(batch.images, eps, t)
        velocity_target = path.velocity(batch.images, eps)
        if keep is not None:
            patch_size = math.isqrt(batch.images[0, 0].numel() // batch.patch_targets.shape[1])
            velocity_target = take_tokens(patchify(velocity_target, patch_size), keep)
        r = losses.class_features(batch)
        eps_cls = batch.draws.class_noise(r.shape[1])
        c = path.interpolate(r, eps_cls, t)
        drop = losses.dropped_labels(batch, self.label_dropout)
        output = network(x, t, batch.labels, c, drop=drop, keep=keep, align=True)

        velocity = losses.mean_squared_error(output.velocity, velocity_target)
        class_loss = losses.mean_squared_error(output.class_velocity, path.velocity(r, eps_cls))
        alignment = losses.alignment_loss(output.projection, targets)
        total = velocity + self.alignment_weight * alignment + self.class_weight * class_loss
        terms = {"velocity": velocity, "alignment": alignment, "class": class_loss}
        return losses.LossTerms(total, terms)

    def keep(self, batch: losses.Batch) -> Tensor | None:
        """The patches of each sample that stay, (B, K) long; None at mask ratio 0."""
        num_patches = losses.aligned_patches(batch).shape[1]
        num_keep = num_kept(num_patches, self.mask_ratio)
        return batch.draws.keep(num_patches, num_keep) if num_keep < num_patches else None
