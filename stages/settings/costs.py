"""What nodes take, by their settings and by what is known of their inputs: for plans.

Each function gives `bytes` (of the artifact), `flops`, `parameters`, `gpu_bytes` (of one device)
and `said`, as far as they are known, and under other names what later nodes ask for. Stages name
these functions without importing them, so that no key depends on an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from stages.methods import costs
from stages.settings.latents import Geometry, known_geometry

if TYPE_CHECKING:
    from pipeline.stage import Settings

Estimate = Mapping[str, Any]


def encode(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """Latents of all images, float16 means and standard deviations."""
    pixels, known = given["pixels"], _geometry(settings.autoencoder)
    facts = {name: pixels[name] for name in ("held_out", "classes") if name in pixels}
    if "shape" not in pixels:
        return facts
    channels, size, _ = pixels["shape"]
    shape = (known.latent_channels, size // known.factor, size // known.factor)
    facts["shape"] = shape
    if "images" not in pixels:
        return facts
    images = pixels["images"] * (1 + settings.flips)
    total = images + pixels["held_out"]
    flops, _ = costs.autoencoder(known.widths, known.layers, channels, known.latent_channels, size)
    facts |= {"images": images, "bytes": total * 4 * prod(shape)}
    return facts | ({} if "latents" in given else {"flops": total * flops})


def _geometry(place: str) -> Geometry:
    """What an autoencoder's config says; Stable Diffusion's until it is there."""
    return known_geometry(place) or Geometry(3, 4, 8, (128, 256, 512, 512), 2)


def decode(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """Pictures of all samples, a byte a value."""
    samples, known = given["samples"], _geometry(settings.autoencoder)
    if "shape" not in samples:
        return {name: samples[name] for name in ("images",) if name in samples}
    _, side, _ = samples["shape"]
    size, count = side * known.factor, samples["images"]
    shape = (known.channels, size, size)
    _, flops = costs.autoencoder(
        known.widths, known.layers, known.channels, known.latent_channels, size
    )
    return {"images": count, "shape": shape, "bytes": count * prod(shape), "flops": count * flops}


def sample(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """The network at every evaluation, twice where it is guided; float32 samples."""
    model, count = given["model"], settings.num_samples
    facts: dict[str, Any] = {"images": count}
    if "shape" in model:
        facts |= {"shape": model["shape"], "bytes": 4 * count * prod(model["shape"])}
    if "forward" in model:
        passes = settings.nfe * (1 if settings.guidance == 1 else 2)
        facts["flops"] = count * passes * model["forward"]
    return facts


def features(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """One pass of the extractor, float32 features and spatial ones."""
    data, samples = given["data"], given.get("samples", {})
    count = {"train": data.get("images"), "test": data.get("held_out")}.get(
        settings.part, samples.get("images")
    )
    if count is None or settings.kind == "embedded":
        return {}
    inception = settings.kind == "inception"
    width = 2048 if inception else costs.DINOV2[settings.kind][0]
    flops = costs.INCEPTION_FLOPS if inception else costs.dinov2(settings.kind)
    spatial = 0 if inception else 7 * 256
    return {"bytes": 4 * count * (width + spatial), "flops": count * flops}
