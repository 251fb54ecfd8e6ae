"""What a reader of a format gives: a network's kind, arguments and weights, and its conventions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Found:
    """A network as it lies in a file.

    format: as settings name it. kind: of `table.NETWORKS` or `table.PUBLISHED`. config: keyword
    arguments that build it. state: its weights under our names. shape: (C, H, W) of an image.
    num_classes: 0 for none. method: the training loss, as far as it is ours. guided_channels: the
    first so many channels of the image are guided, None for all. null_class: whether it can be
    asked without a class. guided_interval: of t = s / (noise scale + s), where its own code guides.
    open_interval: whether the interval's ends are left out. conventions: what was applied, for
    people to read.
    """

    format: str
    kind: str
    config: dict[str, Any]
    state: Mapping[str, Tensor]
    shape: tuple[int, int, int]
    num_classes: int
    method: str = "unknown"
    guided_channels: int | None = None
    null_class: bool = True
    guided_interval: tuple[float, float] = (0.0, 1.0)
    open_interval: bool = False
    conventions: dict[str, str] = field(default_factory=dict)


class Conventions:
    """What a user says of a file, taken one by one; what nobody took is refused.

    Raises ValueError, from `take`, for a value that is not among `choices`.
    """

    def __init__(self, given: Mapping[str, Any]):
        self._given = {name: value for name, value in given.items() if value is not None}
        self._known: list[str] = []

    def take(self, name: str, default: Any = None, choices: tuple = ()) -> Any:
        self._known.append(name)
        value = self._given.pop(name, default)
        if choices and value is not None and value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{name} is {value!r}; it must be one of {known}")
        return value

    def check_empty(self, of: str) -> None:
        """Raise ValueError for what a format does not know."""
        if self._given:
            name, known = next(iter(self._given)), ", ".join(sorted(set(self._known))) or "none"
            raise ValueError(f"a network of format {of} has no convention {name} (it has {known})")


def digest(files: list[Path]) -> str:
    """SHA-256 over the bytes of files, in order."""
    made = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                made.update(block)
    return made.hexdigest()
