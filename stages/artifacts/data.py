"""A data set: its training and its held-out images, with labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from stages.artifacts.storage import LatentScale, Stored
    from stages.methods.draws import Draws
    from stages.methods.statistics import Summary


SMALL = 2**30  # bytes that a machine keeps in its memory once they were read


@dataclass(frozen=True)
class Images:
    """Images on disk, converted as they are taken: `images[indices]` is float32, in [-1, 1] where
    they are pixels.

    stored: how they lie there. labels: (n,) long; there are as many images. white: the stored value
    that becomes 1 where pixels are uint8. latents: their scale where they are latents.
    """

    stored: Stored
    labels: Tensor
    white: int = 255
    latents: LatentScale | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Images:
        """The first `count` of them."""
        return replace(self, labels=self.labels[:count])

    def mirrored(self) -> Images:
        """These pixels, and then all of them once more, mirrored: n + i is i mirrored."""
        from stages.artifacts.storage import Mirrored

        stored, labels = Mirrored(self.stored, len(self)), self.labels.repeat(2)
        return replace(self, stored=stored, labels=labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as it is given."""
        shape = self.stored.shape
        return tuple(shape[1:] if self.latents else shape)

    @property
    def small(self) -> bool:
        """Whether reading them is a copy from memory, but for the first time."""
        from stages.artifacts.storage import Mapped

        return isinstance(self.stored, Mapped) and self.stored.array.nbytes < SMALL

    def raw(self, which: Any) -> Tensor:
        """What is stored of some images, to be brought to a device and given to `finish` there:
        pixels (B, C, H, W), or means and standard deviations (B, 2, C, h, w).

        which: a slice, or integer indices (B,) as tensor or array.
        """
        import numpy as np
        import torch

        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            # Going down to 0, the end is -1, which a slice would count from the other end.
            which = slice(start, stop, step) if step > 0 else np.arange(start, stop, step)
        else:
            which = np.asarray(which, np.int64)
            which = np.where(which < 0, which + len(self), which)
            if which.size and (which.min() < 0 or which.max() >= len(self)):
                raise IndexError(f"there are {len(self)} images, and {which.max()} is asked for")
        return torch.from_numpy(self.stored.take(which))

    def finish(self, raw: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, C, H, W) float32 of what `raw` gave, on its device. draws: where latents are drawn
        from their posterior; their means without."""
        import torch

        if self.latents is not None:
            mean = raw[:, 0].float()
            if draws is not None:
                mean = mean + raw[:, 1].float() * draws.posterior(tuple(mean.shape[1:]))
            scaling, shift = self.latents.on(mean.device)
            return (mean - shift) * scaling
        if raw.dtype == torch.uint8:
            # By a tensor: a GPU takes a number's reciprocal, which is another rounding.
            half = torch.full((), self.white / 2, device=raw.device)
            return raw.float().div_(half).sub_(1)
        return raw

    def __getitem__(self, which: Any) -> Tensor:
        """(B, C, H, W) float32; `which`: a slice, or integer indices (B,) as tensor or array."""
        return self.finish(self.raw(which))


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
    """Training and held-out images and labels, and statistics of the training images. Facts: name,
    shape, class names, counts, white, mean, std, V. Where they are not mapped arrays: `storage`
    (packed or latents) and `shards`, the number of images in each by part; of latents `latents`:
    autoencoder (name and sha256 of its weights), pixel_range, scaling, shift, dtype; `of_pixels`:
    the payload of the pixels that they were made of or compared with."""

    facts = "data.json"

    @classmethod
    def write(
        cls,
        folder: Path,
        labels: Mapping[str, np.ndarray],
        summary: Summary,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write what stands beside the images, and give all facts.

        labels: (n,) int64 of `train` and of `test`. facts: name, shape, class_names, white, and
        those of the storage.
        """
        import numpy as np

        for part, values in labels.items():
            np.save(folder / f"{part}_labels.npy", values)
        np.save(folder / "mu.npy", summary.mu)
        measured = {"mean": summary.mean, "std": summary.std, "V": summary.V}
        counts = {f"num_{part}": len(values) for part, values in labels.items()}
        described = {**facts, **counts, **measured}
        cls.describe(folder, described)
        return described

    def load(self) -> DataSet:
        """Open the data set; images stay on disk until they are taken."""
        import numpy as np
        import torch

        facts = self.description

        def part(name: str) -> Images:
            labels = torch.from_numpy(np.load(self.path / f"{name}_labels.npy"))
            return Images(self._stored(name), labels, facts["white"], self.latents)

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

    def _stored(self, part: str) -> Stored:
        from stages.artifacts.storage import Latents, Mapped, Packed

        facts = self.description
        storage, shape = facts.get("storage", "mapped"), tuple(facts["shape"])
        if storage == "mapped":
            return Mapped(self.path, f"{part}.npy")
        where = self.path, part, tuple(facts["shards"][part])
        if storage == "packed":
            return Packed(*where, shape)
        return Latents(*where, (2, *shape), facts["latents"]["dtype"])

    def pictures(self, pixels: Data) -> DataSet:
        """`pixels` as they stand behind these latents: followed by mirrored ones where these are
        of both."""
        shown = pixels.load()
        if not self.description.get("flips"):
            return shown
        return replace(shown, train=shown.train.mirrored())

    def is_of(self, pixels: Data) -> bool:
        """Whether these latents are known to be of these pixels, in their order: made of them, or
        compared with them."""
        return self.description.get("of_pixels") == pixels.manifest.payload

    @property
    def of_unit_pixels(self) -> bool:
        """Whether these are latents of pixels in [0, 1], as EDM2 makes them."""
        return (self.description.get("latents") or {}).get("pixel_range") == "[0, 1]"

    @property
    def latents(self) -> LatentScale | None:
        """How stored latents are brought to what networks see, where they are latents."""
        from stages.artifacts.storage import LatentScale

        facts = self.description.get("latents")
        if facts is None:
            return None
        scaling, shift = (
            tuple(x) if isinstance(x, list) else x for x in (facts["scaling"], facts["shift"])
        )
        return LatentScale(scaling, shift)

    @property
    def train_digest(self) -> str:
        """Of the stored training images: of one file its SHA-256, of shards that of all theirs."""
        files = self.manifest.files
        if "train.npy" in files:
            return files["train.npy"]["sha256"]
        shards = [f["sha256"] for name, f in sorted(files.items()) if name.startswith("train-")]
        return hashlib.sha256("".join(shards).encode()).hexdigest()

    def datasets(self) -> list[dict[str, Any]]:
        facts = self.description
        profile = {k: facts[k] for k in ("shape", "num_train", "num_test", "mean", "std")}
        # What latents were read from is an autoencoder.
        pixels = facts.get("of_pixels")
        source = f"pixels {pixels[:12]}" if pixels else next(iter(self.manifest.external), None)
        return [
            {
                "name": facts["name"],
                "digest": self.manifest.payload[:32],
                "source": source or "scikit-learn",
                "profile": profile | {"num_classes": len(facts["class_names"])},
            }
        ]
