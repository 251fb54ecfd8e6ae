"""The stage `decode`: pictures of sampled latents, sharded.

The autoencoder is called on fixed blocks of samples, so that the bytes depend neither on how many
shards there are nor on their size. A shard's pictures lie in the work area as soon as they are
made: an interrupted decode goes on, and no process holds them all.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Place, Result, Stage, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.samples import FILE, Samples
from stages.settings.latents import CodingOptions, autoencoder_files, geometry
from stages.shards import blocks, shards

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stages.artifacts.storage import LatentScale


class DecodeSettings(CodingOptions):
    """The stage's settings."""

    autoencoder: Place = unkeyed(description="folder of the autoencoder")
    rounding: Literal["nearest", "down"] = Field(
        "nearest", description="how pictures become 8 bits, see evaluate.rounding"
    )
    shard_size: int = unkeyed(
        1_000, ge=1, description="samples of one task; rounded up to whole batches"
    )


def run(context: Context) -> Result:
    """Decode all shards; write pictures, and all that is known of their latents."""
    import numpy as np

    from stages.artifacts import written

    settings: DecodeSettings = context.settings
    samples, data = context.inputs["samples"], context.inputs.get("data")
    begun, facts = time.perf_counter(), samples.description
    count = facts["num_samples"]
    items = shards(count, settings.batch_size, settings.shard_size)
    context.progress(0, count, "samples")
    with raised_as(StageError, ValueError, OSError):
        _check_shape(samples, settings)
        scale = _checked_scale(data, settings)
        unit = data is not None and data.of_unit_pixels
        written.sweep(context.work.path)
        names = context.map(decode_shard, items, samples, scale, settings, unit, context.work)
        context.work.pull()
        files = [context.work.path / name for name in names]
        written.join_arrays(files, context.path / FILE)
    context.progress(count, count, "samples")
    steps = samples.path / "steps.json"
    if steps.is_file():
        (context.path / steps.name).write_bytes(steps.read_bytes())
    facts = _facts(facts, data) | {"rounding": settings.rounding}
    Samples.complete(context.path, np.load(samples.path / "labels.npy"), facts)
    taken = {k: v for k, v in samples.manifest.timings.items() if k.endswith("_seconds")}
    return Result(timings={**taken, "decoding_seconds": time.perf_counter() - begun})


def decode_shard(
    shard: tuple[int, int],
    samples: Samples,
    scale: LatentScale,
    settings: DecodeSettings,
    unit: bool,
    folder: Path,
) -> str:
    """The name of the file, in the work area `folder`, with the pictures of samples
    first..last-1."""
    from stages.artifacts import written

    def make() -> dict[str, np.ndarray]:
        return {"images": _pictures(shard, samples, scale, settings, unit)}

    name = f"pictures-{shard[0]}-{shard[1]}"
    return written.write_arrays(Path(folder), name, make)["images"].name


def _pictures(
    shard: tuple[int, int],
    samples: Samples,
    scale: LatentScale,
    settings: DecodeSettings,
    unit: bool = False,
) -> np.ndarray:
    """(n, C, H, W) uint8 pictures of samples first..last-1, black to white brought to 0 to 255.

    Every block is computed at its full size, so that a picture does not depend on how many follow.
    """
    import numpy as np
    import torch

    from stages.encoders import autoencoder

    network = autoencoder.load(settings.autoencoder, settings.device, settings.precision, unit)
    scaling, shift = (torch.from_numpy(x) for x in scale.per_channel())
    first, last = shard
    parts = []
    for start, stop in blocks(last - first, settings.batch_size):
        latents = samples.images(slice(first + start, first + stop))
        # Repeated beyond the end.
        whole = latents[torch.arange(settings.batch_size) % len(latents)]
        images = network.decode(whole / scaling + shift)[: len(latents)]
        parts.append(_bytes(images, settings.rounding).cpu().numpy())
    return np.concatenate(parts)


def _bytes(images: torch.Tensor, rounding: str) -> torch.Tensor:
    """[-1, 1] as 0 to 255, values beyond clipped; ValueError for what is not finite."""
    from stages.methods.suite import rounded

    if not images.isfinite().all():
        raise ValueError(
            "decoded pictures hold NaN or infinity: samples are not finite, or the autoencoder "
            "overflows; set latents.precision=float32"
        )
    return rounded(images, rounding)


def _check_shape(samples: Samples, settings: DecodeSettings) -> None:
    """Raise ValueError for latents that the autoencoder does not read."""
    known, channels = geometry(settings.autoencoder), samples.shape[0]
    if channels != known.latent_channels:
        raise ValueError(
            f"the samples have {channels} channels, and the autoencoder's latents have "
            f"{known.latent_channels}; set latents.autoencoder to the one that they are of"
        )


def _checked_scale(data: Data | None, settings: DecodeSettings) -> LatentScale:
    """The scale of the latents that were trained on, without them the autoencoder's own;
    ValueError where they are of another autoencoder."""
    from stages.artifacts.storage import LatentScale
    from stages.encoders import autoencoder

    known = autoencoder.known(settings.autoencoder)
    own = LatentScale(known.scaling, known.shift)
    if data is None:
        return own
    made_by = (data.description.get("latents") or {}).get("autoencoder") or {}
    if made_by.get("sha256") not in (None, known.identity):
        raise ValueError(
            f"the latents were made by the autoencoder {made_by['sha256'][:12]}, and this one is "
            f"{known.identity[:12]}; set latents.autoencoder to the one that made them"
        )
    return data.latents or own


def _facts(samples: dict[str, Any], data: Data | None) -> dict[str, Any]:
    """What is known of the latents. Copies are sought among the pictures, which mirrored ones are
    not among."""
    facts = dict(samples)
    seen, known = facts.get("num_training_images"), {} if data is None else data.description
    if seen is not None and known.get("flips"):
        facts["num_training_images"] = min(seen, known["num_train"] // 2)
    return facts


def files_of(settings: DecodeSettings) -> list[Path]:
    """The autoencoder's files; UsageError where they are missing."""
    return autoencoder_files(settings.autoencoder)


STAGE = Stage(
    name="decode",
    settings=DecodeSettings,
    output=Samples,
    run="stages.sampling.decode:run",
    fans_out=True,
    inputs={"samples": Input(Samples), "data": Input(Data, optional=True)},
    files=files_of,
    estimate="stages.settings.costs:decode",
    metrics=lambda node: (),
)
