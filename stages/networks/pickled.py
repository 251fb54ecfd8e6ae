"""EDM's and EDM2's published pickles, read without running anything of theirs.

The files hold the source text of their classes and, read as usual, execute it. Here every global
that a file may ask for is either a plain constructor of tensors and containers or a holder that
keeps what it is given; any other is refused by its name. (NVlabs/edm, torch_utils/persistence.py.)
"""

from __future__ import annotations

import collections
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.networks import unpickling
from stages.networks.torch_files import REMEDY

PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
LARGEST = 32 * 2**30  # bytes of a file


class Holder:
    """Stands for an object of a class that is not made: its class's name and its state."""

    def __init__(self, meta: dict[str, Any] | None = None):
        meta = meta if isinstance(meta, dict) else {}
        self.class_name, self.state = str(meta.get("class_name", "")), meta.get("state", {})

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def attribute(self, name: str) -> Any:
        return self.state.get(name) if isinstance(self.state, dict) else None


class EasyDict(dict):
    """A dictionary that a file calls by the name of its class."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


def _tensors_only(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


ALLOWED: dict[tuple[str, str], Any] = {
    PERSISTENT: Holder,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _tensors_only,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("dnnlib.util", "EasyDict"): EasyDict,
    **unpickling.arrays(),
    # Containers of torch are pickled as ordinary classes.
    **{
        ("torch.nn.modules.container", name): type(name, (Holder,), {})
        for name in ("ModuleDict", "ModuleList", "Sequential", "ParameterDict", "ParameterList")
    },
}


def read(path: Path) -> Any:
    """What a file holds: dictionaries, tensors, arrays, numbers, and `Holder`s.

    Raises ValueError for what is no pickle, and for one that asks for anything else, by its name.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST // 2**30} GiB, above what is read")
    try:
        with path.open("rb") as stream:
            return unpickling.load(stream, ALLOWED)
    except unpickling.RefusedError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; {REMEDY}") from error


def tensors(module: Holder, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a held torch module: parameters and buffers by their names, then those of
    its parts."""
    for group in ("_parameters", "_buffers"):
        for name, value in (module.attribute(group) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
    for name, part in (module.attribute("_modules") or {}).items():
        if isinstance(part, Holder):
            yield from tensors(part, f"{prefix}{name}.")
