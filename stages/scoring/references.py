"""What sets of samples are scored against, with what of it every score needs: worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stages.methods.fewest import FEWEST_SCORED

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.artifacts.features import FeatureArrays
    from stages.methods.influence import Moments

GAP_SUBSETS = 5  # of training images that the gap to held-out ones is taken from


@dataclass(frozen=True)
class References:
    """The images that sets of samples are held against, and what of them every score needs.

    moments: of the training images. held_out: of the others, None where these are too few. subsets:
    of as many training images with the labels of the held-out ones, several times. many: features
    that KID takes, and the mean of its kernel among them.
    """

    train: FeatureArrays
    moments: Moments
    held_out: Moments | None
    num_held_out: int
    subsets: Sequence[Moments]
    many: Tensor
    among_many: float
    seed: int
    neighbours: int

    @classmethod
    def of(
        cls, train: FeatureArrays, held_out: FeatureArrays, seed: int, neighbours: int
    ) -> References:
        from stages.methods import influence, quality

        there = enough(held_out)
        count = min(len(train.features), quality.LARGEST_MATRIX)
        many = _drawn(train.features, count, _generator(seed))
        return cls(
            train=train,
            moments=influence.Moments.of(train.features),
            held_out=influence.Moments.of(held_out.features) if there else None,
            num_held_out=len(held_out.features),
            subsets=_subsets(train, held_out, seed) if there else (),
            many=many,
            among_many=influence.kernel_means(many).mean().item(),
            seed=seed,
            neighbours=neighbours,
        )

    @cached_property
    def _balls(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}

    def balls(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images drawn at random, features (count, d), and the radii of the balls
        to their neighbours."""
        from stages.methods import influence

        if count not in self._balls:
            drawn = _drawn(self.train.features, count, _generator(self.seed))
            radii = influence.neighbour_distances(drawn, self.neighbours)
            self._balls[count] = drawn, radii
        return self._balls[count]


def _subsets(train: FeatureArrays, held_out: FeatureArrays, seed: int) -> list[Moments]:
    """Of training images drawn with the labels of the held-out ones; none where one label has fewer
    than twice as many of them: subsets would overlap."""
    import numpy as np

    from stages.methods import influence, strata

    known = labels_of(train, held_out) is not None
    theirs, ours = (
        one.labels.long().numpy() if known else np.zeros(len(one.features), np.int64)
        for one in (held_out, train)
    )
    wanted, random = np.bincount(theirs), np.random.default_rng(seed)
    if (np.bincount(ours, minlength=len(wanted))[: len(wanted)] < 2 * wanted).any():
        return []
    parts = (strata.drawn(ours, wanted, random) for _ in range(GAP_SUBSETS))
    return [influence.Moments.of(train.features[part]) for part in parts]


def enough(held_out: FeatureArrays) -> bool:
    """Whether there are enough held-out images to take a distance to."""
    return len(held_out.features) > max(FEWEST_SCORED, held_out.features.shape[1])


def labels_of(*sets: FeatureArrays) -> Tensor | None:
    """The labels of real images together; None where some have none."""
    import torch

    labels = [one.labels for one in sets]
    return None if any(of is None for of in labels) else torch.cat(labels).long()


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


def _drawn(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows at random, or all rows as they are."""
    import torch

    if count == len(features):
        return features
    return features[torch.randperm(len(features), generator=generator)[:count]]
