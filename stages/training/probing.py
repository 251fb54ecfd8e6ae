"""What a teacher knows: its passes over images, and linear probes on what it makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from stages.artifacts.teacher import looked_at

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.data import DataSet, Images
    from stages.artifacts.teacher import TeacherNetwork
    from stages.settings.teachers import TeachSettings


def passes(tokens: Any, images: Images, indices: Any, settings: TeachSettings) -> Any:
    """Yield `(first, tokens (B, 1 + M, Z) on the CPU)` over batches of the images `indices`."""
    from stages.artifacts import reading

    def read(first: int) -> Tensor:
        raw = images.raw(indices[first : first + settings.batch_size])
        return raw.pin_memory() if settings.device == "cuda" else raw

    firsts = range(0, len(indices), settings.batch_size)
    readers = reading.sensible(settings.readers, settings.device, images.small)
    for first, raw in zip(firsts, reading.in_order(read, firsts, readers), strict=True):
        batch = images.finish(raw.to(settings.device, non_blocking=True))
        yield first, looked_at(tokens, batch, settings.compute).cpu()


def probes(teacher: TeacherNetwork, data: DataSet, settings: TeachSettings) -> dict[str, float]:
    """Held-out accuracy of linear probes on the class token and on the mean patch, of the teacher
    and of the network untrained. StageError where the better of the two is too low; empty where
    there are no classes."""
    import torch

    from stages.methods.representation import probe_accuracy

    if data.num_classes < 2:
        return {}
    labels, accuracies = {}, {}
    for part in ("train", "test"):
        images = getattr(data, part)
        labels[part] = images.labels[: settings.probe_images]
    for state, tokens in (("trained", teacher.tokens), ("untrained", teacher.untrained)):
        features: dict[str, dict[str, Tensor]] = {"class": {}, "patches": {}}
        for part in ("train", "test"):
            indices = torch.arange(len(labels[part]))
            seen = passes(tokens, getattr(data, part), indices, settings)
            # All tokens of all images would be many gigabytes.
            pairs = [(t[:, 0].clone(), t[:, 1:].mean(1)) for _, t in seen]
            for which, of in zip(features, zip(*pairs, strict=True), strict=True):
                features[which][part] = torch.cat(of)
        for which, of in features.items():
            accuracies[f"probe_accuracy/{which}_{state}"] = probe_accuracy(
                of["train"], labels["train"], of["test"], labels["test"]
            )
    _judge(accuracies, settings)
    return accuracies


def _judge(probes: dict[str, float], settings: TeachSettings) -> None:
    """Raise StageError for a teacher that knows too little, or little more than before training."""
    best = {
        state: max(value for name, value in probes.items() if name.endswith(f"_{state}"))
        for state in ("trained", "untrained")
    }
    if best["trained"] < settings.min_probe:
        raise StageError(
            f"a linear probe on the teacher's features classifies {best['trained']:.3f} of the "
            f"held-out images, below teach.min_probe={settings.min_probe}; raise teach.steps, or "
            "lower teach.min_probe if you accept that"
        )
    gain = best["trained"] - best["untrained"]
    # Where so much is not left to be gained, half of what is left is asked for.
    left = 1 - best["untrained"]
    asked = settings.min_gain if settings.min_gain < left else left / 2
    if gain < asked:
        raise StageError(
            f"the linear probe is {gain:.3f} above that of the untrained network "
            f"({best['trained']:.3f} against {best['untrained']:.3f}), less than {asked:.3g} "
            f"(teach.min_gain={settings.min_gain}); raise teach.steps, or lower teach.min_gain if "
            "you accept that"
        )
