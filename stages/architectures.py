"""The networks that settings name: their sizes, and the keyword arguments that build them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipeline.stage import Settings, resolve
from stages.methods import table


class NetworkSettings(Settings):
    """The size of the network."""

    kind: table.choice("network", table.NETWORKS) = Field("sit", description="the architecture")
    width: int = Field(64, ge=8, le=8192, description="features of a token")
    depth: int = Field(4, ge=1, le=200, description="blocks")
    heads: int = Field(2, ge=1, le=128, description="attention heads")
    patch: int = Field(2, ge=1, le=64, description="side of a patch, in pixels")

    @model_validator(mode="after")
    def _divides(self) -> NetworkSettings:
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not divisible by heads={self.heads}; "
                f"set width to {self.width // self.heads * self.heads or self.heads}, say"
            )
        if self.width % 4:
            raise ValueError(
                f"width={self.width} is not divisible by 4, as its position table needs; "
                f"set width to {self.width // 4 * 4 or 4}, say"
            )
        return self


def config_of(
    size: NetworkSettings, shape: tuple[int, ...], num_classes: int, **more: Any
) -> dict[str, Any]:
    """Keyword arguments of the network for images of `shape` (C, H, W).

    more: what the method adds to the network (its class token, projector, mixing blocks).
    """
    return {
        "image_size": list(shape[1:]),
        "channels": shape[0],
        "patch_size": size.patch,
        "width": size.width,
        "depth": size.depth,
        "num_heads": size.heads,
        "num_classes": num_classes,
        **more,
    }


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
