"""Scores of sample quality beside the Fréchet distance, each with its error.

Precision, recall, density and coverage come from the counts that their errors need, the kernel
distance from such sums; the Inception score is two lines and has no light library.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.methods import given, influence
from stages.methods.balls import Balls
from stages.methods.fewest import most_neighbours
from stages.methods.jackknife import complements, deal, standard_error

__all__ = [
    "Estimate",
    "Manifolds",
    "inception_score",
    "kernel_distance",
    "precision_recall",
]

LARGEST_MATRIX = 10_000  # images of each set that pairs are taken of


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (None where none was asked for), and what each sample contributes
    to it, (n,), where the error comes from that."""

    value: float
    standard_error: float | None
    psi: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def kernel_distance(
    samples: Tensor,
    reference: Tensor,
    labels: Tensor | None = None,
    among_reference: float | None = None,
    device: torch.device | str | None = None,
) -> Estimate:
    """Kernel distance (KID): unbiased squared MMD with the kernel (x.y/d + 1)^3, of all images.

    samples: (n, d), reference: (m, d). Binkowski et al. 2018, section 4. Usual codes, clean-fid
    among them, average it over random subsets of up to 1,000, with the same expectation and a
    larger spread. The standard error (**ours**) is that of the samples, the reference being fixed;
    labels: (n,) of samples where they stand in fixed shares. among_reference: the mean of the
    kernel over pairs of reference images, where it is known already.
    """
    samples, reference = _pair(samples, reference)
    own = influence.kernel_means(samples, device=device)
    across = influence.kernel_means(samples, reference, device=device)
    if among_reference is None:
        among_reference = influence.kernel_means(reference, device=device).mean().item()
    value = own.mean() + among_reference - 2 * across.mean()
    return _estimate(value.item(), influence.kernel(own, across), labels)


def precision_recall(
    samples: Tensor,
    reference: Tensor,
    neighbours: int = 5,
    errors: bool = True,
    labels: Tensor | None = None,
    reach: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Manifolds:
    """Precision, recall, density and coverage from k-th neighbour balls, with errors or without.

    samples: (n, d), reference: (m, d), which may be mapped. All in [0, 1] but density, which may
    exceed 1. They depend on n and m: compare at equal sizes only. Standard errors (**ours**) are of
    the samples, the reference being fixed; labels: (n,) of samples where they stand in fixed
    shares; reach: (m,) squared radii of the reference's balls, where they are known already.
    """
    samples, reference = _pair(samples, reference)
    fewest = min(len(samples), len(reference))
    if (largest := most_neighbours(fewest)) < 1:
        raise ValueError(f"{fewest} images are too few for neighbours among them; give at least 3")
    if not 1 <= neighbours <= largest:
        raise ValueError(
            f"neighbours is {neighbours} with {fewest} images; use 1 to {largest} neighbours"
        )
    balls = Balls.of(samples, reference, neighbours, reach=reach, device=device)
    found = {}
    for name in ("precision", "recall", "density", "coverage"):
        value, psi = getattr(balls, name)()
        found[name] = _estimate(value, psi, labels) if errors else Estimate(value, None)
    return Manifolds(**found)


def _estimate(value: float, psi: Tensor, labels: Tensor | None) -> Estimate:
    return Estimate(value, influence.standard_error(psi, labels), psi)


def inception_score(
    logits: Tensor, blocks: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """exp of the mean KL(p(class | image) || p(class)): 1 to the number of classes.

    logits: (n, num_classes). Salimans et al. 2016, section 4, over all images at once; splitting
    them in ten, as is usual, adds a bias of its own. Jackknife error.
    """
    logits = _checked(logits, "logits").double()
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits has {logits.shape[1]} class; the score needs a classifier of at least 2"
        )
    blocks = min(blocks, len(logits) // 2)
    generator = generator or torch.Generator().manual_seed(0)
    error = None
    if blocks >= 2:
        kept = complements(deal(len(logits), blocks, generator))
        error = standard_error([_inception_score(logits[chosen]) for chosen in kept])
    return Estimate(_inception_score(logits), error)


def _inception_score(logits: Tensor) -> float:
    log_p = logits.log_softmax(1)
    log_mean = log_p.logsumexp(0) - np.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def _pair(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    samples, reference = _checked(samples, "samples"), _checked(reference, "reference")
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"samples have {samples.shape[1]} features and reference {reference.shape[1]}; both "
            "must come from the same extractor"
        )
    return samples, reference


def _checked(x: Tensor, name: str) -> Tensor:
    x = given.tensor(x, name)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; give (images, dimensions), at least two images"
        )
    bad = (~torch.isfinite(x).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(x)} images, first in image "
            f"{bad[0]}; look at it, or at the network that made them"
        )
    given.check_size(x, name)
    return x
