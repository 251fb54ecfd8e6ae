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
from stages.settings.networks import config_of

if TYPE_CHECKING:
    from pipeline.stage import Settings

Estimate = Mapping[str, Any]

# Of float32 weights: the weights, their gradients, two moments of AdamW and the average of weights.
TRAINED_BYTES, STATE_BYTES = 20, 16
# Bytes that a value of a token takes in a block until its gradient is known, in bfloat16
# (Korthikanti et al. 2022, without attention maps, which are computed again).
ACTIVATION_BYTES = 34

TEACHER_STORED = 20e9  # bytes of features above which a teacher is online


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


def teach(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """Features of all training images, unless they would be too large to be stored."""
    data = given["data"]
    shown = given.get("pixels", data)
    if "shape" not in data or "shape" not in shown:
        return {}
    grid = data["shape"][1] // settings.student_patch
    if settings.kind in costs.DINOV2:
        flops = costs.dinov2(settings.kind)
    else:
        channels, side, _ = shown["shape"]
        patches = (side // settings.own_patch) ** 2
        values = channels * settings.own_patch**2
        flops = costs.vit(settings.width, settings.depth, patches, values)
    facts = {"width": settings.features, "forward": flops}
    if "images" not in data:
        return facts
    size = data["images"] * (1 + grid**2) * settings.features
    size *= 2 if settings.precision == "float16" else 4
    mode = settings.mode or ("stored" if size < TEACHER_STORED else "online")
    said = "" if mode == "stored" else f"online: its features would take {size / 1e9:,.0f} GB"
    passes = data["images"] if mode == "stored" else 0
    passes += 2 * min(settings.probe_images, data["images"])
    facts |= {"online": mode == "online", "said": said, "flops": passes * flops}
    return facts | {"bytes": size if mode == "stored" else 0}


def train(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """A forward pass and a backward one, twice as long, of every image of every step, and the
    teacher's pass where it is online; checkpoints and one resumable state."""
    data, teacher, size = given["data"], given.get("teacher", {}), settings.network
    if "shape" not in data or size.kind != "sit":
        return {"shape": data["shape"]} if "shape" in data else {}
    classes = data.get("classes", 0) if settings.conditional else 0
    more = settings.loss_options.of_network(teacher.get("width", 0))
    config = config_of(size, tuple(data["shape"]), classes, **more)
    parameters, forward = costs.sit(config)
    each = 3 * forward + (teacher.get("forward", 0) if teacher.get("online") else 0)
    workers = max(1, settings.worker_range[0])
    tokens = (data["shape"][1] // size.patch) ** 2
    values = tokens * size.width * size.depth * settings.batch_size / workers / settings.accumulate
    held = values * ACTIVATION_BYTES * (1 if settings.precision == "bfloat16" else 2)
    return {
        "shape": data["shape"],
        "forward": forward,
        "parameters": parameters,
        "flops": settings.steps * settings.batch_size * each,
        "bytes": parameters * (4 * len(settings.kept_steps) + STATE_BYTES),
        "gpu_bytes": parameters * TRAINED_BYTES + held if settings.device == "cuda" else 0,
    }


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
