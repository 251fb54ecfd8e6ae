"""Networks compiled by their blocks.

A transformer is one function over and over, with other weights: its blocks share what is compiled
for the first of them, so that compiling takes as long at depth 28 as at depth 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch._functorch import config as functorch

# Of one function in one process: two numbers of tokens, with gradients and without, in several
# precisions, of every network that the process meets. Beyond it calls would run uncompiled.
FORMS = 64


def compile_network(network: nn.Module, backend: str | Callable = "inductor") -> list[nn.Module]:
    """Compile what the network spends its time in; returns the modules compiled.

    These are its `repeated` blocks, or, where it has none, the whole. Parameters, their names and
    copies made before stay as they are; the first call of each shape compiles for that shape.
    backend: of torch.compile. A graph is gone through backwards once, see `retain`.
    """
    dynamo = torch._dynamo.config
    # Of several workers: gradients come block by block, without graphs being split for them.
    dynamo.optimize_ddp = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, FORMS)
    retain(False)
    # What samplers call of an EDM network is the inside of its preconditioning.
    parts = repeated(network) or [getattr(network, "inner", network)]
    for part in parts:
        part.compile(backend=backend, dynamic=False)
    return parts


def retain(several: bool) -> None:
    """Say whether what this process compiles from now on is gone through backwards several times;
    otherwise a backward pass takes the room of what was kept for it."""
    functorch.donated_buffer = not several


def repeated(network: nn.Module) -> list[nn.Module]:
    """The modules of the network's lists of equals, if those hold most of its weights, in order.

    Equals are of one class and have parameters of the same names and shapes. A U-Net's levels
    differ, and so it has none.
    """
    kinds = (nn.ModuleList, nn.Sequential)
    lists = [module for module in network.modules() if isinstance(module, kinds)]
    found = [part for one in lists if len(one) > 1 and _alike(one) for part in one]
    return found if 2 * _weights(found) > _weights([network]) else []


def _alike(modules: nn.ModuleList | nn.Sequential) -> bool:
    """Whether all are of one class with parameters of the same names and shapes."""

    def form(module: nn.Module) -> tuple[type, list[tuple[str, torch.Size]]]:
        return type(module), [(name, p.shape) for name, p in module.named_parameters()]

    first = form(modules[0])
    return all(form(module) == first for module in modules)


def _weights(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
