"""Scores as the ADM suite defines them (guided-diffusion, evaluations/evaluator.py), in double
precision; the published tables of SiT, DiT, REPA and REG are made with it.

They are other numbers than those of quality.py: the Inception score is a mean over splits and its
classifier has no bias, precision and recall are of squared distances with "at most", between sets
of different sizes, and sFID flattens maps place by place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.methods import given

__all__ = [
    "Sums",
    "flattened",
    "inception_score",
    "moments",
    "precision_recall",
    "rounded",
]

SPLIT = 5000  # images of one split of the Inception score
NEIGHBOURS = 3
BLOCK = 1000  # rows of distances in memory at once

ROUNDINGS = ("nearest", "down")


def rounded(images: Tensor, rule: str) -> Tensor:
    """uint8 pixels of images in [-1, 1] of any shape, values outside clipped.

    "nearest": floor(127.5 x + 128), as SiT, DiT, EDM and JiT do. "down": floor(127.5 (x + 1)), as
    REPA, REG and ADM's own image_sample do; about half a level darker. Raises ValueError for
    another rule.
    """
    if rule not in ROUNDINGS:
        raise ValueError(f"rounding is {rule!r}; choose one of {', '.join(ROUNDINGS)}")
    shift = 128.0 if rule == "nearest" else 127.5
    return (images.double() * 127.5 + shift).floor().clamp(0, 255).to(torch.uint8)


def flattened(maps: Tensor) -> Tensor:
    """Maps (n, channels, h, w) as rows (n, h w channels): place by place, the channels of a place
    together, as the original's maps lie in memory. Its mu_s and sigma_s mean nothing for rows in
    any other order."""
    if maps.ndim != 4:
        raise ValueError(f"maps have shape {tuple(maps.shape)}; give (images, channels, h, w)")
    return maps.permute(0, 2, 3, 1).flatten(1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), divided by n - 1, of features (n, d), in float64."""
    features = given.tensor(features, "features").double()
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; give (images, dimensions), at least two"
        )
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


class Sums:
    """Mean and covariance of features that come in batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """features: (b, d). Sums are of what is left of them beside the first batch's mean."""
        features = features.double()
        if self._shift is None:
            self._shift = features.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._squares = torch.zeros(len(self._sum), len(self._sum), dtype=torch.float64)
        apart = features - self._shift
        self.count += len(apart)
        self._sum += apart.sum(0)
        self._squares += apart.T @ apart

    def moments(self) -> tuple[Tensor, Tensor]:
        """As `moments` of all of them; ValueError for fewer than two."""
        if self.count < 2:
            raise ValueError(f"{self.count} images have no covariance; give at least two")
        mean = self._sum / self.count
        scatter = self._squares - self.count * torch.outer(mean, mean)
        return self._shift + mean, scatter / (self.count - 1)


def inception_score(logits: Tensor, split: int = SPLIT) -> float:
    """Mean over consecutive splits of exp E KL(p(class | image) || p(class)).

    logits: (n, classes) of the classifier without its bias, in the images' order. The last split
    may be shorter. Raises ValueError for a split below 1.
    """
    if split < 1:
        raise ValueError(f"split is {split}; give at least 1 image")
    scores = []
    for part in given.tensor(logits, "logits").double().split(split):
        log_p = part.log_softmax(1)
        log_mean = log_p.exp().mean(0).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    return torch.stack(scores).mean().item()


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """The share of samples within a ball of the reference, and of the reference within one of the
    samples; a ball reaches to its centre's k-th nearest other image.

    samples: (n, d), reference: (m, d); n and m may differ. Squared distances, a point at the ball's
    edge counts. The original takes half precision where its numbers fit.
    """
    samples, reference = (given.tensor(x, "features").double() for x in (samples, reference))
    for name, x in (("samples", samples), ("reference", reference)):
        if len(x) <= neighbours:
            raise ValueError(f"{name} are {len(x)} images; {neighbours} neighbours need more")
    own, theirs = _radii(samples, neighbours), _radii(reference, neighbours)
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    for start in range(0, len(samples), BLOCK):
        part = slice(start, start + BLOCK)
        squares = _squares(samples[part], reference)
        precise[part] = (squares <= theirs).any(1)
        recalled |= (squares <= own[part, None]).any(0)
    return precise.double().mean().item(), recalled.double().mean().item()


def _radii(x: Tensor, neighbours: int) -> Tensor:
    """(n,): the squared distance of every row to its k-th nearest other row."""
    parts = []
    for start in range(0, len(x), BLOCK):
        squares = _squares(x[start : start + BLOCK], x)
        rows = torch.arange(len(squares))
        squares[rows, start + rows] = torch.inf
        parts.append(squares.kthvalue(neighbours, dim=1).values)
    return torch.cat(parts)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)
    return squares.clamp_min(0)
