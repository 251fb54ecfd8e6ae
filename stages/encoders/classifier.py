"""Training of the embedded extractor: a small classifier on the data set's own labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.encoders.feeding import fed, pinned
from stages.nets.encoders import EmbeddedCNN

__all__ = ["ClassifierProgress", "accuracy", "train_classifier"]


@dataclass(frozen=True)
class ClassifierProgress:
    """State after one epoch (counted from 1): mean training loss and accuracy over its steps."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float


class Readable(Protocol):
    """Images that are read by index, from wherever they lie; their values were checked before."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""

    def __len__(self) -> int: ...

    def __getitem__(self, which: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] of indices (B,)."""


def train_classifier(
    images: Tensor | Readable,
    labels: Tensor,
    num_classes: int,
    epochs: int = 8,
    seed: int = 0,
    *,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 1e-2,
    shift_pixels: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[ClassifierProgress], None] | None = None,
) -> EmbeddedCNN:
    """Train an EmbeddedCNN by cross-entropy; returned in eval mode, without gradients.

    images: (n, C, H, W) in [-1, 1], or what reads them batch by batch; labels: (n,) integers in
    [0, num_classes). device: where it is trained, that of the images by default. AdamW, a linear
    warm-up over a tenth of the steps, then half a cosine to zero. ``shift_pixels`` moves each
    image at random by up to so many pixels each way, its edge repeated; centred images need none.
    ``progress`` is called after every epoch. The result depends on the seed alone for one device
    and one thread; no global random state is read or changed.

    Raises ValueError for labels out of range, images outside [-1, 1] or not finite, or fewer
    images than a batch needs for its statistics (2).
    """
    _check(images, labels, num_classes, epochs, batch_size)
    device = torch.device(device or getattr(images, "device", "cpu"))
    generator = torch.Generator().manual_seed(seed)
    network = _fresh_network(images.shape[-3], num_classes, generator).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    batches = max(1, len(images) // batch_size)
    total = epochs * batches
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        parts = order.tensor_split(batches)
        known = pinned(labels[order.to(labels.device)].long(), device)
        known = known.to(device, non_blocking=True).tensor_split(batches)
        seen = torch.zeros(2, dtype=torch.float64, device=device)  # losses, and right answers
        shown = fed(([pinned(images[chosen].float(), device)] for chosen in parts), device)
        for i, (x, y) in enumerate(zip(shown, known, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _one_cycle(epoch * batches + i, total)
            logits = network(_shifted(x, shift_pixels, generator)).logits
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            right = (logits.argmax(1) == y).sum()
            seen += torch.stack([loss.detach().double() * len(y), right.double()])
        if progress is not None:
            mean_loss, share = (seen / len(images)).tolist()
            progress(ClassifierProgress(epoch + 1, epochs, mean_loss, share))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: EmbeddedCNN, images: Tensor, labels: Tensor, batch_size: int = 512) -> float:
    """Share of images (n, C, H, W) whose largest logit is their label (n,)."""
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; give as many labels as images"
        )
    predicted = torch.cat(
        [network(batch.float()).logits.argmax(1) for batch in images.split(batch_size)]
    )
    return (predicted == labels.to(predicted.device)).double().mean().item()


def _fresh_network(channels: int, num_classes: int, generator: torch.Generator) -> EmbeddedCNN:
    with torch.device("meta"):  # so that torch's default initialisation draws nothing
        network = EmbeddedCNN(channels, num_classes)
    network = network.to_empty(device="cpu")
    network.reset_parameters(generator)
    return network


def _one_cycle(step: int, total: int) -> float:
    """Linear warm-up over a tenth of the steps, then half a cosine to zero."""
    warm_up = max(1, total // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def _shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, -pixels to pixels, in both directions."""
    if pixels == 0:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * pixels + 1, (2, n, 1, 1), generator=generator)
    rows, columns = (
        pinned(place, images.device).to(images.device, non_blocking=True)
        for place in (down + torch.arange(height)[:, None], right + torch.arange(width))
    )
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2).contiguous()


def _check(
    images: Tensor | Readable, labels: Tensor, num_classes: int, epochs: int, batch_size: int
) -> None:
    if len(images) < 2 or (isinstance(images, Tensor) and images.ndim != 4):
        raise ValueError(
            f"images has shape {tuple(images.shape)}; give at least two as (n, C, H, W)"
        )
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and type {labels.dtype}; give one integer "
            f"for each of the {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; with num_classes={num_classes} "
            f"they must lie in 0..{num_classes - 1}"
        )
    if isinstance(images, Tensor) and not (images.float().abs().amax() <= 1.0001):  # NaN neither
        raise ValueError("images have values that are NaN or outside [-1, 1]; rescale them first")
    if epochs < 1 or batch_size < 2:
        raise ValueError(
            f"epochs is {epochs} and batch_size {batch_size}; use at least 1 and at least 2"
        )
