"""The stage `prepare`: a data set from its own format to arrays or packed files, split, sized and
measured.

It never holds the set: tasks convert shards, and what they found is added up.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Result, Stage, resolve
from stages.artifacts.data import Data
from stages.data.options import PrepareSettings, readers_of, sources_of
from stages.methods import table

if TYPE_CHECKING:
    import numpy as np

    from stages.artifacts.written import Written
    from stages.data.convert import Form
    from stages.data.readers.source import Part, Source

TASK_MIB = 64  # what a task needs beside what it imports, at most


def run(context: Context) -> Result:
    """Read, cut, resize, measure and write the data set."""
    from stages.data.readers.scratch import below

    settings: PrepareSettings = context.settings
    with raised_as(StageError, ValueError, OSError):
        with below(context.path):
            source = resolve(table.DATASETS[settings.dataset])(settings)
        try:
            counts = len(source.train), len(source.test)
            train, test = source.train[: settings.limit], source.test[: settings.limit_held_out]
            lacking = _untrained(source, train, settings)
            source = replace(source, train=train, test=test)
            _check(source, settings)
            form, shards, facts = _made(context, source)
        finally:
            if source.scratch is not None:
                shutil.rmtree(source.scratch, ignore_errors=True)
    if lacking:
        context.notice(f"no training image is of {lacking}: it is sampled though never trained")
    context.log(
        f"{facts['name']}: {facts['num_train']} training and {facts['num_test']} held-out images "
        f"of {facts['shape']}, mean {facts['mean']:.4f}, std {facts['std']:.4f}"
    )
    context.log(_kept_as(shards, form))
    said = _read_from(source, settings, shards, counts)
    # Of what was found out a person is told; what settings spell out is for the log.
    (context.log if settings.path is None else context.notice)(said)
    return Result(metrics={name: facts[name] for name in ("num_train", "num_test")})


def _made(context: Context, source: Source) -> tuple[Form, list[Written], dict[str, Any]]:
    """What every image became, the shards, and the facts of the payload put together from them."""
    from stages.data.convert import check_damaged, form_of
    from stages.data.fitted import check_bright

    form, parts = form_of(source, context.settings), {"train": source.train, "test": source.test}
    shards = _converted(context, parts, form)
    everything = [shard for part in shards.values() for shard in part]
    damaged = [name for shard in everything for name in shard.facts["damaged"]]
    check_bright(max(shard.facts["brightest"] for shard in everything))
    check_damaged(damaged, context.settings.skip_damaged, sum(map(len, parts.values())))
    if damaged:
        context.notice(f"{len(damaged)} damaged files were passed over: {'; '.join(damaged[:3])}")
    return form, everything, _write(context, source, shards, form)


def _read_from(
    source: Source, settings: PrepareSettings, shards: list[Written], counts: tuple[int, int]
) -> str:
    """What was read, in one line: the reader, classes, modes, what was passed over, and what limits
    leave out of `counts` training and held-out images."""
    from collections import Counter

    notes: Counter[str] = Counter()
    for shard in shards:
        notes.update(shard.facts["notes"])
    classes = len(source.class_names)
    words = [
        f"read as {settings.dataset}: {f'{classes} classes' if classes > 1 else 'no labels'}",
        source.said,
        ", ".join(f"{count} {note}" for note, count in sorted(notes.items())),
        *_limited(settings, counts),
    ]
    return "; ".join(filter(None, words))


def _limited(settings: PrepareSettings, counts: tuple[int, int]) -> list[str]:
    """What limits leave out, a part each."""
    parts = zip(("limit", "limit_held_out"), ("training", "held-out"), counts, strict=True)
    return [
        f"the first {most:,} of {count:,} {name} images, by data.{setting}"
        for setting, name, count in parts
        if (most := getattr(settings, setting)) is not None and most < count
    ]


def _kept_as(shards: list[Written], form: Form) -> str:
    """How the images lie on disk, in one line."""
    if form.storage == "mapped":
        return f"kept as one mapped array a part, {form.dtype}"
    if form.storage == "packed":
        return f"kept as image files, packed into {len(shards)} shards"
    wide = sum(shard.facts["dtype"] == "float32" for shard in shards)
    return (
        f"kept as means and standard deviations: {len(shards) - wide} shards in float16 and {wide} "
        "in float32, where float16's spacing is not below a tenth of every deviation"
    )


def _untrained(source: Source, train: Part, settings: PrepareSettings) -> str:
    """A class that has no training image, for a notice; ValueError where it is by data.limit."""
    from stages.data.readers.source import untrained

    names = source.class_names
    before = untrained(source.train.labels, len(names))
    for label in untrained(train.labels, len(names)):
        if label not in before:
            raise ValueError(
                f"data.limit={settings.limit} leaves no training image of class '{names[label]}', "
                "which would be sampled, never trained; set it higher"
            )
    return " and ".join(f"class '{names[label]}'" for label in before[:3])


def _parts(source: Source) -> tuple[tuple[str, Part], ...]:
    return (("training", source.train), ("held-out", source.test))


def _check(source: Source, settings: PrepareSettings) -> None:
    """Raise ValueError for counts, labels, types or shapes that do not fit; nothing was decoded.

    Latents may have any number of channels and any finite values.
    """
    from stages.data.readers.source import Pixels

    num_classes, shapes = len(source.class_names), {}
    for name, part in _parts(source):
        if len(part) == 0:
            raise ValueError(f"there are no {name} images; check data.path")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} labels run from {low} to {high}; with {num_classes} classes they must "
                f"lie in 0..{num_classes - 1}"
            )
        if isinstance(part.images, Pixels):
            _check_array(part.images, name, settings.latent or source.latents is not None)
            shapes[name] = tuple(part.images.shape)
    # With a size it is the channels alone that have to agree.
    if len({shape[: None if settings.size is None else 1] for shape in shapes.values()}) > 1:
        remedy = "set data.size to bring them to one"
        if len({shape[0] for shape in shapes.values()}) > 1:
            remedy = "give both the same number of channels"
        raise ValueError(
            f"training images have shape {shapes['training']} and held-out images "
            f"{shapes['held-out']} (C, H, W); {remedy}"
        )


def _check_array(images: Any, name: str, latent: bool) -> None:
    import numpy as np

    shape, dtype = tuple(images.shape), np.dtype(images.dtype)
    if len(shape) != 3 or not (latent or shape[0] in (1, 3)):
        raise ValueError(
            f"{name} images have shape {shape}; they must be (C, H, W) with 1 or 3 channels; set "
            "data.latent=true if they are latents"
        )
    if latent and dtype.kind != "f":
        raise ValueError(f"{name} latents have type {dtype}; give floating-point numbers")
    if not latent and dtype not in (np.uint8, np.float32):
        raise ValueError(f"{name} images have type {dtype}; give uint8 or float32")


def _converted(context: Context, parts: dict[str, Part], form: Form) -> dict[str, list[Written]]:
    """All shards, by part. As many tasks at once as fit the memory."""
    from stages.artifacts.written import sweep
    from stages.data.convert import convert_shard, shards_of

    sweep(context.work.path)
    items = [
        (name, index, *shard)
        for name, part in parts.items()
        for index, shard in enumerate(shards_of(part, form))
    ]
    common = parts, form, context.work
    at_once = max(1, int(context.settings.memory_gib * 1024 / TASK_MIB))
    if any(map(_is_here, parts.values())):
        at_once = 1  # they are here already: not to be sent
    total, done, made = sum(map(len, parts.values())), 0, []
    context.progress(0, total, "images")
    for start in range(0, len(items), at_once):
        shards = context.map(convert_shard, items[start : start + at_once], *common)
        context.work.pull()
        made += [replace(shard, folder=context.work.path) for shard in shards]
        context.work.push()
        done = sum(last - first for _, _, first, last in items[: len(made)])
        context.progress(done, total, "images")
    pairs = list(zip(items, made, strict=True))
    return {name: [shard for item, shard in pairs if item[0] == name] for name in parts}


def _is_here(part: Part) -> bool:
    """Whether the images are in this process's memory, not in files that tasks can read."""
    import numpy as np

    from stages.data.readers.source import InMemory

    images = part.images
    return isinstance(images, InMemory) or isinstance(getattr(images, "stored", None), np.ndarray)


