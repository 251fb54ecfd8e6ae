"""Resumable state on disk: two slots written in turn, so that one is whole at any moment.

A slot is one safetensors file whose header also holds a JSON record; it appears by a rename.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = ("state-0.safetensors", "state-1.safetensors")


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the state after `step` over the older of the two slots."""
    from safetensors.torch import save_file

    saved = _readable(folder)
    newest = max(saved, key=saved.get) if saved else SLOTS[1]
    slot = SLOTS[1 - SLOTS.index(newest)]
    metadata = {"step": str(step), "record": json.dumps(record, sort_keys=True)}
    write_atomically(folder / slot, lambda path: save_file(dict(tensors), path, metadata))


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors and record of the newest whole state, or None where there is none."""
    from safetensors import safe_open

    saved = _readable(folder)
    if not saved:
        return None
    name = max(saved, key=saved.get)
    with safe_open(folder / name, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        return saved[name], tensors, json.loads(stream.metadata()["record"])


def _readable(folder: Path) -> dict[str, int]:
    """`{slot: step}` of the slots that hold a whole state; a damaged one counts as absent."""
    from safetensors import SafetensorError, safe_open

    steps: dict[str, int] = {}
    for name in SLOTS:
        try:
            with safe_open(folder / name, framework="pt") as stream:
                steps[name] = int(stream.metadata()["step"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue
    return steps


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary)` make a file, then put it in place so that no reader sees half."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
