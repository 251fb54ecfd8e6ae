"""The stage `spectrum`: the radial power spectrum of the training images, sharded, exact."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.spectrum import FILE, Spectrum
from stages.shards import blocks

BATCH_BYTES = 2**23  # of images read at once; the sums do not depend on it


class SpectrumSettings(Settings):
    """Which images the spectrum is averaged over, and whether latents are allowed."""

    num_images: int | None = Field(
        None, ge=1, description="training images to average over, evenly spaced; unset takes all"
    )
    allow_latent: bool = Field(
        False,
        description="go on though the images are latents, for whose frequencies the eye's contrast "
        "sensitivity was not measured",
    )
    shard_size: int = unkeyed(
        20_000, ge=32, description="images of one task; results do not depend on it"
    )


def count_of(total: int, num_images: int | None) -> int:
    """How many of `total` images are taken."""
    return total if num_images is None else min(num_images, total)


def chosen(total: int, num_images: int | None, first: int = 0, last: int | None = None) -> Any:
    """Which of `total` images are taken, first..last-1 of these: all, or `num_images` evenly
    spaced ones."""
    import numpy as np

    count = count_of(total, num_images)
    return np.arange(first, count if last is None else last) * total // count


def collect_shard(shard: tuple[int, int], data: Data, settings: SpectrumSettings) -> dict:
    """The exact sums over the chosen images first..last-1 of a data set."""
    from stages.methods.spectrum import RadialPower

    images = data.load().train
    which = chosen(len(images), settings.num_images, *shard)
    batch = max(1, BATCH_BYTES // (4 * math.prod(images.shape)))
    total = None
    for start in range(0, len(which), batch):
        part = RadialPower.collect(
            images[which[start : start + batch]],
            latent=is_latent(data),
            allow_latent=settings.allow_latent,
        )
        total = part if total is None else total + part
    return total.state()


def is_latent(data: Data) -> bool:
    """Whether a data set says that its images are latents."""
    return bool(data.settings.get("latent") or data.description.get("latent"))


def run(context: Context) -> Result:
    """Refuse latents, sum all shards, write the spectrum and its sums."""
    from stages.methods.spectrum import RadialPower, check_pixels

    settings: SpectrumSettings = context.settings
    data = context.inputs["data"]
    facts: dict[str, Any] = data.description
    with raised_as(StageError):
        check_pixels(facts["shape"][0], is_latent(data), settings.allow_latent)
        count = count_of(facts["num_train"], settings.num_images)
        shards = list(blocks(count, settings.shard_size))
        context.progress(0, count, "images")
        states = context.map(collect_shard, shards, data, settings)
        total, *others = (RadialPower.from_state(state) for state in states)
        for other in others:
            total += other
        frequency, power = total.spectrum()
    spectrum = {"frequency": frequency.tolist(), "power": power.tolist(), "sums": total.state()}
    (context.path / FILE).write_text(json.dumps(spectrum, sort_keys=True), encoding="utf-8")
    context.progress(count, count, "images")
    context.log(
        f"{count} images of {total.height} x {total.width}: power {power[0]:.4g} at "
        f"{frequency[0]:.4g} cycles per pixel, {power[-1]:.4g} at {frequency[-1]:.4g}"
    )
    return Result(metrics={"num_images": count})


STAGE = Stage(
    name="spectrum",
    settings=SpectrumSettings,
    output=Spectrum,
    run="stages.data.spectrum:run",
    inputs={"data": Input(Data)},
    metrics=lambda node: ("num_images",),
)
