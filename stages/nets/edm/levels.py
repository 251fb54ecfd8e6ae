"""The levels of the U-Nets of ADM and EDM2: each with half the side of the one before, and every
output of the way down joined to a block of the way up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Make = Callable[..., nn.Module]
"""make(channels_in, channels_out, flavour, attends=False, resample=None): a block, of flavour "enc"
or "dec", that is called with x and the embedding."""


def built(
    first: nn.Module,
    make: Make,
    sizes: Sequence[int],
    widths: Sequence[int],
    num_blocks: int,
    attends: Callable[[int], bool],
) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """The modules of `enc` and `dec` under their published names.

    first: the convolution to widths[0]. sizes, widths: sides and channels of the levels. attends:
    whether blocks of this side attend.
    """
    enc, kept, current = nn.ModuleDict(), [widths[0]], widths[0]
    enc[f"{sizes[0]}x{sizes[0]}_conv"] = first
    for level, (side, width) in enumerate(zip(sizes, widths, strict=True)):
        if level:
            enc[f"{side}x{side}_down"] = make(current, current, "enc", resample="down")
            kept.append(current)
        for index in range(num_blocks):
            enc[f"{side}x{side}_block{index}"] = make(current, width, "enc", attends(side))
            current = width
            kept.append(current)
    dec, last = nn.ModuleDict(), len(sizes) - 1
    for level in range(last, -1, -1):
        side, name = sizes[level], f"{sizes[level]}x{sizes[level]}"
        if level == last:
            dec[f"{name}_in0"] = make(current, current, "dec", True)
            dec[f"{name}_in1"] = make(current, current, "dec")
        else:
            dec[f"{name}_up"] = make(current, current, "dec", resample="up")
        for index in range(num_blocks + 1):
            block = make(current + kept.pop(), widths[level], "dec", attends(side))
            dec[f"{name}_block{index}"], current = block, widths[level]
    return enc, dec


def passed(
    enc: nn.ModuleDict,
    dec: nn.ModuleDict,
    x: Tensor,
    embedding: Tensor,
    joined: Callable[[Tensor, Tensor], Tensor] = lambda a, b: torch.cat([a, b], dim=1),
) -> Tensor:
    """x (B, C, H, W) through both ways -> (B, widths[0], H, W)."""
    kept = []
    for name, layer in enc.items():
        x = layer(x) if name.endswith("_conv") else layer(x, embedding)
        kept.append(x)
    for name, layer in dec.items():
        if "_block" in name:
            x = joined(x, kept.pop())
        x = layer(x, embedding)
    return x
