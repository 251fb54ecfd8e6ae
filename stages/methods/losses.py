"""What the training losses of the SiT family share: a batch, their terms, and the alignment.

Each loss is a frozen dataclass in its paper's file, called as loss(network, batch) -> LossTerms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.methods.draws import Draws
from stages.methods.patches import take_tokens


@dataclass(frozen=True)
class Batch:
    """One step's data and randomness. Slicing it, `batch[:8]`, takes those samples.

    images: (B, C, H, W) in [-1, 1], or latents. labels: (B,) long, or None (unconditional).
    draws: the step's random draws for these samples.
    patch_targets: (B, N, Z) teacher features of the clean images on the network's patch grid,
        of unit length each: `patch_targets(features, ...)`, once for the data set.
    class_features: (B, Z') the teacher's class token, raw and unscaled.
    """

    images: Tensor
    labels: Tensor | None
    draws: Draws
    patch_targets: Tensor | None = None
    class_features: Tensor | None = None

    def __getitem__(self, which) -> "Batch":
        def take(part):
            return None if part is None else part[which]

        return Batch(
            take(self.images),
            take(self.labels),
            self.draws[which],
            take(self.patch_targets),
            take(self.class_features),
        )


@dataclass(frozen=True)
class LossTerms:
    """total: the scalar to differentiate. terms: its parts before weighting, scalars by name
    (`velocity`, `alignment`, `class`), differentiable too.

    Every one is a mean over samples of per-sample means, so that equal shares of a batch
    average to the whole batch's value and gradient.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class Loss(Protocol):
    """A training loss: its mean over a batch, and its terms."""

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """Raises ValueError when the batch does not fit the network."""


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples and elements, in the target's precision. A scalar."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"the network predicts {tuple(prediction.shape)} where the target is "
            f"{tuple(target.shape)}; check its image size, patch size and class_token_dim"
        )
    return F.mse_loss(prediction.to(target.dtype), target)


