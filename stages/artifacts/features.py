"""Features of a set of images, and of each the nearest training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.parts import rows
from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    from torch import Tensor

ARRAYS = ("features", "spatial", "logits", "neighbours", "neighbour_distances", "labels")


@dataclass(frozen=True)
class FeatureArrays:
    """Of n images: features (n, d), spatial (n, channels, h, w) and logits (n, num_classes) where
    the extractor has them; neighbours (n, 3), indices of the nearest training images, nearest
    first, and their Euclidean distances over all pixels, images in [-1, 1]; None for the training
    images themselves, and where none are sought. labels (n,) of the data's own images, None for
    samples."""

    features: Tensor
    spatial: Tensor | None
    logits: Tensor | None
    neighbours: Tensor | None
    neighbour_distances: Tensor | None
    labels: Tensor | None = None


class FeatureSet(DescribedArtifact):
    """Features of a set of images, and its nearest training images. Facts: part, num_images, the
    data's name, data_digest (of the training images), `extractor` (its identity), `samples` (the
    sample set's own description), nearest_among (how many training images the nearest are of, where
    somebody said), left_out (why they were not sought, where nobody did)."""

    facts = "features.json"

    def load(self, count: int | None = None) -> FeatureArrays:
        """The arrays of the first `count` images, mapped: of a file no more is in memory than is
        read; what is written to them does not reach it."""
        import torch

        arrays = {}
        for name in ARRAYS:
            if f"{name}.npy" in self.manifest.files:
                array = rows(self.path, f"{name}.npy", slice(count), "c")
                arrays[name] = torch.from_numpy(array)
        return FeatureArrays(**dict.fromkeys(ARRAYS) | arrays)
