"""The stored networks of public codes, and how far an output is from theirs."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLOSE = 1e-5  # of the largest value: float32 sums in another order


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / name)


def arguments(name: str) -> dict:
    return json.loads((FIXTURES / name).read_text())


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
