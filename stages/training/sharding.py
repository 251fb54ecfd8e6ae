"""A training whose weights, gradients, average and optimizer lie in parts on its processes.

Each process holds a part of every parameter; a block's are brought together while it is computed
(FSDP2, after Zhao et al. 2023). What is saved is whole, so that any number of processes goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from stages.nets.blocks import blocks


def shard(network: nn.Module, device: torch.device | str) -> None:
    """Leave of the network's parameters this process's part, on the device; blocks come there one
    by one, so that it never holds the whole."""
    from torch.distributed.fsdp import fully_shard

    # It warns of changes in place to what networks return, which no loss makes.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    world = (distributed.get_world_size(),)
    mesh = distributed.init_device_mesh(torch.device(device).type, world)
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` has had it."""
    return hasattr(network, "set_requires_gradient_sync")


def together(value: Tensor) -> Tensor:
    """A tensor brought together in every process, all of which are to call it; itself where it is
    whole."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors brought together on the CPU of the first process, one by one; others get none. All
    processes are to call it."""
    first, found = distributed.get_rank() == 0, {}
    for name, value in values.items():
        one = together(value.detach())
        if first:
            found[name] = one.cpu()
    return found


def parts(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`part` of each, by name."""
    return {name: part(value, like[name]) for name, value in values.items()}


def part(value: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, laid out as `like`; itself where that is whole, or of
    another shape."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
