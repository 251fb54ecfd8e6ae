"""The stage `features`: a set of images seen through the extractor, once, whatever reads it later.

Beside the features stand the nearest training images of every image, for samples among those that
their model was trained on: neither depends on how many of them an evaluation takes. Both are
computed in shards of whole batches, so that the bytes do not depend on how many shards there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage
from stages.artifacts.data import Data
from stages.artifacts.extractor import Extractor
from stages.artifacts.features import FeatureSet
from stages.artifacts.samples import Samples
from stages.methods import table
from stages.settings.extractors import NetworkOptions, PassOptions, weight_files

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NEIGHBOURS = 3  # nearest training images kept: two give the memorisation ratio, all are shown


class FeatureSettings(NetworkOptions, PassOptions):
    """The stage's settings."""

    part: Literal["samples", "train", "test"] = Field(
        "samples", description="the images: samples, the data's training or its held-out images"
    )


def run(context: Context) -> Result:
    """Features and neighbours of all shards."""
    import numpy as np

    from stages.shards import shards

    settings: FeatureSettings = context.settings
    data, samples = context.inputs["data"], context.inputs.get("samples")
    extractor = context.inputs["extractor"]
    count = _count(settings, data, samples)
    context.progress(0, count, "images")
    items = shards(count, settings.batch_size, settings.shard_size)
    with raised_as(StageError, ValueError, OSError):
        parts = context.map(embed_shard, items, data, samples, extractor, settings)
    for name in parts[0]:
        np.save(context.path / f"{name}.npy", np.concatenate([part[name] for part in parts]))
    facts = {
        "part": settings.part,
        "num_images": count,
        "data": data.description["name"],
        "data_digest": data.train_digest[:12],
        "extractor": {k: v for k, v in extractor.description.items() if k != "validation"},
        "samples": samples.description if samples else {},
    }
    FeatureSet.describe(context.path, facts)
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
    from stages.encoders import embedded

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
    outputs = embedded.extract(network, images.clamp(-1, 1), settings.batch_size, names)
    arrays = {name: getattr(outputs, name) for name in embedded.Features.__annotations__}
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
    neighbours = nearest(images, stored, k=min(NEIGHBOURS, len(stored)))
    return {"neighbours": neighbours.indices, "neighbour_distances": neighbours.distances / scale}


STAGE = Stage(
    name="features",
    settings=FeatureSettings,
    output=FeatureSet,
    run="stages.scoring.features:run",
    inputs={
        "data": Input(Data),
        "extractor": Input(Extractor),
        "samples": Input(Samples, optional=True),
    },
    sources=lambda settings: [table.EXTRACTORS[settings.kind]],
    files=weight_files,
    metrics=lambda node: (),
)
