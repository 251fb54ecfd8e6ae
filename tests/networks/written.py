"""Files of other sizes in the formats of public codes, written from networks of our own."""

import torch
from torch import nn

from stages.nets.sit import SiT
from stages.networks import transformers

OURS = {ours: theirs for theirs, ours in transformers.RENAMED.items()}
OF_BLOCK = {ours: theirs for theirs, ours in transformers.OF_BLOCK.items()}


def randomised(network: nn.Module, spread: float = 0.2) -> nn.Module:
    """With weights that leave no part without effect, norms near 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(one + spread * noise)
    return network.eval().requires_grad_(False)


def sit_file(network: SiT, with_variance: bool = False, null: bool = True) -> dict:
    """The state dict of REPA's, REG's or DiT's class that computes what a SiT of ours does.

    with_variance: 2 C outputs, the second half of each pixel's being of no meaning here. null:
    with a row for the null class.
    """
    width, patch, channels = network.positions.shape[1], network.patch_size, network.channels
    stored = {}
    for name, value in network.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if name == "positions":
            stored["pos_embed"] = value[None]
        elif owner == "patch_embedding":
            if kind == "weight":
                value = value.view(width, patch, patch, channels).permute(0, 3, 1, 2).contiguous()
            stored[f"x_embedder.proj.{kind}"] = value
        elif owner == "final_head":
            each = value.view(patch**2, channels, *value.shape[1:])
            both = torch.cat([each, torch.randn_like(each)], dim=1) if with_variance else each
            stored[f"final_layer.linear.{kind}"] = both.flatten(0, 1)
        elif owner.startswith("projector."):
            stored[f"projectors.0.{owner.partition('.')[2]}.{kind}"] = value
        elif owner.startswith("blocks."):
            _, index, part = owner.split(".", 2)
            stored[f"blocks.{index}.{OF_BLOCK[part]}.{kind}"] = value
        else:
            stored[f"{OURS[owner]}.{kind}"] = value
    if not null:
        table = "y_embedder.embedding_table.weight"
        stored[table] = stored[table][:-1]
    return stored
