"""JiT checkpoints (LTH14/JiT): .pth files of training, of which model_ema1 is evaluated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stages.networks.found import Conventions, Found

# Heads and the block that the class's tokens enter before, by width and depth: B, L, H.
SIZES = {(768, 12): (12, 4), (1024, 24): (16, 8), (1280, 32): (16, 10)}


def read(stored: dict[str, Tensor], arguments: Mapping[str, Any], said: Conventions) -> Found:
    """A JiT network. Raises ValueError where its heads, or where its class tokens enter, are not
    known, and for tensors that are missing."""
    stored = {name.removeprefix("net."): value.float() for name, value in stored.items()}
    needed = ("x_embedder.proj1.weight", "pos_embed", "y_embedder.embedding_table.weight")
    if missing := [name for name in needed if name not in stored]:
        raise ValueError(f"the file holds no {missing[0]}; it is no JiT checkpoint")
    bottleneck, channels, patch, _ = stored["x_embedder.proj1.weight"].shape
    width, tokens = stored["pos_embed"].shape[2], stored["pos_embed"].shape[1]
    depth = 1 + max(int(m[1]) for n in stored if (m := re.match(r"blocks\.(\d+)\.", n)))
    context = stored["in_context_posemb"].shape[1] if "in_context_posemb" in stored else 0
    size = SIZES.get((width, depth), (None, None))
    # A head's width is in the norms of its queries.
    heads = width // stored["blocks.0.attn.q_norm.weight"].shape[0]
    start = said.take("in_context_start", size[1]) if context else 0
    if start is None:
        raise ValueError(
            f"a JiT of width {width} and depth {depth} is none of the published sizes, and the "
            "block that the class's tokens enter before is in no tensor; say in_context_start=N"
        )
    side = math.isqrt(tokens)
    scale = said.take("noise_scale") or arguments.get("noise_scale")
    if scale is None:
        scale = 2.0 if side * patch >= 512 else 1.0
    said.check_empty("jit")
    config = {
        "noise_scale": float(scale),
        "input_size": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": _ratio(stored["blocks.0.mlp.w3.weight"].shape[1], width),
        "num_classes": stored["y_embedder.embedding_table.weight"].shape[0] - 1,
        "bottleneck_dim": bottleneck,
        "in_context_len": context,
        "in_context_start": start,
    }
    return Found(
        format="jit",
        kind="jit",
        config=config,
        state={f"net.{name}": value for name, value in stored.items()},
        shape=(channels, side * patch, side * patch),
        num_classes=config["num_classes"],
        guided_interval=(0.0, 0.9),  # its own time runs the other way, from 0.1 to 1
        open_interval=True,
        conventions={
            "prediction": "clean image",
            "path": f"t x0 + (1 - t) {scale:g} eps",
            "time": "0 noise, 1 data",
            "heads": str(heads),
        },
    )


def _ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose two thirds, cut to whole numbers twice, are the hidden width."""
    for quarters in range(1, 64):
        if int(int(width * quarters / 4) * 2 / 3) == hidden:
            return quarters / 4
    raise ValueError(f"the MLP has {hidden} features, which no ratio of {width} gives")
