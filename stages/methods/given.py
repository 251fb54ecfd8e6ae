"""What callers hand to the mathematics: real numbers in a tensor, or one sentence on what it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 1e20
"""Of values: their sixth powers (the kernel distance) and the squares of those are finite."""


def tensor(values: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """Tensors, numpy arrays and lists as a tensor (of `dtype`, where one is asked for).

    Raises ValueError for anything else, complex numbers included.
    """
    typed = hasattr(values, "dtype")
    try:
        found = torch.as_tensor(values, dtype=None if typed else dtype)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} is {type(values).__name__} and no array of numbers; give a torch tensor"
        ) from None
    if found.is_complex():
        raise ValueError(f"{name} holds complex numbers; give real ones")
    return found if dtype is None else found.to(dtype)


def check_size(values: Tensor, name: str) -> None:
    """Raise ValueError for values that are too large to square."""
    largest = values.abs().max().item() if values.is_floating_point() and values.numel() else 0.0
    if largest > LARGEST:
        raise ValueError(
            f"{name} holds values of up to {largest:.3g}, too large to square; look at what made "
            "them, or divide all by one number"
        )
