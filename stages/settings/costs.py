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


# By how published files begin, parameters and operations of one image, as torch counts them in the
# networks here; a multiplication with addition is two.
PUBLISHED = {
    "sit-xl": (675e6, 237e9),
    "dit-xl": (675e6, 237e9),
    "jit-b": (131e6, 50.4e9),
    "jit-l": (459e6, 179e9),
    "jit-h": (953e6, 372e9),
    "edm-cifar10": (55.7e6, 42.4e9),
    "edm-ffhq": (61.8e6, 83.7e9),
    "edm-afhqv2": (61.8e6, 83.7e9),
    "edm-imagenet": (296e6, 219e9),
    "edm2-xs": (125e6, 89.9e9),
    "edm2-s": (280e6, 202e9),
    "edm2-m": (498e6, 358e9),
    "edm2-l": (777e6, 559e9),
    "edm2-xl": (1119e6, 804e9),
    "edm2-xxl": (1523e6, 1094e9),
}


def checkpoint(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """Of a network from elsewhere what its file's name tells, or its size and kind."""
    data = given.get("data", {})
    facts = {"shape": data["shape"]} if "shape" in data else {}
    # The name of a file, or of the folder that it came in.
    names = [n.lower().replace("img512-", "").replace("img64-", "") for n in _last(settings.path)]
    found = settings.facts(settings.setting) or {}
    if found.get("network") == "sit" and "depth" in found.get("config", {}):
        parameters, forward = costs.sit(found["config"])
    elif known := [start for start in PUBLISHED if any(n.startswith(start) for n in names)]:
        parameters, forward = PUBLISHED[max(known, key=len)]
    else:
        return facts
    return facts | {"parameters": parameters, "forward": forward, "bytes": 4 * parameters}


def _last(path: str) -> list[str]:
    return path.split("/")[-2:]


def sample(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """The network at every evaluation, twice where it is guided; float32 samples, or 8 bits."""
    model, count = given["model"], settings.num_samples
    facts: dict[str, Any] = {"images": count}
    if "shape" in model:
        each = 4 if settings.kept == "float32" else 1
        facts |= {"shape": model["shape"], "bytes": each * count * prod(model["shape"])}
    return facts | evaluated(settings, model, count, settings.nfe)


def evaluated(
    settings: Settings, model: Estimate, images: float, evaluations: float
) -> dict[str, Any]:
    """So many evaluations of so many images each, twice where they are guided."""
    if "forward" not in model:
        return {}
    passes = evaluations * (1 if getattr(settings, "guidance", 1) == 1 else 2)
    return {"flops": images * passes * model["forward"]}


def extractor(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """The embedded one's training: forward and backward, every epoch; and its accuracy."""
    data = given["data"]
    if settings.kind != "embedded" or not {"shape", "images"} <= data.keys():
        return {}
    passes = (3 * settings.epochs + 1) * data["images"] + data["held_out"]
    return {"flops": passes * costs.classifier(*data["shape"][:2])}


def features(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """One pass of the extractor, float32 features and spatial ones."""
    data, samples = given["data"], given.get("samples", {})
    count = {"train": data.get("images"), "test": data.get("held_out")}.get(
        settings.part, samples.get("images")
    )
    if count is None:
        return {}
    if settings.kind == "embedded":
        shape = samples.get("shape", data.get("shape"))
        found = {"flops": count * costs.classifier(*shape[:2])} if shape else {}
        return {"images": count, "width": costs.CLASSIFIER_WIDTH} | found
    inception = settings.kind == "inception"
    width = 2048 if inception else costs.DINOV2[settings.kind][0]
    flops = costs.INCEPTION_FLOPS if inception else costs.dinov2(settings.kind)
    spatial = 0 if inception else 7 * 256
    size = 4 * count * (width + spatial)
    return {"images": count, "width": width, "bytes": size, "flops": count * flops}


def evaluate(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """The moments of every set's features, and neighbours of all among the real ones and each
    other."""
    real, sets = given["train"], given.get("features", {}).get("nodes", 1)
    if "images" not in real:
        return {}
    count, width = settings.num_samples, real["width"]
    pairs = count * (real["images"] + count) if settings.neighbours else 0
    return {"flops": 2.0 * sets * width * (pairs + width * (count + 10 * width))}


def published(settings: Settings, given: Mapping[str, Estimate]) -> Estimate:
    """One pass of the protocol's network over one of the sets, with those of the minimum rule."""
    kind = settings.published.extractor
    flops = costs.INCEPTION_FLOPS if kind == "inception" else costs.dinov2(kind)
    return {"flops": settings.stated("best_of") * settings.protocol_samples * flops}
