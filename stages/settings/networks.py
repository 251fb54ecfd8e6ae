"""The networks that settings name: their sizes, and the keyword arguments that build them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.stage import Settings, resolve
from stages.methods import table

# The settings that one kind of network alone reads.
OWN = {"sit": ("depth", "heads", "patch"), "unet": ("multipliers", "blocks")}


class NetworkSettings(Settings):
    """The size of the network."""

    kind: table.choice("network", table.NETWORKS) = Field("sit", description="the architecture")
    width: int = Field(
        64, ge=8, le=8192, description="sit: features of a token; unet: channels of its first level"
    )
    depth: int = Field(4, ge=1, le=200, description="sit: blocks")
    heads: int = Field(2, ge=1, le=128, description="sit: attention heads")
    patch: int = Field(2, ge=1, le=64, description="sit: side of a patch, in pixels")
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2),
        min_length=1,
        max_length=8,
        description="unet: channels of each level over those of the first; every level has half "
        "the side of the one before",
    )
    blocks: int = Field(
        1, ge=1, le=16, description="unet: residual blocks a level, down and again up"
    )

    @model_validator(mode="after")
    def _is_read(self) -> NetworkSettings:
        for kind, names in OWN.items():
            for name in names:
                value = getattr(self, name)
                if kind != self.kind and value != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name}={value} and kind={self.kind} contradict each other: only {kind} "
                        f"reads it; leave {name} unset, or set kind={kind}"
                    )
        return self

    @property
    def divisor(self) -> int:
        """What the side of an image must be divisible by."""
        return self.patch if self.kind == "sit" else 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _divides(self) -> NetworkSettings:
        if self.kind != "sit":
            return self
        divisor = math.lcm(self.heads, 4)
        if self.width % divisor:
            fits = max(self.width // divisor, math.ceil(8 / divisor)) * divisor
            raise ValueError(
                f"width={self.width} is not divisible by heads={self.heads} and by 4, as its "
                f"position table needs; set width to {fits}, say"
            )
        return self


def config_of(
    size: NetworkSettings, shape: tuple[int, ...], num_classes: int, **more: Any
) -> dict[str, Any]:
    """Keyword arguments of the network for images of `shape` (C, H, W).

    more: what the method adds to the network (its class token, projector, mixing blocks).
    """
    common = {
        "image_size": list(shape[1:]),
        "channels": shape[0],
        "width": size.width,
        "num_classes": num_classes,
    }
    if size.kind == "unet":
        own = {"multipliers": list(size.multipliers), "blocks": size.blocks}
    else:
        own = {"patch_size": size.patch, "depth": size.depth, "num_heads": size.heads}
    return common | own | more


def num_parameters(kind: str, config: dict[str, Any]) -> int:
    """Trained parameters of a network; nothing is allocated."""
    import torch

    with torch.device("meta"):
        network = resolve(table.NETWORKS[kind])(**config)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where two networks' arguments differ, as "width 64 (here 32)": theirs, then ours."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} {theirs.get(name, 'none')} (here {ours.get(name, 'none')})" for name in names]
