"""Networks on a device, and the blocks that they are made of."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

LISTS = (nn.ModuleList, nn.ModuleDict)


def placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device; on a GPU weights of convolutions lie with the channels last, as its
    kernels take them, and so does what they give. States are written as they would be otherwise."""
    if torch.device(device).type == "cpu":
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The members of the network's lists and dictionaries of modules, in order: blocks of a
    transformer, layers of a U-Net's levels."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(network, LISTS) and not isinstance(child, LISTS):
            found += [child] if any(True for _ in child.parameters()) else []
        else:
            found += blocks(child)
    return found


def recompute(network: nn.Module) -> None:
    """Keep of every block's forward pass its inputs alone: the rest is computed again, to the same
    numbers, when its gradient is asked for (Chen et al. 2016). Copies made before stay as they
    are; compile blocks after this."""
    for block in blocks(network):
        block.forward = MethodType(_computed_again, block)


def _computed_again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A block's forward pass, as a method: compilers pass over a partial in its place."""
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, **kwargs)
