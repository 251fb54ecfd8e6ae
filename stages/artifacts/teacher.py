"""A teacher: the network whose features a training aligns with, and its features, stored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.artifacts.data import SMALL
from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PATCHES, TOKENS = "patches.npy", "class_tokens.npy"


@dataclass(frozen=True)
class TeacherNetwork:
    """A frozen network. grid: (rows, columns) of its patches. width: Z, of its features.

    tokens: images (B, C, H, W) in [-1, 1] -> (B, 1 + rows * columns, Z), the class token first,
    after the final norm. untrained: the same of the network as it was before any training.
    resize: what is done to the images, in words.
    """

    name: str
    weights_hash: str
    resize: str
    grid: tuple[int, int]
    width: int
    tokens: Callable[[Tensor], Tensor]
    untrained: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TeacherFeatures:
    """Features of the training images, read as they are taken.

    patches: (n, N, Z), of unit length, on the student's patch grid. class_tokens: (n, Z), raw.
    """

    patches: np.ndarray
    class_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def small(self) -> bool:
        """As `Images.small`."""
        return self.patches.nbytes < SMALL

    def raw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """What is stored of these images (B,), to be brought to a device and given to `finish`."""
        import numpy as np
        import torch

        chosen, both = indices.cpu().numpy(), (self.patches, self.class_tokens)
        return tuple(torch.from_numpy(np.asarray(stored[chosen])) for stored in both)

    def finish(self, raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Patch targets (B, N, Z) and class tokens (B, Z), float32, of what `raw` gave."""
        patches, tokens = raw
        return patches.float(), tokens.float()

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of these images (B,): patch targets (B, N, Z) and class tokens (B, Z), float32."""
        return self.finish(self.raw(indices))


class Teacher(DescribedArtifact):
    """Features of the training images on the student's patch grid, and what made them. Facts: name,
    weights_hash, resize, grid, teacher_grid, width, data, num_images, probes (accuracy by features
    and by training)."""

    facts = "teacher.json"

    def load(self) -> TeacherFeatures:
        import numpy as np

        patches, tokens = (np.load(self.path / name, mmap_mode="r") for name in (PATCHES, TOKENS))
        return TeacherFeatures(patches, tokens)
