"""DINOv2 as the network that a training aligns with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.encoders.pretrained import DINO_SIDE, TAUGHT, dinov2_network, file_hash
from stages.encoders.weights import weight_file

if TYPE_CHECKING:
    from pipeline.stage import Context
    from stages.artifacts.data import DataSet
    from stages.artifacts.teacher import TeacherNetwork


def teacher(context: Context, data: DataSet) -> TeacherNetwork:
    """DINOv2 as a teacher: class and patch tokens after the final norm (Yu et al. 2025).

    Raises ValueError for a file that holds other weights, MissingWeightsError where it is absent.
    """
    from stages.artifacts.teacher import TeacherNetwork

    settings = context.settings
    path = weight_file(settings.kind, settings.weights, "teach.weights")
    try:
        trained = dinov2_network(settings.kind, path, teaches=True)
    except Exception as error:  # every loader has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} cannot be read as the weights of {settings.kind!r} ({reason[0]}); set "
            "teach.weights to the right file"
        ) from error
    trained = trained.to(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = dinov2_network(settings.kind, None, teaches=True).to(settings.device)
    return TeacherNetwork(
        name=settings.kind,
        weights_hash=file_hash(path),
        resize=TAUGHT,
        grid=(DINO_SIDE // 14, DINO_SIDE // 14),
        width=trained.width,
        tokens=trained,
        untrained=untrained,
        weights=path,
    )


def frozen(
    folder: Path, facts: Mapping[str, Any], device: str | torch.device
) -> Callable[[Tensor], Tensor]:
    """The network of a teacher's artifact: images (B, C, H, W) in [-1, 1] -> all its tokens."""
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn before these are read
        return dinov2_network(facts["name"], folder / facts["weights"], teaches=True).to(device)
