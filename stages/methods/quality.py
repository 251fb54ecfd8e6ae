"""Scores of sample quality beside the Fréchet distance, each with its error.

What libraries compute well is called: prdc for precision, recall, density and coverage, clean-fid
for the kernel distance. The Inception score is two lines and has no light library.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.methods import given
from stages.methods.fewest import most_neighbours
from stages.methods.frechet import FrechetResult, from_features
from stages.methods.jackknife import complements, deal, standard_error

__all__ = [
    "Estimate",
    "Manifolds",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "spatial_frechet",
]

LARGEST_MANIFOLD = 10_000


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error (None where none was asked for)."""

    value: float
    standard_error: float | None


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
    subset_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Kernel distance (KID): unbiased squared MMD with the kernel (x.y/d + 1)^3, by clean-fid.

    samples: (n, d), reference: (m, d). Binkowski et al. 2018, section 4. It is the mean over
    disjoint random subsets, ``subset_size`` from each side (default: a tenth of the smaller set,
    at most 1,000); usual codes let the subsets overlap, which keeps the expectation and loses the
    error bar. The standard error (**ours**) is that of a mean of independent subsets.

    Raises ValueError where fewer than two subsets fit.
    """
    samples, reference = _pair(samples, reference)
    n = min(len(samples), len(reference))
    size = min(1000, n // 10) if subset_size is None else subset_size
    subsets = n // size if size > 0 else 0
    if size < 2 or subsets < 2:
        raise ValueError(
            f"subset_size is {size} with {n} images on the smaller side; at least two subsets of "
            "two images or more must fit: give more images or a smaller subset_size"
        )
    generator = generator or torch.Generator().manual_seed(0)
    ours, theirs = (deal(len(x), subsets, generator) for x in (samples, reference))
    values = torch.tensor(
        [
            _clean_fid_kernel_distance(samples[a[:size]], reference[b[:size]])
            for a, b in zip(ours, theirs, strict=True)
        ],
        dtype=torch.float64,
    )
    return Estimate(values.mean().item(), (values.std() / subsets**0.5).item())


def precision_recall(
    samples: Tensor,
    reference: Tensor,
    neighbours: int = 5,
    blocks: int = 20,
    generator: torch.Generator | None = None,
) -> Manifolds:
    """Precision, recall, density and coverage from k-th neighbour balls, by prdc.

    samples: (n, d), reference: (m, d). All in [0, 1] but density, which may exceed 1. They depend
    on n and m: compare at equal sizes only. Standard errors: jackknife over ``blocks`` blocks
    left out of both sets at once, from one matrix of distances (**ours**); ``blocks=0`` gives none.

    Raises ValueError above 10,000 images, whose distance matrices no longer fit a usual memory.
    """
    samples, reference = _pair(samples, reference)
    fewest, most = sorted((len(samples), len(reference)))
    if most > LARGEST_MANIFOLD:
        raise ValueError(
            f"{most} images need distance matrices of {most}^2 numbers; score the first "
            f"{LARGEST_MANIFOLD} of each set"
        )
    blocks = min(blocks, fewest // 2)
    if (largest := most_neighbours(fewest, blocks)) < 1:
        raise ValueError(f"{fewest} images are too few for neighbours among them; give at least 6")
    if not 1 <= neighbours <= largest:
        raise ValueError(
            f"neighbours is {neighbours} and {largest + 2} images remain when a block is left out; "
            f"use 1 to {largest} neighbours"
        )
    whole = _prdc(samples, reference, neighbours)
    errors: dict[str, float | None] = dict.fromkeys(whole)
    if blocks >= 2:
        generator = generator or torch.Generator().manual_seed(0)
        dealt = [deal(len(x), blocks, generator) for x in (samples, reference)]
        deleted = list(_deleted_manifolds(samples, reference, neighbours, *dealt))
        errors = {name: standard_error([values[name] for values in deleted]) for name in whole}
    return Manifolds(**{name: Estimate(whole[name], errors[name]) for name in whole})


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


def spatial_frechet(
    samples: Tensor, reference: Tensor, blocks: int = 20, generator: torch.Generator | None = None
) -> FrechetResult:
    """Fréchet distance of spatial features (sFID; Nash et al. 2021, section 5).

    samples: (n, channels, h, w), reference: (m, channels, h, w): the first few channels of a
    feature map, flattened, so that it notices where things are and not only whether they are.
    """
    samples, reference = (
        given.tensor(x, name) for x, name in ((samples, "samples"), (reference, "reference"))
    )
    for name, x in (("samples", samples), ("reference", reference)):
        if x.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; spatial features are (images, channels, h, w)"
            )
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples have maps of {tuple(samples.shape[1:])} and reference of "
            f"{tuple(reference.shape[1:])}; both must come from one extractor at one image size"
        )
    return from_features(samples.flatten(1), reference.flatten(1), blocks, generator)


def _inception_score(logits: Tensor) -> float:
    log_p = logits.log_softmax(1)
    log_mean = log_p.logsumexp(0) - np.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def _prdc(samples: Tensor, reference: Tensor, neighbours: int) -> dict[str, float]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        scores = compute_prdc(_numpy(reference), _numpy(samples), nearest_k=neighbours)
    return {name: float(value) for name, value in scores.items()}


def _deleted_manifolds(
    samples: Tensor,
    reference: Tensor,
    neighbours: int,
    sample_blocks: tuple[Tensor, ...],
    reference_blocks: tuple[Tensor, ...],
) -> Iterator[dict[str, float]]:
    """What prdc gives without each block in turn, from one matrix of distances."""
    samples, reference = samples.double().cpu(), reference.double().cpu()
    across = torch.cdist(reference, samples).numpy()
    sample_radii = _radii_without(samples, neighbours, sample_blocks).numpy()
    reference_radii = _radii_without(reference, neighbours, reference_blocks).numpy()
    for b, (out, gone) in enumerate(zip(sample_blocks, reference_blocks, strict=True)):
        # numpy reduces truth values many times faster than torch on the CPU.
        num_samples, num_reference = len(samples) - len(out), len(reference) - len(gone)
        in_reference = across < reference_radii[b, :, None]
        in_samples = across < sample_radii[b]
        for inside in (in_reference, in_samples):
            inside[gone.numpy()] = False
            inside[:, out.numpy()] = False
        yield {
            "precision": in_reference.any(0).sum() / num_samples,
            "recall": in_samples.any(1).sum() / num_reference,
            "density": in_reference.sum(dtype=np.int64) / neighbours / num_samples,
            "coverage": in_reference.any(1).sum() / num_reference,
        }


def _radii_without(x: Tensor, k: int, blocks: tuple[Tensor, ...]) -> Tensor:
    """(blocks, n): of every row of x (n, d) the distance to its k-th neighbour without a block."""
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    block_of = torch.empty(len(x), dtype=torch.long)
    for b, block in enumerate(blocks):
        block_of[block] = b
    width = min(2 * k + 20, len(x))
    while True:
        nearest, index = distances.topk(width, largest=False)
        alive = block_of[index] != torch.arange(len(blocks))[:, None, None]
        enough = alive.cumsum(2) >= k
        if width == len(x) or enough[:, :, -1].all():
            first = enough.to(torch.uint8).argmax(2)
            return nearest.expand(len(blocks), -1, -1).gather(2, first[:, :, None])[:, :, 0]
        width = min(2 * width, len(x))


def _clean_fid_kernel_distance(samples: Tensor, reference: Tensor) -> float:
    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from cleanfid.fid import kernel_distance as clean_fid

    # One subset of everything: clean-fid only permutes it, by the global state. A fixed one keeps
    # the order of the sums, and so the last digits, the same in every process.
    before = np.random.get_state()
    np.random.seed(0)
    try:
        x, y = _numpy(reference), _numpy(samples)
        return clean_fid(x, y, num_subsets=1, max_subset_size=len(x))
    finally:
        np.random.set_state(before)


def _numpy(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


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
