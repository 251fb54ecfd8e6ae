"""The stage `encode`: latents of a data set's pixels, by an autoencoder or compared with it.

Latents that come with the data are passed on once they are known to be of these pixels, in their
order and by this autoencoder.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Place, Result, Stage, unkeyed
from stages.artifacts.data import Data
from stages.settings.latents import CodingOptions, autoencoder_files, geometry
from stages.shards import blocks, shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from stages.artifacts.written import Written

PAIRS = {"train": 64, "test": 16}  # compared where latents are given

WAVE = 32  # files that are made before the next progress is told

LARGEST_MISFIT = 0.5  # of given latents and those of the pixels; another scale or range is above


class EncodeSettings(CodingOptions):
    """The stage's settings."""

    autoencoder: Place = unkeyed(description="folder of the autoencoder")
    flips: bool = Field(False, description="training image n + i is image i mirrored")
    shard_size: int = Field(
        20_000, ge=1, description="images of one task and one file; rounded up to whole batches"
    )


def run(context: Context) -> Result:
    """Encode all shards, or compare given latents; write them with what made them."""
    pixels, latents = context.inputs["pixels"], context.inputs.get("latents")
    with raised_as(StageError, ValueError, OSError):
        geometry(context.settings.autoencoder).latent_shape(tuple(pixels.description["shape"]))
        if latents is None:
            facts = _encoded(context, pixels)
        else:
            facts = _passed_on(context, pixels, latents)
    context.log(
        f"{facts['name']}: {facts['num_train']} training and {facts['num_test']} held-out latents "
        f"of {facts['shape']}, mean {facts['mean']:.4f}, std {facts['std']:.4f}"
    )
    return Result(metrics={name: facts[name] for name in ("num_train", "num_test")})


def _encoded(context: Context, pixels: Data) -> dict[str, Any]:
    """Encode all images and write what is known of their latents."""
    import numpy as np

    from stages.artifacts.written import place, sum_of
    from stages.methods.statistics import from_arrays

    settings: EncodeSettings = context.settings
    data = pixels.load()
    made = _made(context, pixels, {part: len(getattr(data, part)) for part in ("train", "test")})
    counts = {part: place(of, context.path, part, ".npy") for part, of in made.items()}
    labels = {part: getattr(data, part).labels.numpy() for part in made}
    if settings.flips:
        labels["train"] = np.tile(labels["train"], 2)
    statistics = [from_arrays(shard.arrays()) for shard in made["train"]]
    facts = {
        "name": pixels.description["name"],
        "shape": list(geometry(settings.autoencoder).latent_shape(data.shape)),
        "class_names": pixels.description["class_names"],
        "white": 255,
        "storage": "latents",
        "shards": counts,
        "latents": _header(settings, [shard for of in made.values() for shard in of]),
        "latent": True,
        "flips": settings.flips,
        "of_pixels": pixels.manifest.payload,
    }
    return Data.write(context.path, labels, sum_of(statistics).summary(), facts)


def _made(context: Context, pixels: Data, counts: dict[str, int]) -> dict[str, list[Written]]:
    """The shards of every part, in their order, mirrored ones last."""
    from stages.artifacts.written import sweep

    settings: EncodeSettings = context.settings
    items = [
        (part, first, last, mirrored)
        for part, count in counts.items()
        for mirrored in ((False, True) if part == "train" and settings.flips else (False,))
        for first, last in shards(count, settings.batch_size, settings.shard_size)
    ]
    made: dict[str, list[Written]] = {part: [] for part in counts}
    sweep(context.work.path)
    for start, stop in blocks(len(items), WAVE):
        context.progress(start, len(items), "files")
        wave = items[start:stop]
        done = context.map(encode_shard, wave, pixels, context.work, settings)
        context.work.pull()
        for (part, *_), shard in zip(wave, done, strict=True):
            made[part].append(replace(shard, folder=context.work.path))
        context.work.push()
    context.progress(len(items), len(items), "files")
    return made


def _header(settings: EncodeSettings, made: list[Written]) -> dict[str, Any]:
    """What made the latents, and how networks see them."""
    from stages.encoders import autoencoder

    known = autoencoder.known(settings.autoencoder)
    return {
        "autoencoder": {"name": "AutoencoderKL", "sha256": known.identity},
        "pixel_range": "[-1, 1]",
        "scaling": known.scaling,
        "shift": known.shift,
        "dtype": max(shard.facts["dtype"] for shard in made),  # float16 < float32
    }