def alignment_loss(projection: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean over samples and tokens of cosine(target, projection) (REPA, eq. 8).

    projection: (B, T, Z). targets: (B, T, Z), of unit length. A scalar in [-1, 1].
    """
    if projection.shape != targets.shape:
        raise ValueError(
            f"alignment targets have shape {tuple(targets.shape)}, the projection "
            f"{tuple(projection.shape)}; set the network's teacher_dim to the teacher's width "
            "and bring the targets to its patch grid with patch_targets(..., interpolate=True)"
        )
    projection = projection.to(targets.dtype)
    norms = torch.linalg.vector_norm(projection, dim=-1).clamp_min(1e-12)
    # A product and a quotient of reductions: less memory traffic than normalising. Not vecdot,
    # which autocast runs in bfloat16.
    return -((projection * targets).sum(-1) / norms).mean()


def patch_targets(
    features: Tensor,
    grid: tuple[int, int],
    teacher_grid: tuple[int, int] | None = None,
    interpolate: bool = False,
) -> Tensor:
    """The teacher's patch features as alignment targets: on the network's grid, unit length.

    features: (n, M, Z), in raster order over teacher_grid (default: `grid`). grid: the
    network's patches, (rows, columns). With `interpolate` a different teacher grid is resampled
    bilinearly; without it a mismatch raises ValueError. Returns (n, rows * columns, Z).
    """
    rows, columns = teacher_grid or grid
    if (rows, columns) != tuple(grid) and not interpolate:
        raise ValueError(
            f"the teacher's grid {rows}x{columns} does not match the network's patch grid "
            f"{grid[0]}x{grid[1]}; resize the teacher's input, or ask for interpolation"
        )
    if features.ndim != 3 or features.shape[1] != rows * columns:
        raise ValueError(
            f"teacher features have shape {tuple(features.shape)}, which is not "
            f"(n, {rows * columns}, Z) for the grid {rows}x{columns}; pass their own teacher_grid"
        )
    if (rows, columns) != tuple(grid):
        maps = features.transpose(1, 2).unflatten(2, (rows, columns))
        maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", antialias=True)
        features = maps.flatten(2).transpose(1, 2)
    return F.normalize(features, dim=-1)


def alignment_targets(batch: Batch, keep: Tensor | None = None, class_token: bool = True) -> Tensor:
    """The class token's target (if class_token) and the (kept) patches': (B, [1 +] K, Z)."""
    targets = aligned_patches(batch)
    if keep is not None:
        targets = take_tokens(targets, keep)
    if not class_token:
        return targets
    first = F.normalize(class_features(batch), dim=-1)[:, None]
    return torch.cat([first.to(targets.dtype), targets], dim=1)


def aligned_patches(batch: Batch) -> Tensor:
    """The batch's patch targets, or ValueError when it has none."""
    if batch.patch_targets is None:
        raise ValueError("this loss aligns with a teacher: the batch needs patch_targets")
    return batch.patch_targets


def class_features(batch: Batch) -> Tensor:
    """The batch's class features, or ValueError when it has none."""
    if batch.class_features is None:
        raise ValueError("this loss carries a class token: the batch needs class_features")
    return batch.class_features


def dropped_labels(batch: Batch, probability: float) -> Tensor | None:
    """(B,) bool, the samples whose label is dropped; None when there is nothing to drop."""
    return batch.draws.drop(probability) if probability and batch.labels is not None else None


def check_fit(loss, network: nn.Module, batch: Batch) -> None:
    """Raise ValueError, in one sentence, unless loss, network and data fit together.

    Call it once before training, with all of the data as the batch if they are at hand: it reads
    the labels, which a step on a GPU does not. loss: what says `uses_teacher` and
    `uses_class_token` of it, its settings. network: a bare SiT.
    """
    if batch.images.shape[1:] != (network.channels, *network.image_size):
        raise ValueError(
            f"the images are {tuple(batch.images.shape[1:])}, the network takes "
            f"{(network.channels, *network.image_size)}; set its channels and image_size"
        )
    if batch.labels is not None and batch.labels.numel():
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= max(network.num_classes, 1):
            raise ValueError(
                f"labels run from {low} to {high}, but the network has num_classes = "
                f"{network.num_classes}; number them from 0, or leave them out with num_classes 0"
            )
    token_dim = getattr(network, "class_token_dim", 0)
    if loss.uses_class_token != bool(token_dim):
        raise ValueError(
            f"the network has class_token_dim = {token_dim}, and the loss "
            f"{'needs' if loss.uses_class_token else 'does not use'} a class token; "
            f"{'set it to the width of class_features' if loss.uses_class_token else 'set it to 0'}"
        )
    if loss.uses_class_token and class_features(batch).shape[1] != token_dim:
        raise ValueError(
            f"class_features are {batch.class_features.shape[1]} wide, the network's "
            f"class_token_dim is {token_dim}; make them equal"
        )
    if loss.uses_teacher:
        _check_teacher(loss, network, batch)


def _check_teacher(loss, network: nn.Module, batch: Batch) -> None:
    num_patches, width = aligned_patches(batch).shape[1:]
    if num_patches != network.num_patches:
        raise ValueError(
            f"the teacher gives {num_patches} patches, the network's grid is "
            f"{network.grid[0]}x{network.grid[1]}; ask patch_targets for interpolation"
        )
    if width != network.teacher_dim:
        raise ValueError(
            f"the teacher's features are {width} wide, the network's teacher_dim is "
            f"{network.teacher_dim}; make them equal"
        )
    if loss.uses_class_token and class_features(batch).shape[1] != width:
        raise ValueError(
            f"class_features are {batch.class_features.shape[1]} wide and the patch targets "
            f"{width}; one projector aligns both, so take them from one layer of the teacher"
        )
    norms = batch.patch_targets[:1].norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-2):
        raise ValueError("patch_targets are not of unit length; make them with patch_targets(...)")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must lie in [0, 1]")


def check_weight(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < infinity."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; a weight must be finite, and 0 or more")
