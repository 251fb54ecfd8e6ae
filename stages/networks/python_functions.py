"""A user's own denoiser: `module:function`.

The function is called once and gives a denoiser, called as denoiser(y, sigma, labels): y (B, C, H,
W) float32 = x0 + sigma eps, sigma (B,) > 0, labels (B,) long or None; it returns E[x0 | y], as y.
It may be a torch module (its layers can then be tapped), or any callable. `shape` and
`num_classes`, as attributes of what it gives or said with the path, say what it takes. Results are
kept under the code of its module and of what this imports from its own folder; other files that it
reads, such as weights, do not count: give changed ones another name in the code.

    def mine():
        network = torch.jit.load("mine.pt").eval()
        def denoiser(y, sigma, labels=None):
            return network(y, sigma, labels)
        denoiser.shape, denoiser.num_classes = (3, 32, 32), 10
        return denoiser
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stages.networks.found import Conventions, Found


class _MisshapenError(ValueError):
    """An answer of another type or shape than what was asked about."""


class Called(nn.Module):
    """The denoiser that a user's function gives."""

    def __init__(self, function: str):
        super().__init__()
        self.called = made(function)

    def forward(self, y: Tensor, sigma: Any, labels: Tensor | None = None) -> Tensor:
        """E[x0 | y]; raises ValueError for an answer of another type or shape."""
        from stages.methods.path import per_sample

        levels = per_sample(sigma, y).flatten().expand(len(y)).float()
        answer = self.called(y.float(), levels, labels)
        if not isinstance(answer, Tensor) or answer.shape != y.shape:
            given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise _MisshapenError(
                f"the denoiser gave {given} for y {tuple(y.shape)}; give one like y"
            )
        return answer.to(y.dtype)

    def try_out(self, shape: Sequence[int], num_classes: int) -> None:
        """Ask for two images, on a GPU where there is one and the CPU will not do; ValueError where
        that fails, or the answer is not finite."""
        import torch

        y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(2) % num_classes if num_classes else None
        try:
            answer = self._tried(y, labels)
        except _MisshapenError:
            raise
        except Exception as error:  # the denoiser is the user's
            raise ValueError(
                f"the denoiser cannot be called as denoiser(y, sigma, labels) for y {(2, *shape)} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not answer.isfinite().all():
            raise ValueError("the denoiser gave NaN or infinity for noise of level 1")

    def _tried(self, y: Tensor, labels: Tensor | None) -> Tensor:
        import torch

        with torch.no_grad():
            try:
                return self(y, 1.0, labels)
            except RuntimeError:  # of two devices, say, where it holds a network of a GPU's
                if not torch.cuda.is_available():
                    raise
                return self(y.cuda(), 1.0, None if labels is None else labels.cuda())


def made(function: str) -> Any:
    """What the function at `module:function` gives; ValueError where there is none."""
    place, _, name = function.partition(":")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise ValueError(
            f"{function}: the module {place} cannot be imported ({error}); start where it lies, or "
            "install it"
        ) from error
    if not callable(found := getattr(module, name, None)):
        raise ValueError(
            f"{function}: {place} has no function {name or '(none is named)'}; name one that gives "
            "a denoiser, as module:function"
        )
    try:
        denoiser = found()
    except Exception as error:  # the function is the user's
        raise ValueError(f"{function} failed ({type(error).__name__}: {error})") from error
    if not callable(denoiser):
        raise ValueError(f"{function} gave a {type(denoiser).__name__}; it must give a denoiser")
    return denoiser


def read(function: str, said: Conventions) -> Found:
    """A user's denoiser. Raises ValueError where its shape is not said."""
    denoiser = made(function)
    shape = said.take("shape") or getattr(denoiser, "shape", None)
    num_classes = said.take("num_classes")
    if num_classes is None:
        num_classes = getattr(denoiser, "num_classes", 0)
    said.check_empty("python")
    if shape is None or len(tuple(shape)) != 3:
        raise ValueError(f"{function} does not say what it takes; give it .shape = (C, H, W)")
    return Found(
        format="python",
        kind="python",
        config={"function": function},
        state={f"called.{k}": v for k, v in denoiser.state_dict().items()}
        if isinstance(denoiser, nn.Module)
        else {},
        shape=tuple(int(side) for side in shape),
        num_classes=int(num_classes),
        conventions={"denoiser": function},
    )
