"""What a teacher and a training take: for plans, as `stages.settings.costs` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.artifacts.teacher import STORED
from stages.methods import costs
from stages.settings.networks import config_of
from stages.settings.teachers import LABELS, TeachSettings, feature_bytes, mode_of

if TYPE_CHECKING:
    from stages.settings.costs import Estimate
    from stages.training.train import TrainSettings

# Of float32 weights: the weights, their gradients, two moments of AdamW and the average of weights.
TRAINED_BYTES, STATE_BYTES = 20, 16
WHOLE_BYTES = 8  # the weights and their gradients
# Bytes that a value of a token takes in a block until its gradient is known, in bfloat16
# (Korthikanti et al. 2022, without attention maps, which are computed again).
ACTIVATION_BYTES = 34
# Of a value of a block's input, in float32: all that is kept where the rest is computed again.
INPUT_BYTES = 4


def teach(settings: TeachSettings, given: Mapping[str, Estimate]) -> Estimate:
    """The embedded one's training, the probe, and features of all training images, unless they
    would be too large to be stored."""
    data = given["data"]
    shown = given.get("pixels", data)
    if "shape" not in data or "shape" not in shown:
        return {}
    grid = data["shape"][1] // settings.student_patch
    trained = 0  # images that went forward and backward
    if settings.kind in costs.DINOV2:
        flops = costs.dinov2(settings.kind)
    else:
        channels, side, _ = shown["shape"]
        size = (settings.width, settings.depth, side, channels, settings.own_patch)
        flops = costs.convolutional_vit(*size, settings.stem)
        views = 1 if settings.objective == LABELS else 2
        trained = settings.steps * settings.train_batch_size * views
    facts = {"width": settings.features, "forward": flops}
    if "images" not in data:
        return facts
    size = feature_bytes(settings, data["images"], (grid, grid))
    stored = mode_of(settings, size) == STORED
    said = "" if stored else f"online: its features would take {size / 1e9:,.0f} GB"
    passes = data["images"] if stored else 0
    passes += 3 * trained + 2 * min(settings.probe_images, data["images"])
    facts |= {"online": not stored, "said": said, "flops": passes * flops}
    return facts | {"bytes": size if stored else 0}


def train(settings: TrainSettings, given: Mapping[str, Estimate]) -> Estimate:
    """A forward pass and a backward one, twice as long, of every image of every step, and the
    teacher's pass where it is online; checkpoints and one resumable state."""
    data, teacher, size = given["data"], given.get("teacher", {}), settings.network
    if "shape" not in data or size.kind not in ("sit", "unet"):
        return {"shape": data["shape"]} if "shape" in data else {}
    classes = data.get("classes", 0) if settings.conditional else 0
    more = settings.loss_options.of_network(teacher.get("width", 0))
    config = config_of(size, tuple(data["shape"]), classes, **more)
    facts = {"shape": data["shape"], "checkpoints": len(settings.kept_steps)}
    if size.kind == "unet":
        forward = costs.unet(config)
        images = settings.steps * settings.batch_size
        return facts | {"forward": forward, "flops": 3 * images * forward}
    parameters, forward = costs.sit(config)
    each = 3 * forward + (teacher.get("forward", 0) if teacher.get("online") else 0)
    workers = max(1, settings.worker_range[0])
    tokens = (data["shape"][1] // size.patch) ** 2
    values = tokens * size.width * settings.batch_size / workers / settings.accumulate
    block = values * ACTIVATION_BYTES * (1 if settings.precision == "bfloat16" else 2)
    held = size.depth * block
    if settings.activation_checkpointing:
        held = size.depth * values * INPUT_BYTES + block
    weights = parameters * TRAINED_BYTES
    if settings.shard:  # beside its parts a worker holds two blocks whole, and their gradients
        weights = weights / workers + 2 * parameters / size.depth * WHOLE_BYTES
    return facts | {
        "forward": forward,
        "parameters": parameters,
        "flops": settings.steps * settings.batch_size * each,
        "bytes": parameters * (4 * len(settings.kept_steps) + STATE_BYTES),
        "gpu_bytes": weights + held if settings.device == "cuda" else 0,
    }
