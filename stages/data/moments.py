"""Latents that were encoded elsewhere, means and standard deviations, brought into shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stage import Context
from stages.artifacts import written
from stages.artifacts.data import Data
from stages.artifacts.storage import LatentScale
from stages.data.readers.source import LatentFacts, Part, Source
from stages.methods.statistics import from_arrays
from stages.shards import blocks

SHARD_BYTES = 2**28
READ_AT_ONCE = 64  # latents


def write_latents(context: Context, source: Source, name: str) -> dict[str, Any]:
    """Write a source of moments as the payload of a data set, and give its facts."""
    parts, known = {"train": source.train, "test": source.test}, source.latents
    shape = tuple(source.train.images.shape)
    rows = max(1, SHARD_BYTES // (8 * int(np.prod(shape))))
    items = [
        (part, first, last)
        for part, images in parts.items()
        for first, last in blocks(len(images), rows)
    ]
    made = context.map(write_shard, items, parts, known, str(context.work.path))
    context.work.push()
    by_part = {
        part: [shard for item, shard in zip(items, made, strict=True) if item[0] == part]
        for part in parts
    }
    counts = {p: written.place(of, context.path, p, ".npy") for p, of in by_part.items()}
    total = written.sum_of([from_arrays(shard.arrays()) for shard in by_part["train"]])
    latents = {
        "autoencoder": {"name": known.autoencoder, "sha256": None},
        "pixel_range": known.pixel_range,
        "scaling": known.scaling,
        "shift": known.shift,
        "dtype": max(shard.facts["dtype"] for shard in made),  # float32 after float16
    }
    facts = {
        "name": name,
        "shape": list(shape),
        "class_names": list(source.class_names),
        "white": 255,
        "storage": "latents",
        "shards": counts,
        "latents": latents,
        "latent": True,
    }
    labels = {part: images.labels for part, images in parts.items()}
    return Data.write(context.path, labels, total.summary(), facts)


def write_shard(
    item: tuple[str, int, int], parts: dict[str, Part], known: LatentFacts, folder: str
) -> written.Written:
    """Latents first..last-1 of a part, unless they are there."""
    name, first, last = item
    part = parts[name]

    def moments() -> Iterator[np.ndarray]:
        for start, stop in blocks(last - first, READ_AT_ONCE):
            yield part.images.take(part.places(first + start, first + stop))

    scale = LatentScale(known.scaling, known.shift)
    return written.write_latents(Path(folder), f"{name}-{first:010d}.npy", moments(), scale)
