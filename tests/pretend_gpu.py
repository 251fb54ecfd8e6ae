"""A stand-in GPU for machines that have none: it refuses what CUDA refuses, and counts its waits.

    with pretend_gpu.running() as gpu:
        denoiser(y.to(pretend_gpu.DEVICE), 1.0)
    assert not gpu.waits

Its tensors hold their numbers on the CPU, so that everything is computed as there. They raise
`MixedDevicesError` where CUDA raises that tensors are on different devices.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""Where its tensors say they are. True meta tensors are not to be used beside them."""

# Whose result, or its shape, the host reads; cuSOLVER's answers are asked whether they are good.
READ = frozenset(("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"))
READ |= frozenset(("_unique2", "unique_consecutive", "unique_dim", "multinomial", "bincount"))
READ |= frozenset(("repeat_interleave", "_linalg_check_errors", "linalg_lstsq"))
COPIES = frozenset(("_to_copy", "copy_"))
INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
# Drivers of least squares that cuSOLVER lacks.
ON_CPU_ALONE = frozenset(("gelsd", "gelss", "gelsy"))


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met, or one was asked for what its device lacks."""


class OnGpu(Tensor):
    """A tensor that says it is on `DEVICE`; `held` is what it holds, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        facts = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        facts |= {"dtype": held.dtype, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(cls, held.size(), **facts)
        made.held = held.detach()
        return made

    def __init__(self, held: Tensor) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGpu({self.held})"

    def __array__(self, *arguments: Any) -> Any:
        raise MixedDevicesError(f"numpy is given a GPU's tensor at {_where()}")

    def numpy(self, *arguments: Any) -> Any:
        return self.__array__()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise MixedDevicesError(f"{func} is called while no stand-in is running")


@dataclass
class Gpu:
    """What was seen. waits: how often the host waited, by "operation at file:line"."""

    waits: Counter[str] = field(default_factory=Counter)

    def wait(self, name: str) -> None:
        self.waits[f"{name} at {_where()}"] += 1


@contextlib.contextmanager
def running() -> Iterator[Gpu]:
    """While it is open tensors can be brought to `DEVICE` and worked with there; autocast leaves
    their numbers as they are, and inference mode is one without gradients."""
    gpu, autocast = Gpu(), torch.autocast

    def known(device: str, *how: Any, **more: Any) -> Any:
        return autocast("cpu" if device == DEVICE.type else device, *how, **more)

    def without_gradients(mode: bool) -> torch.no_grad:
        """Of functions too that were decorated before."""
        return torch.no_grad()

    place = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with (
        mock.patch(place, return_value=["cpu", DEVICE.type]),
        mock.patch("torch.autocast", known),
        mock.patch("torch._C._InferenceMode", without_gradients),
        _Functions(gpu),
        _Operations(gpu),
    ):
        yield gpu


class _Operations(TorchDispatchMode):
    """Every operation, once autograd has seen it."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        mine = [x for x in given if isinstance(x, OnGpu)]
        if any(x.device == DEVICE for x in given if not isinstance(x, OnGpu)):
            raise AssertionError(f"a true meta tensor reached {func} at {_where()}")
        asked = [*(x for x in args if isinstance(x, torch.device)), kwargs.get("device")]
        to = next((torch.device(x) for x in asked if x is not None), None)
        name = func.overloadpacket.__name__
        if mine or to == DEVICE:
            self._refuse(func, name, given, kwargs)
        if self._waits(name, args, kwargs, mine, to):
            self._gpu.wait(name)
        result = func(*_held(args), **_held(kwargs))
        stays = (mine and (to is None or to == DEVICE)) or to == DEVICE
        if name == "copy_":
            stays = isinstance(args[0], OnGpu)
        return _again(result, mine) if stays else result

    def _refuse(self, func: Any, name: str, given: list[Tensor], kwargs: dict[str, Any]) -> None:
        """Raise where CUDA would."""
        strange = [x for x in given if not isinstance(x, OnGpu) and x.ndim]
        if strange and name not in COPIES | INDEXED and len(strange) < len(given):
            shapes = [tuple(x.shape) for x in strange]
            raise MixedDevicesError(f"{func} mixes devices: {shapes} on the CPU, at {_where()}")
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise MixedDevicesError(f"{func} draws by the CPU's generator at {_where()}")
        if kwargs.get("driver") in ON_CPU_ALONE:
            raise MixedDevicesError(f"{func} has no such driver on a GPU, at {_where()}")

    def _waits(self, name: str, args: Any, kwargs: Any, mine: list[Tensor], to: Any) -> bool:
        """Whether the host waits for the device until this is done."""
        if name in COPIES:
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], to)
            crosses = target is not None and source.device != target
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and True in args[2:]))
            return crosses and blocks and bool(mine or to == DEVICE)
        if not mine:
            return False
        if name in INDEXED:
            indices = [x for x in args[1] if x is not None]
            masked = any(x.dtype == torch.bool for x in indices)
            filled = name != "index" and args[2].numel() == 1  # then by masked_fill
            return any(not isinstance(x, OnGpu) for x in indices) or (masked and not filled)
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        return name in READ


class _Functions(TorchFunctionMode):
    """What does not come to `_Operations`, or not as on a GPU."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_device(kwargs.get("device")):
            value, dtype = args[0], kwargs.get("dtype")
            if isinstance(value, Tensor):
                return value.to(device=DEVICE, dtype=dtype)
            return func(value, dtype=dtype, device="cpu").to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], OnGpu):
            self._gpu.wait("tolist")
            return args[0].held.tolist()
        if func in (torch.set_default_device, torch.Generator):
            raise AssertionError(f"{func} is not known here")
        return func(*args, **kwargs)


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _held(values: Any) -> Any:
    """The same on the CPU."""

    def one(value: Any) -> Any:
        if isinstance(value, OnGpu):
            return value.held
        is_there = isinstance(value, torch.device) and value == DEVICE
        return torch.device("cpu") if is_there else value

    return tree_map(one, values)


def _again(result: Any, mine: list[OnGpu]) -> Any:
    """On the stand-in; what was changed in place is the tensor that was given."""
    given = {id(x.held): x for x in mine}

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else OnGpu(value)

    return tree_map(one, result)


def _where() -> str:
    """The line of the project that is being run."""
    for frame in reversed(traceback.extract_stack()):
        ours = "/stages/" in frame.filename or "/tests/" in frame.filename
        if ours and frame.filename != __file__:
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return "?"
