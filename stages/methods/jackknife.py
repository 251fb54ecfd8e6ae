"""The delete-one-block jackknife (Quenouille 1949; Kunsch 1989): errors from one set of images."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["complements", "deal", "standard_error"]


def deal(
    n: int,
    blocks: int,
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Indices 0..n-1 dealt to blocks whose sizes differ by at most one; at random if a generator
    is given, for images that lie sorted by class. With labels (n,) each block gets its share of
    every label."""
    if not 1 <= blocks <= n:
        raise ValueError(f"blocks is {blocks}; with {n} images it must lie in 1..{n}")
    if generator is None:
        return torch.arange(n).tensor_split(blocks)
    order = torch.randperm(n, generator=generator, device=generator.device)
    if labels is None:
        return order.tensor_split(blocks)
    order = order[labels.to(order.device)[order].argsort(stable=True)]
    return tuple(order[block::blocks] for block in range(blocks))


def complements(blocks: tuple[Tensor, ...]) -> list[Tensor]:
    """For every block the indices of all the others."""
    return [torch.cat(blocks[:i] + blocks[i + 1 :]) for i in range(len(blocks))]


def standard_error(deleted: list[float] | Tensor) -> float:
    """Standard error of a statistic from its values with each of the blocks left out in turn."""
    values = torch.as_tensor(deleted, dtype=torch.float64)
    if len(values) < 2:
        raise ValueError(f"a jackknife of {len(values)} block has no spread; use at least 2")
    blocks = len(values)
    return ((blocks - 1) / blocks * (values - values.mean()).square().sum()).sqrt().item()