def _write(
    context: Context, source: Source, shards: dict[str, list[Written]], form: Form
) -> dict[str, Any]:
    """Put the payload together from the shards, and describe it."""
    from stages.artifacts import written
    from stages.data.convert import write_array
    from stages.methods.statistics import from_arrays

    settings, channels = context.settings, form.shape[0]
    everything = [shard for part in shards.values() for shard in part]
    if channels == 3 and not any(shard.facts["coloured"] for shard in everything):
        channels = 1  # every file is grey
    counts, labels = {}, {}
    for name, part in shards.items():
        labels[name] = _labels(getattr(source, name).labels, part)
        if form.packed:
            counts[name] = written.place_packed(part, context.path, name)
        elif form.storage == "latents":
            counts[name] = written.place(part, context.path, name, ".npy")
        else:
            write_array(part, context.path / f"{name}.npy", form, channels)
    if 0 in map(len, labels.values()):
        raise ValueError("no file of one of the parts is a readable image; check data.path")
    whole = [shard for shard in shards["train"] if shard.count]
    total = written.sum_of([from_arrays(shard.arrays()) for shard in whole])
    if channels == 3 and form.dtype == "uint8":
        total = total.coloured()
    facts = {
        "name": settings.title,
        "shape": [channels, *form.shape[1:]],
        "class_names": list(source.class_names),
        "white": source.white,
    }
    if form.storage != "mapped":
        facts |= {"storage": form.storage, "shards": counts}
    if source.latents is not None:
        facts |= {"latent": True, "latents": _latent_facts(source, everything)}
    return Data.write(context.path, labels, total.summary(), facts)


def _latent_facts(source: Source, shards: list[Written]) -> dict[str, Any]:
    latents, dtypes = source.latents, sorted({shard.facts["dtype"] for shard in shards})
    return {
        "autoencoder": {"name": latents.autoencoder, "sha256": None},
        "pixel_range": latents.pixel_range,
        "scaling": latents.scaling,
        "shift": latents.shift,
        "dtype": dtypes[-1],  # float16 before float32
    }


def _labels(labels: np.ndarray, shards: list[Written]) -> np.ndarray:
    """Those of the images that were not passed over."""
    import numpy as np

    if not any(shard.facts["damaged"] for shard in shards):
        return labels
    kept, first = [], 0
    for shard in shards:
        arrays = shard.arrays()
        places = arrays.get("kept", np.arange(shard.count))
        kept.append(first + places)
        first += shard.count + len(shard.facts["damaged"])
    return labels[np.concatenate(kept)]


STAGE = Stage(
    name="prepare",
    settings=PrepareSettings,
    output=Data,
    run="stages.data.prepare:run",
    sources=readers_of,
    files=sources_of,
    estimate="stages.data.counted:estimate",
    metrics=lambda node: ("num_train", "num_test"),
)
