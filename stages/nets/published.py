"""Networks that are built for checkpoints from elsewhere, out of other networks and adapters.

All are denoisers D(y, sigma, labels) in EDM coordinates. Arguments are JSON data, which stand in
the description of a stored network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.nets.adapters import Interpolant, NoisePredictor, levels_of, linear_levels
from stages.nets.sit import SiT

FLOW_SCALE = 1000  # of the time that flow-matching networks of diffusers are given


def dit(channels: int, network: Mapping[str, Any]) -> NoisePredictor:
    """DiT: SiT's network as a predictor of noise at DDPM's 1000 linear steps."""
    return NoisePredictor(SiT(**network), linear_levels(), "epsilon", channels)


def interpolant(path: str, prediction: str, network: Mapping[str, Any]) -> Interpolant:
    """A SiT of another path or prediction than the linear path's velocity."""
    return Interpolant(SiT(**network), path, prediction)


class DiffusersNetwork(nn.Module):
    """A network of diffusers called as (x, time, labels)."""

    def __init__(self, model: nn.Module, null_class: int | None):
        super().__init__()
        self.model, self.null_class = model, null_class

    def forward(self, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None and self.null_class is not None:
            labels = times.new_full((len(x),), self.null_class).long()
        if labels is None and self.model.config.get("num_class_embeds"):
            raise ValueError("this network knows no input without a class; give it labels")
        return self.model(x, times, class_labels=labels).sample


def diffusers(
    part: str,
    arguments: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    channels: int,
    null_class: int | None = None,
    clip: float | None = None,
) -> nn.Module:
    """A `UNet2DModel` or `DiTTransformer2DModel` with the noise schedule of its folder.

    scheduler: its configuration; the prediction "flow" is the linear path's velocity, at times up
    to 1000. null_class: what stands for no class, None where there is none.
    Raises ValueError for another network, and for a prediction that is not known.
    """
    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import diffusers as library

    if part not in ("UNet2DModel", "DiTTransformer2DModel"):
        raise ValueError(f"{part} is not read; UNet2DModel and DiTTransformer2DModel are")
    model = getattr(library, part).from_config(dict(arguments))
    call = DiffusersNetwork(model, null_class)
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction == "flow":
        return Interpolant(call, "linear", "velocity", FLOW_SCALE)
    with torch.device("cpu"):  # levels are computed where weights are not allocated, too
        kept = library.DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod
    return NoisePredictor(call, levels_of(kept), prediction, channels, clip)
