"""Feature taps: the output of any layer, by its name, pooled to one vector an image.

A layer's name is the one `torch.nn.Module.named_modules` gives: `inner.mid` in the U-Net,
`blocks.3` in SiT (the fourth block). The network is left as it was once the tap closes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

POOLINGS = ("auto", "spatial", "tokens", "class_token")


def find_layer(module: nn.Module, layer: str) -> nn.Module:
    """The layer of that name; ValueError lists those that exist, the nearest names first."""
    layers = {name: submodule for name, submodule in module.named_modules() if name}
    if layer in layers:
        return layers[layer]
    near = difflib.get_close_matches(layer, layers, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"no layer is named {layer!r}; {hint}this {type(module).__name__} has: {', '.join(layers)}"
    )


def pool(output: Tensor, pooling: str) -> Tensor:
    """One vector an image, (B, d), from a layer's output.

    "spatial": (B, d, H, W), mean over places. "tokens": (B, N, d), mean over the tokens.
    "class_token": the first of (B, N, d). "auto": "spatial" or "tokens", by the output's shape.
    Raises ValueError for another pooling and an output of another shape.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; choose among {', '.join(POOLINGS)}")
    if pooling == "auto" and isinstance(output, Tensor):
        pooling = "spatial" if output.ndim == 4 else "tokens"
    rank, shape = (4, "(B, d, H, W)") if pooling == "spatial" else (3, "(B, N, d)")
    if not isinstance(output, Tensor) or output.ndim != rank:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"pooling {pooling!r} takes a layer's output {shape}, this one gives {given}; choose "
            "another pooling or layer"
        )
    if pooling == "spatial":
        return output.mean(dim=(2, 3))
    if pooling == "class_token":
        return output[:, 0]
    return output.mean(dim=1)


class LayerReached(Exception):  # noqa: N818
    """Ends a network's pass at the layer that was tapped."""


class Tap:
    """Keeps a layer's pooled output while it is open:

        with Tap(network, "inner.mid", "spatial") as tap:
            network(y, sigma)
        tap.features  # (B, d)

    `features` is that of the layer's latest call; ValueError when the layer has not run.
    With `stop` the network's pass ends at the layer, by raising `LayerReached`.
    """

    def __init__(self, module: nn.Module, layer: str, pooling: str, stop: bool = False):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; choose among {', '.join(POOLINGS)}")
        self._found = find_layer(module, layer)
        self._layer, self._pooling, self._stop = layer, pooling, stop
        self._features: Tensor | None = None
        self._handle = None

    def __enter__(self) -> Tap:
        self._handle = self._found.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        self._features = pool(output, self._pooling)
        if self._stop:
            raise LayerReached

    @property
    def features(self) -> Tensor:
        """The pooled output, (B, d)."""
        if self._features is None:
            raise ValueError(
                f"layer {self._layer!r} has not run; call the network while the tap is open, and "
                "choose a layer that its forward pass uses"
            )
        return self._features


@torch.no_grad()
def view_features(
    module: nn.Module,
    denoiser: Callable[..., Tensor],
    views: Tensor,
    sigma: float,
    layer: str,
    pooling: str,
    batch_size: int = 512,
    labels: Tensor | None = None,
) -> Tensor:
    """Features (n, V, d) of views (n, V, C, H, W) at level sigma, for the ICR.

    denoiser(y, sigma), or denoiser(y, sigma, labels (B,)) where labels (n,) of the images are
    given, runs the network `module` once on y (B, C, H, W) in EDM coordinates: the U-Net itself, or
    the adapter of a velocity network; where the network carries a class token, `denoiser` adds it.
    The pass ends at the layer: what follows it is not computed. The module is put in evaluation
    mode and its parts are given back in the modes they had. Other arguments as in `pool`; the
    result is on the CPU.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    modes = {part: part.training for part in module.modules()}
    module.eval()
    pieces = []
    try:
        with Tap(module, layer, pooling, stop=True) as tap:
            for first in range(0, views.shape[0] * views.shape[1], batch_size):
                batch = views.flatten(0, 1)[first : first + batch_size]
                which = torch.arange(first, first + len(batch)) // views.shape[1]
                told = () if labels is None else (labels[which].to(batch.device),)
                with suppress(LayerReached):
                    denoiser(batch, sigma, *told)
                pieces.append(tap.features.float().cpu())
    finally:
        for part, training in modes.items():
            part.training = training
    return torch.cat(pieces).unflatten(0, views.shape[:2])
