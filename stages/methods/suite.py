"""Scores as the ADM suite defines them (guided-diffusion, evaluations/evaluator.py), in double
precision; the published tables of SiT, DiT, REPA and REG are made with it.

They are other numbers than those of quality.py: the Inception score is a mean over splits and its
classifier has no bias, precision and recall are of squared distances with "at most", between sets
of different sizes, and sFID flattens maps place by place.

Beside every value stand what each sample contributes to it (ours; see influence.py). Sets may be
arrays mapped from files: a block of them is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.balls import Balls
from stages.methods.frechet import distance_with_influence
from stages.methods.gaussians import Gaussian

__all__ = [
    "Measured",
    "Sums",
    "distance",
    "flattened",
    "inception_score",
    "moments",
    "precision_recall",
    "rounded",
]

SPLIT = 5000  # images of one split of the Inception score
NEIGHBOURS = 3
ROUNDINGS = ("nearest", "down")


@dataclass(frozen=True)
class Measured:
    """A score, and psi (n,) of its n samples; the reference is fixed."""

    value: float
    psi: Tensor = field(compare=False, repr=False)


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


def distance(
    features: Tensor, reference: Gaussian, device: torch.device | str | None = None
) -> Measured:
    """The Fréchet distance of features (n, d) to a `reference_gaussian`; errors as `distance_to`
    has them."""
    return Measured(*distance_with_influence(features, reference, device))


def inception_score(logits: Tensor, split: int = SPLIT) -> Measured:
    """Mean over consecutive splits of exp E KL(p(class | image) || p(class)).

    logits: (n, classes) of the classifier without its bias, in the images' order. The last split
    may be shorter. A sample's psi is that of its split's score S, S (KL_i - E KL), by how much of
    the mean the split is. Raises ValueError for a split below 1.
    """
    if split < 1:
        raise ValueError(f"split is {split}; give at least 1 image")
    logits = given.tensor(logits, "logits")
    parts, count = logits.split(split), len(logits)
    scores, psi = [], []
    for part in parts:
        log_p = part.double().log_softmax(1)
        log_mean = log_p.exp().mean(0).log()
        divergence = (log_p.exp() * (log_p - log_mean)).sum(1)
        scores.append(divergence.mean().exp())
        share = count / (len(parts) * len(part))
        psi.append(share * scores[-1] * (divergence - divergence.mean()))
    return Measured(torch.stack(scores).mean().item(), torch.cat(psi))


def precision_recall(
    samples: Tensor,
    reference: Tensor,
    neighbours: int = NEIGHBOURS,
    device: torch.device | str | None = None,
) -> tuple[Measured, Measured]:
    """The share of samples within a ball of the reference, and of the reference within one of the
    samples; a ball reaches to its centre's k-th nearest other image.

    samples: (n, d), reference: (m, d); n and m may differ. Squared distances, a point at the ball's
    edge counts. The original takes half precision where its numbers fit.
    """
    samples, reference = (given.tensor(x, "features") for x in (samples, reference))
    for name, x in (("samples", samples), ("reference", reference)):
        if len(x) <= neighbours:
            raise ValueError(f"{name} are {len(x)} images; {neighbours} neighbours need more")
    balls = Balls.of(samples, reference, neighbours, closed=True, device=device)
    return Measured(*balls.precision()), Measured(*balls.recall())
