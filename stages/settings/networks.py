"""The networks that settings name: their sizes, and the keyword arguments that build them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.stage import Settings, resolve
from stages.methods import table

# The settings beside width that each kind of network reads.
_LEVELS = ("multipliers", "blocks")
OWN = {
    "sit": ("depth", "heads", "patch"),
    "unet": _LEVELS,
    "song": (*_LEVELS, "attention"),
    "dhariwal": (*_LEVELS, "attention"),
    "edm2": (*_LEVELS, "attention"),
    "jit": ("depth", "heads", "patch", "bottleneck", "context"),
}
TRANSFORMERS = ("sit", "jit")


class NetworkSettings(Settings):
    """The size of the network."""

    kind: table.choice("network", table.TRAINED) = Field(
        "sit",
        description="the architecture; song, dhariwal (EDM's U-Nets), edm2 and jit are trained by "
        "EDM's loss, as unet is; jit by its own too",
    )
    width: int = Field(
        64,
        ge=8,
        le=8192,
        description="transformers: features of a token; U-Nets: channels of the first level",
    )
    depth: int = Field(4, ge=1, le=200, description="transformers: blocks")
    heads: int = Field(2, ge=1, le=128, description="transformers: attention heads")
    patch: int = Field(2, ge=1, le=64, description="transformers: side of a patch, in pixels")
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2),
        min_length=1,
        max_length=8,
        description="U-Nets: channels of each level over those of the first; every level has half "
        "the side of the one before",
    )
    blocks: int = Field(
        1, ge=1, le=16, description="U-Nets: residual blocks a level, down and again up"
    )
    attention: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16,),
        description="song, dhariwal, edm2: sides of the levels that attend; the latter two "
        "only where a level has 64 channels or more",
    )
    bottleneck: int = Field(
        128, ge=1, le=8192, description="jit: features between a patch and its token"
    )
    context: int = Field(
        32,
        ge=0,
        le=1024,
        description="jit: tokens of the class, which enter after a third of the blocks",
    )

    @model_validator(mode="after")
    def _is_read(self) -> NetworkSettings:
        for name in dict.fromkeys(name for names in OWN.values() for name in names):
            value, kinds = getattr(self, name), [kind for kind in OWN if name in OWN[kind]]
            if self.kind not in kinds and value != type(self).model_fields[name].default:
                others = f" (or {', '.join(kinds[1:])})" if kinds[1:] else ""
                raise ValueError(
                    f"{name}={value} and kind={self.kind} contradict each other: only {kinds[0]} "
                    f"reads it{others}; leave {name} unset, or set kind={kinds[0]}"
                )
        return self

    @property
    def divisor(self) -> int:
        """What the side of an image must be divisible by."""
        return self.patch if self.kind in TRANSFORMERS else 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _divides(self) -> NetworkSettings:
        if self.kind not in TRANSFORMERS:
            return self
        # JiT rotates the places of a head's features in fours.
        divisor = math.lcm(self.heads, 4) if self.kind == "sit" else 4 * self.heads
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
    if size.kind in table.PUBLISHED:
        return _published(size, shape, num_classes, **more)
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


def _published(
    size: NetworkSettings, shape: tuple[int, ...], num_classes: int, **more: Any
) -> dict[str, Any]:
    """Those of networks under whose names checkpoints are published. Raises ValueError for images
    that are not square."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"kind={size.kind} takes square images, not {height}x{width}; crop them")
    if size.kind == "jit":
        return {
            "input_size": height,
            "patch_size": size.patch,
            "in_channels": channels,
            "hidden_size": size.width,
            "depth": size.depth,
            "num_heads": size.heads,
            "num_classes": num_classes,
            "bottleneck_dim": size.bottleneck,
            "in_context_len": size.context,
            "in_context_start": size.depth // 3,
            **{name: value for name, value in more.items() if name == "noise_scale"},
        }
    return {
        "img_resolution": height,
        "img_channels": channels,
        "label_dim": num_classes,
        "model_channels": size.width,
        "channel_mult": list(size.multipliers),
        "num_blocks": size.blocks,
        "attn_resolutions": list(size.attention),
        **more,
    }


def num_parameters(kind: str, config: dict[str, Any]) -> int:
    """Trained parameters of a network; nothing is allocated."""
    import torch

    with torch.device("meta"):
        network = resolve(table.TRAINED[kind])(**config)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where two networks' arguments differ, as "width 64 (here 32)": theirs, then ours."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} {theirs.get(name, 'none')} (here {ours.get(name, 'none')})" for name in names]
