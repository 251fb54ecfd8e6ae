"""Checkpoint files of torch: state dicts, and training files that hold several beside their
arguments. Nothing is unpickled but tensors, containers and argparse's Namespace."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REMEDY = "it may have come in part: fetch it again, or name another file"
AVERAGES = ("ema", "model_ema1")  # the weights that are evaluated, in files that train


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The evaluated weights of a .pt, .pth or .safetensors file, and the arguments it was trained
    with, if it holds them. Large files are mapped, and only these weights are read.

    Raises ValueError for what is no such file, and for one that holds other objects, by name.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path), {}
        except Exception as error:  # the library raises its own kinds
            raise ValueError(
                f"{path} is no readable safetensors file ({error}); {REMEDY}"
            ) from error
    content = _content(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a state dict is expected")
    arguments = content.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
    for name in AVERAGES:
        if isinstance(content.get(name), Mapping):
            return _tensors(content[name], path), arguments
    if isinstance(content.get("model"), Mapping):
        raise ValueError(
            f"{path} holds 'model' but no averaged weights ({' or '.join(AVERAGES)}), which are "
            "the ones that are evaluated; save them, or the state dict alone"
        )
    return _tensors(content, path), arguments


def _content(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of torch's old format cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as stream:
            begins = stream.read(2)
        if begins != b"PK" and begins[:1] != pickle.PROTO:  # neither torch's zip nor a pickle
            raise ValueError(
                f"{path} is no checkpoint: it is none of torch's formats; {REMEDY}"
            ) from error
        raise ValueError(
            f"{path} asks for more than tensors, and nothing else is read: {_reason(error)}"
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(
            f"{path} is no readable checkpoint ({type(error).__name__}: {_reason(error)}); {REMEDY}"
        ) from error


def _reason(error: Exception) -> str:
    """The line of torch's long message that says what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or ["empty"])[0]


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict; prefixes of DDP and torch.compile are taken off."""
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        what = f"'{others[0]}' is no tensor" if others else "it is empty"
        raise ValueError(f"{path} holds no state dict of a known layout: {what}")
    tensors = dict(content)
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return {name: value.detach() for name, value in tensors.items()}
