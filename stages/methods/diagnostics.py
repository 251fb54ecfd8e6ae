"""What MaskAlign's paper makes its case with: where the alignment's gradient falls, and how much
a mask disturbs the alignment. Both work on networks of REPA, REG and MaskAlign alike.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.methods import path
from stages.methods.density import TimeDensity
from stages.methods.losses import (
    Batch,
    aligned_patches,
    alignment_loss,
    alignment_targets,
    class_features,
)
from stages.methods.patches import take_kept


@dataclass(frozen=True)
class Heatmap:
    """How often each patch is among those with the largest alignment gradients.

    hits, seen: (N,) float64, over images: in the top share, and present (not masked). Heatmaps
    of further batches are added with +.
    """

    hits: Tensor
    seen: Tensor

    def __add__(self, other: "Heatmap") -> "Heatmap":
        return Heatmap(self.hits + other.hits, self.seen + other.seen)

    @property
    def probability(self) -> Tensor:
        """(N,), hits / seen: the share of images in which the patch is on top, where present; NaN
        for a patch that was never present, which no summary counts."""
        return self.hits / self.seen

    @property
    def max_min_ratio(self) -> float:
        """The paper's summary; infinite when a patch was never on top: take more images."""
        known = self._known
        low, high = known.min().item(), known.max().item()
        return high / low if low else math.inf

    @property
    def coefficient_of_variation(self) -> float:
        """Standard deviation / mean of the probability (ours: steadier with few positions)."""
        known = self._known
        return (known.std(correction=0) / known.mean()).item()

    @property
    def _known(self) -> Tensor:
        return self.probability[self.seen > 0]


def alignment_heatmap(
    network: nn.Module,
    batch: Batch,
    keep: Tensor | None = None,
    top: float = 0.1,
    time_density: TimeDensity | None = None,
) -> Heatmap:
    """Count the patches in the top share of |d L_alignment / d h|, per token of an image.

    h: hidden states at the alignment depth. keep: (B, K) patches of a masked run, such as
    `maskalign.Loss(...).keep(batch)`; None for all. top: share of the present patches, at least
    one. time_density: of t, the training's own; uniform if None. Labels are not dropped. network:
    bare, not wrapped for workers. Raises ValueError where there is one patch only, which nothing
    can be compared with, or a mask that keeps none.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top is {top}; it must lie in (0, 1]")
    _check_patches(batch, keep)
    output = _run(network, batch, keep, time_density)
    has_class = output.class_velocity is not None
    # The gradient stops at h, so only the projector is differentiated.
    hidden = output.hidden.detach().requires_grad_()
    with torch.enable_grad():
        loss = alignment_loss(network.projector(hidden), alignment_targets(batch, keep, has_class))
        (gradient,) = torch.autograd.grad(loss, hidden)
    norms = gradient[:, int(has_class) :].float().norm(dim=-1)
    highest = norms.topk(max(1, round(top * norms.shape[1])), dim=1).indices
    num_patches = aligned_patches(batch).shape[1]
    if keep is None:
        keep = torch.arange(num_patches, device=norms.device).expand(len(norms), -1)
    return Heatmap(
        torch.bincount(keep.gather(1, highest).flatten(), minlength=num_patches).double(),
        torch.bincount(keep.flatten(), minlength=num_patches).double(),
    )


def stability_gap(
    network: nn.Module, batch: Batch, keep: Tensor, time_density: TimeDensity | None = None
) -> tuple[Tensor, Tensor]:
    """L_alignment(masked input) and L_alignment(full input), two scalars; the gap G of the paper
    is the first minus the second.

    keep: (B, K) the patches of the masked run. The full run's loss is taken over the same class
    token and patches (ours): its mean over masks is that of all tokens, without the spread from
    which tokens a mask happens to leave. time_density, network and labels: as `alignment_heatmap`.
    Raises ValueError as `alignment_heatmap` does.
    """
    _check_patches(batch, keep)
    masked, full = (_run(network, batch, which, time_density) for which in (keep, None))
    has_class = full.class_velocity is not None
    targets = alignment_targets(batch, keep, has_class)
    projection = take_kept(full.projection, keep, has_class)
    return alignment_loss(masked.projection, targets), alignment_loss(projection, targets)


def _check_patches(batch: Batch, keep: Tensor | None) -> None:
    if (count := aligned_patches(batch).shape[1]) < 2:
        raise ValueError(
            f"the image is {count} patch, and diagnostics compare patches; choose a patch size "
            "that makes at least two"
        )
    if keep is not None and not keep.shape[1]:
        raise ValueError("the mask keeps no patch; keep at least one")


@torch.no_grad()
def _run(
    network: nn.Module, batch: Batch, keep: Tensor | None, time_density: TimeDensity | None
) -> Any:
    """The network's output in training, at the batch's draws of t and noise."""
    t = batch.draws.time(time_density)
    x = path.interpolate(batch.images, batch.draws.noise(batch.images.shape[1:]), t)
    class_token = None
    if network.class_token_dim:
        r = class_features(batch)
        class_token = path.interpolate(r, batch.draws.class_noise(r.shape[1]), t)
    return network(x, t, batch.labels, class_token, keep=keep, align=True)
