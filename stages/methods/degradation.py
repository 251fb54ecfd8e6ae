"""Does an extractor's distance rise as images get worse? An extractor is validated, not trusted.

Real images are degraded in three ways, each in a few strengths: noise, blur, and classes left out.
Their Fréchet distance to other real images must rise with every step (Heusel et al. 2017, figure 3,
disturb images alike; the strengths and the equal sizes are **ours**).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.methods.frechet import distance_from_features

__all__ = ["STRENGTHS", "blurred", "is_monotone", "noisy", "validate"]

# Noise: standard deviation, images in [-1, 1]. Blur: standard deviation of the Gaussian as a share
# of the images' side. Classes: the share of classes left out.
STRENGTHS = {
    "noise": (0.0, 0.1, 0.2, 0.4, 0.8),
    "blur": (0.0, 0.06, 0.08, 0.11, 0.16),
    "dropped classes": (0.0, 0.2, 0.4, 0.6, 0.8),
}
DRAWS = 8  # subsets of equal size that the distance with dropped classes is averaged over
FEWEST = 10  # images of a subset; with fewer left the strength is passed over

Curve = tuple[tuple[float, float], ...]


def noisy(images: Tensor, amount: float, noise: Tensor) -> Tensor:
    """images (n, C, H, W) plus amount x noise of their shape, clipped to [-1, 1] as files are."""
    return (images + amount * noise).clamp(-1, 1)


def blurred(images: Tensor, amount: float) -> Tensor:
    """images (n, C, H, W) under a Gaussian of standard deviation amount x the shorter side."""
    sigma = amount * min(images.shape[2:])
    if sigma == 0:
        return images
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    channels = images.shape[1]
    for _ in range(2):  # rows, then columns
        padded = F.pad(images, (radius, radius, 0, 0), mode="replicate")
        images = F.conv2d(padded, kernel, groups=channels).transpose(2, 3)
    return images


def validate(
    features: Callable[[Tensor], Tensor],
    reference: Tensor,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> dict[str, Curve]:
    """Distances of degraded to other real images: `{kind: ((strength, distance), ...)}`.

    features: images (n, C, H, W) -> (n, d). reference: (m, d), features of other real images.
    images: (n, C, H, W) in [-1, 1], labels (n,). With classes dropped, distances are means over
    random subsets of one size, because a distance grows as images get fewer.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    clean = features(images)

    def distance(changed: Tensor) -> float:
        return distance_from_features(changed, reference)

    curves = {
        "noise": tuple(
            (s, distance(features(noisy(images, s, noise)))) for s in STRENGTHS["noise"]
        ),
        "blur": tuple((s, distance(features(blurred(images, s)))) for s in STRENGTHS["blur"]),
    }
    if dropped := _dropped(clean, labels, distance, generator):
        curves["dropped classes"] = dropped
    return curves


def is_monotone(curve: Curve) -> bool:
    """Whether the distance rises with every step of the strength."""
    distances = [distance for _, distance in curve]
    return all(a < b for a, b in pairwise(distances))


def _dropped(
    features: Tensor,
    labels: Tensor,
    distance: Callable[[Tensor], float],
    generator: torch.Generator,
) -> Curve:
    classes = labels.unique()
    kept = {}
    for share in STRENGTHS["dropped classes"]:
        rest = classes[round(share * len(classes)) :]
        indices = torch.isin(labels, rest).nonzero().flatten()
        if len(rest) and len(indices) >= FEWEST:
            kept[len(rest)] = (share, indices)
    if len(kept) < 2:
        return ()
    size = min(len(indices) for _, indices in kept.values())
    curve = []
    for share, indices in kept.values():
        draws = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(DRAWS)]
        distances = [distance(features[draw[:size]]) for draw in draws]
        curve.append((share, sum(distances) / DRAWS))
    return tuple(sorted(curve))
