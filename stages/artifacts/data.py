"""A data set: its training and its held-out images, with labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images on disk, converted as they are taken: `images[indices]` is float32 in [-1, 1].

    stored: (n, C, H, W) array, memory-mapped. labels: (n,) long. white: the stored value that
    becomes 1 where `stored` is uint8.
    """

    stored: np.ndarray
    labels: Tensor
    white: int

    def __len__(self) -> int:
        return len(self.stored)

    def first(self, count: int) -> Images:
        """The first `count` of them."""
        return replace(self, stored=self.stored[:count], labels=self.labels[:count])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as it is given."""
        return tuple(self.stored.shape[1:])

    def raw(self, which: Any) -> Tensor:
        """What is stored of some images, to be brought to a device and given to `finish` there;
        `which`: a slice, or integer indices (B,) as tensor or array."""
        import numpy as np
        import torch

        return torch.from_numpy(np.array(self.stored[_places(which)]))

    def finish(self, raw: Tensor) -> Tensor:
        """(B, C, H, W) float32 of what `raw` gave, on its device."""
        import torch

        if raw.dtype == torch.uint8:
            return raw.float().div_(self.white / 2).sub_(1)
        return raw

    def __getitem__(self, which: Any) -> Tensor:
        """(B, C, H, W) float32; `which`: a slice, or integer indices (B,) as tensor or array."""
        return self.finish(self.raw(which))


def _places(which: Any) -> Any:
    import numpy as np

    return which if isinstance(which, slice) else np.asarray(which)


@dataclass(frozen=True)
class DataSet:
    """A prepared data set.

    shape: (C, H, W). mean, std: over all training pixels. mu: (C, H, W) mean training image and
    V = E|x0 - mu|^2, its total variance (float64), as online corrections of solvers need them.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean: float
    std: float
    mu: Tensor
    V: float

    @property
    def num_classes(self) -> int:
        """0 where the data have no labels, which is where all are of one class."""
        return len(self.class_names) if len(self.class_names) > 1 else 0

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class; none where the data have no labels."""
        import torch

        if not self.num_classes:
            return []
        return torch.bincount(self.train.labels.long(), minlength=self.num_classes).tolist()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.shape


class Data(DescribedArtifact):
    """Training and held-out images and labels, and statistics of the training pixels. Facts: name,
    shape, class names, counts, mean, std, V."""

    facts = "data.json"

    def load(self) -> DataSet:
        """Open the data set; images stay on disk until they are taken."""
        import numpy as np
        import torch

        facts = self.description

        def part(name: str) -> Images:
            stored = np.load(self.path / f"{name}.npy", mmap_mode="r")
            labels = torch.from_numpy(np.load(self.path / f"{name}_labels.npy"))
            return Images(stored, labels, facts["white"])

        return DataSet(
            name=facts["name"],
            train=part("train"),
            test=part("test"),
            class_names=tuple(facts["class_names"]),
            mean=facts["mean"],
            std=facts["std"],
            mu=torch.from_numpy(np.load(self.path / "mu.npy")),
            V=facts["V"],
        )

    def datasets(self) -> list[dict[str, Any]]:
        facts = self.description
        profile = {k: facts[k] for k in ("shape", "num_train", "num_test", "mean", "std")}
        return [
            {
                "name": facts["name"],
                "digest": self.manifest.payload[:32],
                "source": next(iter(self.manifest.external), "scikit-learn"),
                "profile": profile | {"num_classes": len(facts["class_names"])},
            }
        ]
