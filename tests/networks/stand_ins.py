"""Pickles in the form of EDM's published files, made with stand-in classes under their names."""

import io
import pickle
import sys
from contextlib import contextmanager
from types import ModuleType

from torch import nn


class _Reduced:
    """Pickled as a call of torch_utils.persistence._reconstruct_persistent_obj(meta)."""

    def __init__(self, class_name, state):
        self.meta = {"type": "class", "version": 6, "class_name": class_name, "state": state}
        self.meta["module_src"] = "raise SystemExit('the source text was run')"

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextmanager
def modules():
    """The modules that the files name, while one is written."""
    package, persistence = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the published code was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    added = {"torch_utils": package, "torch_utils.persistence": persistence}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def held(module: nn.Module, names=None):
    """A module as a persistent object: the classes of EDM as their own, containers of torch as
    themselves."""
    state = {"training": False, "_parameters": dict(module._parameters)}
    unsaved = module._non_persistent_buffers_set
    state["_buffers"] = {n: b for n, b in module._buffers.items() if n not in unsaved}
    state["_modules"] = {
        name: None if part is None else held(part) for name, part in module._modules.items()
    }
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__["_modules"] = state["_modules"]
        return container
    return _Reduced(names or type(module).__name__, state)


def edm_pickle(path, network, class_name, init_kwargs, extra=None, init_args=()):
    """Write {ema, ...} as EDM's training does."""
    with modules():
        ema = held(network, class_name)
        ema.meta["state"] |= {"_init_args": init_args, "_init_kwargs": init_kwargs}
        content = {"ema": ema, "loss_fn": _Reduced("EDMLoss", {"P_mean": -1.2})}
        content |= {"augment_pipe": None, "dataset_kwargs": {"path": "data.zip"}} | (extra or {})
        stream = io.BytesIO()
        pickle.dump(content, stream, protocol=4)
    path.write_bytes(stream.getvalue())


class Malicious:
    """Writes a file where it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
