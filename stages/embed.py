"""The stage `features`: a set of images seen through the extractor, once, whatever reads it later.

Beside the features stand the nearest training images of every image, for samples among those that
their model was trained on: neither depends on how many of them an evaluation takes. Both are
computed in shards of whole batches, so that the bytes do not depend on how many shards there are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Stage
from stages.extract import Extractor, NetworkOptions, PassOptions, weight_files
from stages.methods import table
from stages.prepare import Data
from stages.sample import Samples

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NEIGHBOURS = 3  # nearest training images kept: two give the memorisation ratio, all are shown
ARRAYS = ("features", "spatial", "logits", "neighbours", "neighbour_distances")


class FeatureSettings(NetworkOptions, PassOptions):
    """The stage's settings."""

    part: Literal["samples", "train", "test"] = Field(
        "samples", description="the images: samples, the data's training or its held-out images"
    )


@dataclass(frozen=True)
class FeatureArrays:
    """Of n images: features (n, d), spatial (n, channels, h, w) and logits (n, num_classes) where
    the extractor has them; neighbours (n, 3), indices of the nearest training images, nearest
    first, and their Euclidean distances over all pixels, images in [-1, 1]; None for the training
    images themselves."""

    features: Tensor
    spatial: Tensor | None
    logits: Tensor | None
    neighbours: Tensor | None
    neighbour_distances: Tensor | None


class FeatureSet(Artifact):
    """Features of a set of images, and its nearest training images."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """Plain facts: part, num_images, the data's name, data_digest (of the training images),
        `extractor` (its identity), `samples` (the sample set's own description)."""
        return json.loads((self.path / "features.json").read_text())

    def load(self, count: int | None = None) -> FeatureArrays:
        """The arrays of the first `count` images."""
        import numpy as np
        import torch

        found = {}
        for name in ARRAYS:
            file = self.path / f"{name}.npy"
            if file.exists():
                array = np.load(file, mmap_mode="r")[:count]
                found[name] = torch.from_numpy(np.array(array))
        return FeatureArrays(**dict.fromkeys(ARRAYS) | found)


def run(context: Context) -> Result:
    """Features and neighbours of all shards."""
    import numpy as np

    from stages.sample import shards

    settings: FeatureSettings = context.settings
    data, samples = context.inputs["data"], context.inputs.get("samples")
    extractor = context.inputs["extractor"]
    count = _count(settings, data, samples)
    context.progress(0, count, "images")
    items = shards(count, settings.batch_size, settings.shard_size)
    try:
        parts = context.map(embed_shard, items, data, samples, extractor, settings)
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
    for name in parts[0]:
        np.save(context.path / f"{name}.npy", np.concatenate([part[name] for part in parts]))
    facts = {
        "part": settings.part,
        "num_images": count,
        "data": data.description["name"],
        "data_digest": data.manifest.files["train.npy"]["sha256"][:12],
        "extractor": {k: v for k, v in extractor.description.items() if k != "validation"},
        "samples": samples.description if samples else {},
    }
    (context.path / "features.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    context.progress(count, count, "images")
    return Result()


def _count(settings: FeatureSettings, data: Data, samples: Samples | None) -> int:
    """How many images there are, or StageError where they do not fit the training images."""
    if settings.part != "samples":
        return data.description[f"num_{settings.part}"]
    if samples is None:
        raise StageError("there are no samples to take features of; connect a sample node")
    shape, expected = samples.shape, tuple(data.description["shape"])
    if shape != expected:
        raise StageError(
            f"the samples have shape {shape} and the data set's images {expected} (channels, "
            "height, width); set data.size to the samples' size, or resize the samples"
        )
    return samples.description["num_samples"]


def embed_shard(
    shard: tuple[int, int],
    data: Data,
    samples: Samples | None,
    extractor: Extractor,
    settings: FeatureSettings,
) -> dict[str, np.ndarray]:
    """The arrays of images first..last-1."""
    from stages import features

    which = slice(*shard)
    loaded = data.load()
    if settings.part == "samples":
        images, name_of = samples.images(which), samples.name_of
    else:
        images = getattr(loaded, settings.part)[which]
        words = {"train": "training", "test": "held-out"}[settings.part]
        name_of = f"{words} image {{}}".format
    network = extractor.load(settings.weights, settings.device)
    # Clipped as an image file would be.
    names = [name_of(index) for index in range(*shard)]
    found = features.extract(network, images.clamp(-1, 1), settings.batch_size, names)
    arrays = {name: getattr(found, name) for name in features.Features.__annotations__}
    if settings.part != "train":
        seen = samples.description.get("num_training_images") if samples else None
        arrays |= _neighbours(images.clamp(-1, 1), loaded.train.first(seen or len(loaded.train)))
    return {name: array.numpy() for name, array in arrays.items() if array is not None}


def _neighbours(images: Tensor, train: Any) -> dict[str, Tensor]:
    """The nearest training images, which stay in their stored form, on disk."""
    import warnings

    import torch

    from stages.methods.memorization import nearest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nobody writes to the mapped file
        stored = torch.from_numpy(train.stored)
    scale = 1.0
    if stored.dtype == torch.uint8:
        scale = train.white / 2
        images = (images + 1) * scale
    found = nearest(images, stored, k=min(NEIGHBOURS, len(stored)))
    return {"neighbours": found.indices, "neighbour_distances": found.distances / scale}


STAGE = Stage(
    name="features",
    settings=FeatureSettings,
    output=FeatureSet,
    run="stages.embed:run",
    inputs={
        "data": Input(Data),
        "extractor": Input(Extractor),
        "samples": Input(Samples, optional=True),
    },
    sources=lambda settings: [table.EXTRACTORS[settings.kind]],
    files=weight_files,
)