def encode_shard(
    shard: tuple[str, int, int, bool], pixels: Data, folder: Path, settings: EncodeSettings
) -> Written:
    """Latents of images first..last-1 of a part, mirrored where asked, unless they are there."""
    from stages.artifacts.reading import in_order, sensible
    from stages.artifacts.storage import LatentScale
    from stages.artifacts.written import find, write_latents
    from stages.encoders import autoencoder

    part, first, last, mirrored = shard
    file = f"{part}{'-mirrored' if mirrored else ''}-{first:010d}.npy"
    if (found := find(folder, file)) is not None:
        return found
    images = getattr(pixels.load(), part)
    network = autoencoder.load(settings.autoencoder, settings.device, settings.precision)

    # On CPUs there is a task for each of them already.
    readers = 0 if settings.device == "cpu" else sensible(None, settings.device, False)
    batches = [slice(first + a, first + b) for a, b in blocks(last - first, settings.batch_size)]

    def moments() -> Iterator[np.ndarray]:
        for raw in in_order(images.raw, batches, readers):
            batch = images.finish(raw.to(network.device))
            yield network.moments(batch.flip(-1) if mirrored else batch).cpu().numpy()

    known = autoencoder.known(settings.autoencoder)
    return write_latents(folder, file, moments(), LatentScale(known.scaling, known.shift))


def _passed_on(context: Context, pixels: Data, latents: Data) -> dict[str, Any]:
    """The files of given latents, as links where the file system has them."""
    from stages.artifacts.written import link
    from stages.encoders import autoencoder

    settings: EncodeSettings = context.settings
    known = autoencoder.known(settings.autoencoder)
    shown, given = pixels.load(), latents.load()
    shape = geometry(settings.autoencoder).latent_shape(shown.shape)
    if given.shape != shape:
        raise ValueError(
            f"the latents have shape {given.shape}, and this autoencoder's of these pixels are "
            f"{shape} (channels, height, width); set latents.autoencoder to the one that they are "
            "of, or data.size of the pixels to the size that was encoded"
        )
    context.map(compare_part, list(PAIRS), pixels, latents, settings)
    for name in latents.manifest.files:
        if name != Data.facts:
            target = context.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link(latents.path / name, target, shutil.copyfile)  # they are another node's
    told = {"latent": True, "flips": False, "of_pixels": pixels.manifest.payload}
    facts = {**latents.description, **told}
    if facts.get("latents"):
        of = {"name": "AutoencoderKL", "sha256": known.identity}
        facts["latents"] = {**facts["latents"], "autoencoder": of}
    Data.describe(context.path, facts)
    return facts


def compare_part(part: str, shown: Data, given: Data, settings: EncodeSettings) -> None:
    """Raise ValueError unless latents are of these pixels, as far as labels and some pairs tell."""
    import torch

    from stages.artifacts.storage import LatentScale
    from stages.encoders import autoencoder
    from stages.methods.pairing import misfit, strangers

    name = {"train": "training", "test": "held-out"}[part]
    pixels, latents = getattr(shown.load(), part), getattr(given.load(), part)
    if len(pixels) != len(latents) or not torch.equal(pixels.labels, latents.labels):
        raise ValueError(
            f"the {name} labels of the latents are not those of the pixels; teach.pixels must hold "
            "the same images in the same order, with the same split"
        )
    generator = torch.Generator().manual_seed(0)
    which = torch.randperm(len(pixels), generator=generator)[: PAIRS[part]]
    if len(which) < 2:
        return
    how = settings.autoencoder, settings.device, settings.precision
    network, known = autoencoder.load(*how, unit=given.of_unit_pixels), autoencoder.known(how[0])
    parts = [network.moments(pixels[chosen])[:, 0] for chosen in which.split(settings.batch_size)]
    scale = latents.latents or LatentScale(known.scaling, known.shift)
    scaling, shift = (torch.from_numpy(x) for x in scale.per_channel())
    theirs, ours = (torch.cat(parts).cpu() - shift) * scaling, latents[which]
    wrong = strangers(ours, theirs)
    if wrong.any():
        first = int(which[wrong.nonzero()[0, 0]])
        raise ValueError(
            f"{int(wrong.sum())} of {len(which)} {name} latents are not those of the pixels at "
            f"their places (image {first}, for one): give pixels and latents in one order and "
            "split (data, teach.pixels), or set latents.autoencoder to the one that they are of"
        )
    if (off := misfit(ours, theirs)) > LARGEST_MISFIT:
        raise ValueError(
            f"the latents are in the order of the pixels, but off by {off:.2g} of their spread: "
            "they are scaled otherwise, or of pixels in another range than [-1, 1]; give latents "
            "as (z - shift) * scaling, or leave them out to encode the pixels"
        )


def files_of(settings: EncodeSettings) -> list[Path]:
    """The autoencoder's files; UsageError where they are missing."""
    return autoencoder_files(settings.autoencoder)


STAGE = Stage(
    name="encode",
    settings=EncodeSettings,
    output=Data,
    run="stages.data.encode:run",
    fans_out=True,
    inputs={"pixels": Input(Data), "latents": Input(Data, optional=True)},
    files=files_of,
    estimate="stages.settings.costs:encode",
    metrics=lambda node: ("num_train", "num_test"),
)
