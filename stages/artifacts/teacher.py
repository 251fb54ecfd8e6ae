"""A teacher: the network whose features a training aligns with.

It is stored in one of two modes. `stored`: its features of all training images. `online`: the
frozen network itself, which looks at the images of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stage import resolve
from stages.artifacts.data import SMALL
from stages.artifacts.described import DescribedArtifact
from stages.methods import table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from stages.artifacts.data import Data, Images

PATCHES, TOKENS = "patches.npy", "class_tokens.npy"
STORED, ONLINE = "stored", "online"


@dataclass(frozen=True)
class TeacherNetwork:
    """A frozen network. grid: (rows, columns) of its patches. width: Z, of its features.

    tokens: images (B, C, H, W) in [-1, 1] -> (B, 1 + rows * columns, Z), the class token first,
    after the final norm. untrained: the same of the network as it was before any training.
    resize: what is done to the images, in words. weights: the file of its weights, wherever it
    lies. config: what it is built from, beside them.
    """

    name: str
    weights_hash: str
    resize: str
    grid: tuple[int, int]
    width: int
    tokens: Callable[[Tensor], Tensor]
    untrained: Callable[[Tensor], Tensor]
    weights: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def looked_at(tokens: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    """`tokens(images)` as float32, computed in inference mode in a precision."""
    import torch

    low = precision == "bfloat16"
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=low):
        return tokens(images).float()


@dataclass(frozen=True)
class TeacherFeatures:
    """Features of the training images, read as they are taken.

    patches: (n, N, Z), of unit length, on the student's patch grid. class_tokens: (n, Z), raw.
    images: None, since nothing is looked at any more.
    """

    patches: np.ndarray
    class_tokens: np.ndarray
    images: Images | None = None

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


@dataclass(frozen=True)
class OnlineTeacher:
    """The frozen network, which looks at the training images as they are taken.

    images: those that it looks at. grid: the student's patches, (rows, columns). teacher_grid: its
    own. batch_size: images in one pass. The rest as in `TeacherNetwork` and the settings of teach.
    """

    images: Images
    tokens: Callable[[Tensor], Tensor]
    device: str | torch.device
    grid: tuple[int, int]
    teacher_grid: tuple[int, int]
    interpolate: bool
    compute: str
    batch_size: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def small(self) -> bool:
        """As `Images.small`."""
        return self.images.small

    def raw(self, indices: Tensor) -> tuple[Tensor]:
        """What is stored of these images (B,), to be brought to the device and given to
        `finish`."""
        return (self.images.raw(indices),)

    def finish(self, raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Patch targets (B, N, Z) and class tokens (B, Z), float32, of what `raw` gave, on the
        device."""
        import torch

        from stages.methods.losses import patch_targets

        parts = []
        for part in raw[0].split(self.batch_size):
            tokens = looked_at(self.tokens, self.images.finish(part), self.compute)
            targets = patch_targets(tokens[:, 1:], self.grid, self.teacher_grid, self.interpolate)
            parts.append((targets, tokens[:, 0].clone()))  # what the loss may keep for its gradient
        return tuple(torch.cat(of) for of in zip(*parts, strict=True))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of these images (B,): patch targets (B, N, Z) and class tokens (B, Z), float32, on the
        CPU."""
        targets, tokens = self.finish([part.to(self.device) for part in self.raw(indices)])
        return targets.cpu(), tokens.cpu()


class Teacher(DescribedArtifact):
    """Features of the training images on the student's patch grid, or the network that gives them,
    and what made them. Facts: name, mode, weights_hash, resize, grid, teacher_grid, width, data,
    num_images, data_digest, pixels_digest (of other images that it looked at, else None), probes
    (accuracy by features and by training), and what the network is loaded from: weights (its file),
    config, interpolate, compute, batch_size."""

    facts = "teacher.json"

    def load(
        self, images: Images | None = None, device: str | torch.device = "cpu"
    ) -> TeacherFeatures | OnlineTeacher:
        """The features, or the network on a device, to look at `images`: those that `check` found
        to be its own. Raises ValueError where it is online and there are none."""
        import numpy as np

        facts = self.description
        if facts["mode"] == STORED:
            arrays = (np.load(self.path / name, mmap_mode="r") for name in (PATCHES, TOKENS))
            return TeacherFeatures(*arrays)
        if images is None:
            raise ValueError("the teacher is online, and needs the images that it looks at")
        frozen = resolve(table.FROZEN_TEACHERS[facts["name"]])
        return OnlineTeacher(
            images,
            frozen(self.path, facts, device),
            device,
            tuple(facts["grid"]),
            tuple(facts["teacher_grid"]),
            facts["interpolate"],
            facts["compute"],
            facts["batch_size"],
        )

    def of(
        self,
        data: Data,
        pixels: Data | None = None,
        images: Images | None = None,
        device: str | torch.device = "cpu",
    ) -> TeacherFeatures | OnlineTeacher:
        """`load` for training images: `images`, or those of `pixels` where the teacher looks at
        others. Raises ValueError as `check`."""
        self.check(data, pixels)
        if self.description["mode"] == STORED:
            return self.load()
        if pixels is not None:
            images = data.pictures(pixels).train
        return self.load(data.load().train if images is None else images, device)

    def check(self, data: Data, pixels: Data | None = None) -> None:
        """Raise ValueError unless the teacher saw these data, image by image and label by label.

        pixels: the same images as the teacher looks at them, where data are latents.
        """
        facts, ours = self.description, data.description
        if (facts["data"], facts["num_images"]) != (ours["name"], ours["num_train"]):
            raise ValueError(
                f"the teacher's features are of {facts['num_images']} images of {facts['data']}, "
                f"the data are {ours['num_train']} of {ours['name']}; connect a teacher of these "
                "data"
            )
        if facts["data_digest"] != data.manifest.payload:
            raise ValueError(
                f"the teacher saw other {facts['data']} than these data, or in another order; "
                "connect a teacher of these data"
            )
        if facts["mode"] == STORED or facts["pixels_digest"] is None:
            return
        if pixels is None:
            raise ValueError(
                "the teacher is online and looks at other pixels than these data; connect the "
                "input 'pixels' to what it looked at"
            )
        if facts["pixels_digest"] != pixels.manifest.payload:
            raise ValueError(
                f"the pixels {pixels.description['name']} are not those that the teacher looked "
                "at; connect the input 'pixels' to these"
            )
