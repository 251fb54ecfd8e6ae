"""What sets of samples are scored against, with what of it every score needs: worked out once.

It is as large as the features are wide, whatever the number of images: it goes to every process
that scores a set, and the features of training images do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.methods.fewest import FEWEST_SCORED

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.artifacts.features import FeatureArrays
    from stages.methods.gaussians import Dealt, Moments
    from stages.scoring.evaluate import EvaluateSettings

GAP_SUBSETS = 5  # of training images that the gap to held-out ones is taken from


@dataclass(frozen=True)
class References:
    """The images that sets of samples are held against, and what of them every score needs.

    features, spatial: of the training images, dealt to blocks. moments: theirs. held_out: of the
    others, None where these are too few. subsets: of as many training images with the labels of the
    held-out ones, several times. many: features that KID takes, and the mean of its kernel among
    them. drawn: those that neighbours are sought among, as many as of a set of samples, and the
    squared radii of their balls; None where nobody asks for them.
    """

    count: int
    features: Dealt
    spatial: Dealt | None
    moments: Moments
    held_out: Moments | None
    num_held_out: int
    subsets: Sequence[Moments]
    many: Tensor
    among_many: float
    drawn: Tensor | None
    reach: Tensor | None

    @classmethod
    def of(
        cls, train: FeatureArrays, held_out: FeatureArrays, settings: EvaluateSettings
    ) -> References:
        from stages.methods import balls, influence, quality
        from stages.methods.gaussians import Moments

        seed, device, there = settings.seed, settings.device, enough(held_out)
        features = _dealt(train.features, train.labels, settings)
        many = _drawn(train.features, quality.LARGEST_MATRIX, seed)
        drawn = reach = None
        if settings.neighbours:
            drawn = _drawn(train.features, min(settings.num_samples, len(many)), seed)
            reach = balls.Nearest.of(drawn, settings.neighbours, device).reach
        return cls(
            count=len(train.features),
            features=features,
            spatial=None
            if train.spatial is None
            else _dealt(train.spatial.flatten(1), None, settings),
            moments=features.moments(),
            held_out=Moments.of(held_out.features, device) if there else None,
            num_held_out=len(held_out.features),
            subsets=_subsets(train, held_out, settings) if there else (),
            many=many,
            among_many=influence.kernel_means(many, device=device).mean().item(),
            drawn=drawn,
            reach=reach,
        )


def _dealt(features: Tensor, labels: Tensor | None, settings: EvaluateSettings) -> Dealt:
    """Training images dealt to blocks by the generator that has dealt a set of samples before."""
    from stages.methods import frechet
    from stages.methods.jackknife import deal

    generator = _generator(settings.seed)
    deal(settings.num_samples, frechet.BLOCKS, generator)
    return frechet.dealt(features, generator, labels, settings.device)


def _subsets(
    train: FeatureArrays, held_out: FeatureArrays, settings: EvaluateSettings
) -> list[Moments]:
    """Of training images drawn with the labels of the held-out ones; none where one label has fewer
    than twice as many of them: subsets would overlap."""
    import numpy as np
    import torch

    from stages.methods import strata
    from stages.methods.gaussians import Moments, Rows

    known = labels_of(train, held_out) is not None
    theirs, ours = (
        one.labels.long().numpy() if known else np.zeros(len(one.features), np.int64)
        for one in (held_out, train)
    )
    wanted, random = np.bincount(theirs), np.random.default_rng(settings.seed)
    if (np.bincount(ours, minlength=len(wanted))[: len(wanted)] < 2 * wanted).any():
        return []
    parts = (strata.drawn(ours, wanted, random) for _ in range(GAP_SUBSETS))
    rows = (Rows([train.features], torch.from_numpy(part)) for part in parts)
    return [Moments.of(part, settings.device) for part in rows]


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


def _drawn(features: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows at random, or all rows as they are where there are no more; in memory."""
    import torch

    if count >= len(features):
        return features.clone()
    return features[torch.randperm(len(features), generator=_generator(seed))[:count]]
