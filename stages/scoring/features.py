"""The stage `features`: a set of images seen through the extractor, once, whatever reads it later.

Beside the features stand the nearest training images of every image, for samples among those that
their model was trained on: neither depends on how many of them an evaluation takes. Both are
computed in shards of whole batches, so that the bytes do not depend on how many shards there are.
A shard's arrays lie in the work area: an interrupted pass goes on, and no process holds them all.
"""

from __future__ import annotations

import math
from pathlib import Path
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
    from collections.abc import Callable, Iterator

    import numpy as np
    from torch import Tensor

    from stages.artifacts.data import Images

MOST_VALUES = 2**21  # of images that are in one pass on a CPU: maps of large ones take much memory
SEARCH_MIB = 128  # that a task's search for neighbours works with
LONG_HOURS, PRODUCTS_A_SECOND = 1.0, 2e10  # of a core: from when on a search is told beforehand
NEIGHBOURS = 3  # nearest training images kept: two give the memorisation ratio, all are shown


class FeatureSettings(NetworkOptions, PassOptions):
    """The stage's settings."""

    part: Literal["samples", "train", "test"] = Field(
        "samples", description="the images: samples, the data's training or its held-out images"
    )


def run(context: Context) -> Result:
    """Features and neighbours of all shards."""
    import numpy as np

    from stages.artifacts.written import join_arrays
    from stages.shards import shards

    settings: FeatureSettings = context.settings
    data, samples = context.inputs["data"], context.inputs.get("samples")
    extractor = context.inputs["extractor"]
    count = _count(settings, data, samples)
    context.progress(0, count, "images")
    _tell_long_search(context, data, samples, count)
    items = shards(count, settings.batch_size, settings.shard_size)
    common = data, samples, extractor, settings, context.work
    with raised_as(StageError, ValueError, OSError):
        parts = context.map(embed_shard, items, *common)
    context.work.pull()
    for name in parts[0]:
        files = [context.work.path / Path(part[name]).name for part in parts]
        join_arrays(files, context.path / f"{name}.npy")
    if settings.part != "samples":
        np.save(context.path / "labels.npy", getattr(data.load(), settings.part).labels.numpy())
    facts = {
        "part": settings.part,
        "num_images": count,
        "data": data.description["name"],
        "data_digest": data.train_digest[:12],
        "extractor": {k: v for k, v in extractor.description.items() if k != "validation"},
        "samples": samples.description if samples else {},
    }
    if settings.nearest_among is not None:
        facts["nearest_among"] = settings.nearest_among
    FeatureSet.describe(context.path, facts)
    context.progress(count, count, "images")
    return Result()


def _tell_long_search(context: Context, data: Data, samples: Samples | None, count: int) -> None:
    """Say so where the search for nearest training images takes long."""
    among = _among(context.settings, samples, data.description["num_train"])
    products = 2 * count * among * math.prod(data.description["shape"])
    if (hours := products / PRODUCTS_A_SECOND / 3600) >= LONG_HOURS:
        context.notice(
            f"comparing {count:,} images with {among:,} training images pixel by pixel takes about "
            f"{hours:.2g} hours of a core; extractor.nearest_among=10000 compares with the first "
            "10,000, 0 with none"
        )


def _among(settings: FeatureSettings, samples: Samples | None, num_train: int) -> int:
    """The first so many training images are compared with every image; 0 leaves it out."""
    if settings.part == "train" or settings.nearest_among == 0:
        return 0
    seen = samples.description.get("num_training_images") if samples else None
    return min(seen or num_train, settings.nearest_among or num_train)


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
    folder: Path,
) -> dict[str, str]:
    """The files with the arrays of images first..last-1, by name, in the work area `folder`."""
    from stages.artifacts.written import write_arrays

    def arrays() -> dict[str, np.ndarray]:
        return _arrays(shard, data, samples, extractor, settings)

    files = write_arrays(Path(folder), f"features-{shard[0]}-{shard[1]}", arrays)
    return {name: str(file) for name, file in files.items()}


def _arrays(
    shard: tuple[int, int],
    data: Data,
    samples: Samples | None,
    extractor: Extractor,
    settings: FeatureSettings,
) -> dict[str, np.ndarray]:
    from stages.artifacts.reading import in_order, sensible
    from stages.encoders import embedded
    from stages.shards import blocks

    loaded = data.load()
    if settings.part == "samples":
        read, name_of = samples.images, samples.name_of
    else:
        part = getattr(loaded, settings.part)
        read = part.__getitem__
        words = {"train": "training", "test": "held-out"}[settings.part]
        name_of = f"{words} image {{}}".format
    network = extractor.load(settings.weights, settings.device)

    # On CPUs there is a task for each of them already.
    readers = 0 if settings.device == "cpu" else sensible(None, settings.device, False)

    def batches(size: int, most: int) -> Iterator[Tensor]:
        """Images of the shard, clipped as an image file would be; at most so many of a batch."""
        first, last = shard
        parts = [
            slice(first + begin + start, first + begin + stop)
            for begin, end in blocks(last - first, size)
            for start, stop in blocks(end - begin, most)
        ]
        yield from in_order(lambda part: read(part).clamp(-1, 1), parts, readers)

    names = [name_of(index) for index in range(*shard)]
    most = settings.batch_size
    if settings.device == "cpu":
        most = min(most, max(1, MOST_VALUES // math.prod(loaded.shape)))
    outputs = embedded.extract(network, batches(settings.batch_size, most), names=names)
    arrays = {name: getattr(outputs, name) for name in embedded.Features.__annotations__}
    if among := _among(settings, samples, len(loaded.train)):
        arrays |= _neighbours(batches, loaded.train.first(among))
    return {name: array.numpy() for name, array in arrays.items() if array is not None}


class _Stored:
    """Training images in their stored form, read as they are needed; latents as they are given."""

    def __init__(self, images: Images) -> None:
        self._images, self.shape = images, (len(images), *images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, which: Any) -> Tensor:
        return self._images[which] if self._images.latents else self._images.raw(which)


def _neighbours(
    batches: Callable[[int, int], Iterator[Tensor]], train: Images
) -> dict[str, Tensor]:
    """The nearest training images of the shard's images, which `batches` reads in any size."""
    import torch

    from stages.methods.memorization import nearest, samples_at_once

    stored, k = _Stored(train), min(NEIGHBOURS, len(train))
    at_once = samples_at_once(math.prod(train.shape), k, SEARCH_MIB)
    scale = train.white / 2 if stored[:1].dtype == torch.uint8 else None
    parts = [
        nearest(images if scale is None else (images + 1) * scale, stored, k, SEARCH_MIB)
        for images in batches(at_once, at_once)
    ]
    distances = torch.cat([part.distances for part in parts])
    return {
        "neighbours": torch.cat([part.indices for part in parts]),
        "neighbour_distances": distances / (scale or 1.0),
    }


STAGE = Stage(
    name="features",
    settings=FeatureSettings,
    output=FeatureSet,
    run="stages.scoring.features:run",
    fans_out=True,
    inputs={
        "data": Input(Data),
        "extractor": Input(Extractor),
        "samples": Input(Samples, optional=True),
    },
    sources=lambda settings: [table.EXTRACTORS[settings.kind]],
    files=weight_files,
    estimate="stages.settings.costs:features",
    metrics=lambda node: (),
)
