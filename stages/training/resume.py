"""Resumable state on disk: two slots written in turn, so that one is whole at any moment.

A slot is one safetensors file whose header also holds a JSON record and a checksum over all of it;
it appears by a rename. Other files of a work area that are kept for the payload have their checksum
beside them (`seal`, `sealed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import sha256

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = ("state-0.safetensors", "state-1.safetensors")


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the state after `step` over the older of the two slots."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(folder, step, held, json.dumps(record, sort_keys=True))


def write(folder: Path, step: int, held: Mapping[str, Tensor], record: str) -> None:
    """As `save`, of tensors that lie in the machine's memory, each as a whole, and of JSON."""
    from safetensors.torch import save_file

    saved = _readable(folder)
    newest = max(saved, key=saved.get) if saved else SLOTS[1]
    slot = SLOTS[1 - SLOTS.index(newest)]
    metadata = {"step": str(step), "record": record}
    metadata["sha256"] = _digest(held, metadata)
    write_atomically(folder / slot, lambda path: save_file(dict(held), path, metadata))


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors and record of the newest whole state, or None where there is none.

    One that is not what was written is set aside: it would give other weights.
    """
    while saved := _readable(folder):
        name = max(saved, key=saved.get)
        state = _whole(folder / name)
        if state is not None:
            return saved[name], *state
        damaged = folder / f"{name}.damaged"
        print(f"the state after step {saved[name]} does not match its checksum; see {damaged}")
        # Another worker of the training may have been faster.
        with contextlib.suppress(FileNotFoundError):
            (folder / name).replace(damaged)
    return None


def _whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of a state; None if they do not match its checksum."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(tensors, metadata):
            return None
        return tensors, json.loads(metadata["record"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over step, record and each tensor's name, type, shape and bytes."""
    import torch

    digest = hashlib.sha256(json.dumps([metadata["step"], metadata["record"]]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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


def seal(path: Path) -> None:
    """Keep a finished file's checksum beside it."""
    digest = sha256(path)
    write_atomically(
        _beside(path), lambda temporary: temporary.write_text(digest, encoding="utf-8")
    )


def sealed(path: Path) -> bool:
    """Whether a file is what it was when it was sealed."""
    try:
        return sha256(path) == _beside(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary)` make a file, then put it in place so that no reader sees half."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
