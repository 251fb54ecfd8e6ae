"""The stage `features`: a set of images seen through the extractor, once, whatever reads it later.

Beside the features stand the nearest training images of every image, for samples among those that
their model was trained on, unless a search pixel by pixel takes long and nobody asks for it:
neither depends on how many of them an evaluation takes. Both are computed in shards of whole
batches, so that the bytes do not depend on how many shards there are.
A shard's arrays lie in the work area: an interrupted pass goes on, and no process holds them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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

T = TypeVar("T")

MOST_VALUES = 2**21  # of images that are in one pass on a CPU: maps of large ones take much memory
READ_AT_ONCE = 32  # images by each reader of a device: resized there too
SEARCH_MIB = {"cpu": 128, "cuda": 4096}  # that a task's search for neighbours works with
LONG_HOURS = 1.0  # of one core or device: a longer search is made only where it is asked for
OPERATIONS_A_SECOND = {"cpu": 2e10, "cuda": 1e13}
BYTES_A_SECOND = 2e8  # of training images that are read
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
    search = Search.of(settings, data, samples, count)
    if search.said:
        context.notice(search.said)
    items = shards(count, settings.batch_size, settings.shard_size)
    common = data, samples, extractor, settings, search.among, context.work
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
    if search.left_out:
        facts["left_out"] = search.said
    FeatureSet.describe(context.path, facts)
    context.progress(count, count, "images")
    return Result()


@dataclass(frozen=True)
class Search:
    """Among how many training images, the first ones, the nearest of every image are sought; 0 for
    none. said: what a user is told of it. left_out: whether nobody asked for a search that is long.
    """

    among: int
    said: str = ""
    left_out: bool = False

    @classmethod
    def of(
        cls, settings: FeatureSettings, data: Data, samples: Samples | None, count: int
    ) -> Search:
        """Of `count` images."""
        asked, num_train = settings.nearest_among, data.description["num_train"]
        if settings.part == "train" or asked == 0:
            return cls(0)
        seen = samples.description.get("num_training_images") if samples else None
        among = min(seen or num_train, asked or num_train)
        hours = _hours(count, among, math.prod(data.description["shape"]), settings.device)
        if hours < LONG_HOURS:
            return cls(among)
        cost = (
            f"comparing {count:,} images with {among:,} training images pixel by pixel takes about "
            f"{hours:.2g} hours of a {WHERE[settings.device]}"
        )
        if asked is not None:
            some = "extractor.nearest_among=10000 compares with the first 10,000, 0 with none"
            return cls(among, f"{cost}; {some}")
        said = (
            f"nearest training images and the memorisation ratio are left out: {cost}; "
            "extractor.nearest_among=10000 compares with the first 10,000, "
            f"extractor.nearest_among={num_train} with all"
        )
        return cls(0, said, left_out=True)


WHERE = {"cpu": "core", "cuda": "GPU"}


def _hours(count: int, among: int, values: int, device: str) -> float:
    """Of a search for the neighbours of `count` images, each of so many values."""
    from stages.methods.memorization import samples_at_once

    readings = math.ceil(count / samples_at_once(values, NEIGHBOURS, SEARCH_MIB[device]))
    computing = 2 * count * among * values / OPERATIONS_A_SECOND[device]
    return (computing + readings * among * values / BYTES_A_SECOND) / 3600


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
    among: int,
    folder: Path,
) -> dict[str, str]:
    """The files with the arrays of images first..last-1, by name, in the work area `folder`.

    among: training images that the nearest are sought among.
    """
    from stages.artifacts.written import write_arrays

    def arrays() -> dict[str, np.ndarray]:
        return _arrays(shard, data, samples, extractor, settings, among)

    files = write_arrays(Path(folder), f"features-{shard[0]}-{shard[1]}", arrays)
    return {name: str(file) for name, file in files.items()}


def _arrays(
    shard: tuple[int, int],
    data: Data,
    samples: Samples | None,
    extractor: Extractor,
    settings: FeatureSettings,
    among: int,
) -> dict[str, np.ndarray]:
    from pipeline.gpus import feeders
    from stages.artifacts.reading import in_order
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

    readers = feeders(settings.readers, settings.device)

    def batches(size: int, most: int, made: Callable[[Tensor], T] = lambda x: x) -> Iterator[T]:
        """Images of the shard, clipped as an image file would be; at most so many of a batch. made:
        by the readers, of what they read."""
        first, last = shard
        parts = [
            slice(first + begin + start, first + begin + stop)
            for begin, end in blocks(last - first, size)
            for start, stop in blocks(end - begin, most)
        ]
        yield from in_order(lambda part: made(read(part).clamp(-1, 1)), parts, readers)

    names, size = [name_of(index) for index in range(*shard)], settings.batch_size
    most, together = min(size, READ_AT_ONCE), size
    if settings.device == "cpu":
        most, together = min(size, max(1, MOST_VALUES // math.prod(loaded.shape))), 1
    ready = batches(size, most, network.ready)
    outputs = embedded.extract(network, ready, names=names, together=together)
    arrays = {name: getattr(outputs, name) for name in embedded.Features.__annotations__}
    if among:
        arrays |= _neighbours(batches, loaded.train.first(among), settings.device)
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
    batches: Callable[[int, int], Iterator[Tensor]], train: Images, device: str
) -> dict[str, Tensor]:
    """The nearest training images of the shard's images, which `batches` reads in any size."""
    import torch

    from stages.methods.memorization import nearest, samples_at_once

    stored, k, mib = _Stored(train), min(NEIGHBOURS, len(train)), SEARCH_MIB[device]
    at_once = samples_at_once(math.prod(train.shape), k, mib)
    scale = train.white / 2 if stored[:1].dtype == torch.uint8 else None
    parts = []
    for images in batches(at_once, at_once):
        images = images.to(device)
        found = nearest(images if scale is None else (images + 1) * scale, stored, k, mib)
        parts.append((found.indices.cpu(), found.distances.cpu()))
    indices, distances = map(torch.cat, zip(*parts, strict=True))
    return {"neighbours": indices, "neighbour_distances": distances / (scale or 1.0)}


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
    version=2,
    files=weight_files,
    estimate="stages.settings.costs:features",
    metrics=lambda node: (),
)
