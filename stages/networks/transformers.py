"""SiT, DiT, REPA and REG checkpoints as our own SiT: the weights by their names and layout.

Sources: willisma/SiT, facebookresearch/DiT, sihyun-yu/REPA, Martinser/REG (models.py, train.py).
SiT's time runs the other way; cos and sin of 1 - t are turned into those of t by the weights that
read them, and the head is negated, so that its files are ordinary networks here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.networks.found import Conventions, Found

# Heads are in no tensor; published sizes are known by width and depth.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
MLP_RATIO = 4.0
PUBLISHED_DEPTH = 8  # the block that REPA and REG align, unless it is said
NEEDED = ("pos_embed", "x_embedder.proj.weight", "y_embedder.embedding_table.weight")
NEEDED += ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")
# Of t, 1 being noise, where the codes' own commands guide.
INTERVALS = {"repa": (0.0, 0.7), "reg": (0.0, 0.85)}
SCALAR_CHANNELS = 3  # SiT's and DiT's guidance leaves further channels as they are

RENAMED = {
    "t_embedder.mlp.0": "time_embedding.linear1",
    "t_embedder.mlp.2": "time_embedding.linear2",
    "y_embedder.embedding_table": "label_embedding",
    "final_layer.adaLN_modulation.1": "final_modulation",
    "cls_projectors2": "class_embedding.0",
    "wg_norm": "class_embedding.1",
    "final_layer.linear_cls": "class_head",
}
OF_BLOCK = {
    "attn.qkv": "qkv",
    "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm",
    "attn.proj": "attention_out",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "adaLN_modulation.1": "modulation",
}


def recognised(names: Mapping[str, Tensor]) -> str:
    """The format of a state dict; "" where it is none of these, "sit or dit" where the file
    cannot tell."""
    if "wg_norm.weight" in names:
        return "reg"
    if "projectors.0.0.weight" in names:
        return "repa"
    return "sit or dit" if "blocks.0.attn.qkv.weight" in names else ""


def read(
    format: str, stored: dict[str, Tensor], arguments: Mapping[str, Any], said: Conventions
) -> Found:
    """A network of format sit, dit, repa or reg.

    Raises ValueError where tensors are missing, left over or of another shape, where heads are not
    known, and for conventions that contradict the file.
    """
    stored, aligned = _current_names(stored)
    config, has_null = _sizes(format, stored, arguments, said)
    channels, patch = config["channels"], config["patch_size"]
    state = _weights(stored, channels, patch)
    if not has_null:
        table = state["label_embedding.weight"]
        state["label_embedding.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
    words = {"heads": str(config["num_heads"])}
    if format in ("repa", "reg"):
        hidden, teacher = stored["projectors.0.4.weight"].shape[::-1]
        at = said.take("encoder_depth") or arguments.get("encoder_depth") or aligned
        at = at or min(PUBLISHED_DEPTH, config["depth"])
        config |= {"teacher_dim": teacher, "projector_width": hidden, "alignment_depth": at}
        words["aligned"] = f"after block {at}"
        if format == "reg":
            config["class_token_dim"] = stored["cls_projectors2.weight"].shape[1]
    kind, whole, state, conventions = _conventions(format, config, state, arguments, said)
    said.check_empty(format)
    return Found(
        format=format,
        kind=kind,
        config=whole,
        state=state,
        shape=(channels, *config["image_size"]),
        num_classes=config["num_classes"],
        method={"repa": "repa", "reg": "reg", "sit": "sit"}.get(format, "unknown"),
        guided_channels=SCALAR_CHANNELS if format in ("sit", "dit") and channels > 3 else None,
        null_class=has_null,
        guided_interval=INTERVALS.get(format, (0.0, 1.0)),
        conventions=words | conventions,
    )


def _sizes(
    format: str, stored: Mapping[str, Tensor], arguments: Mapping[str, Any], said: Conventions
) -> tuple[dict[str, Any], bool]:
    """Keyword arguments of the network, from its tensors' shapes; whether it has a null class."""
    for name in NEEDED:
        if name not in stored:
            raise ValueError(f"the file holds no {name}; it is no {format} checkpoint")
    width, channels, patch, _ = stored["x_embedder.proj.weight"].shape
    depth = 1 + max(int(m[1]) for n in stored if (m := re.match(r"blocks\.(\d+)\.", n)))
    outputs = stored["final_layer.linear.weight"].shape[0] / patch**2
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"the final layer gives {outputs:g} values a pixel, and {channels} channels, or "
            f"{2 * channels} with a variance, are expected"
        )
    tokens = stored["pos_embed"].shape[1] - (format == "reg")
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"pos_embed has {tokens} rows, which are no square of patches")
    rows = stored["y_embedder.embedding_table.weight"].shape[0]
    asked = said.take("num_classes")
    num_classes = arguments.get("num_classes") if asked is None else asked
    if num_classes not in (None, rows, rows - 1):
        where = "num_classes" if asked is not None else "the file's own argument num_classes"
        raise ValueError(
            f"{where} is {num_classes}, and its table of classes has {rows} rows; there must be as "
            "many, or one more for the null class"
        )
    has_null = num_classes != rows
    config: dict[str, Any] = {
        "image_size": [side * patch, side * patch],
        "channels": channels,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": _heads(stored, width, depth, arguments, said),
        "num_classes": rows - has_null,
    }
    ratio = stored["blocks.0.mlp.fc1.weight"].shape[0] / width
    if ratio != MLP_RATIO:
        config["mlp_ratio"] = ratio
    if "blocks.0.attn.q_norm.weight" in stored:
        config["qk_norm"] = True
    return config, has_null


def _heads(
    stored: Mapping[str, Tensor],
    width: int,
    depth: int,
    arguments: Mapping[str, Any],
    said: Conventions,
) -> int:
    """Attention heads, by what is said, by the norms of queries, or as published."""
    normed = stored.get("blocks.0.attn.q_norm.weight")
    seen = None if normed is None else width // len(normed)
    asked = said.take("num_heads")
    heads = asked or seen or arguments.get("num_heads") or HEADS.get((width, depth))
    if heads is None:
        raise ValueError(
            f"a network of width {width} and depth {depth} is none of the published sizes, and the "
            "number of attention heads is in no tensor; say num_heads=N"
        )
    if width % heads or (seen is not None and heads != seen):
        fits = f"it has {seen}" if seen else "the one must divide the other"
        raise ValueError(f"num_heads={heads} and a width of {width} contradict each other: {fits}")
    return heads


def _current_names(stored: dict[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """REPA's first files counted the blocks behind the aligned one anew, as decoder_blocks: under
    today's names, and the aligned block where they tell it."""
    legacy = [name for name in stored if name.startswith("decoder_blocks.")]
    if not legacy:
        return stored, None
    first = 1 + max(int(m[1]) for n in stored if (m := re.match(r"blocks\.(\d+)\.", n)))

    def renamed(name: str) -> str:
        found = re.match(r"decoder_blocks\.(\d+)\.(.*)", name)
        return f"blocks.{int(found[1]) + first}.{found[2]}" if found else name

    return {renamed(name): value for name, value in stored.items()}, first


def _weights(stored: Mapping[str, Tensor], channels: int, patch: int) -> dict[str, Tensor]:
    """Under our names, in our layout, float32."""
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        value, (owner, _, kind) = value.float(), name.rpartition(".")
        if name == "pos_embed":
            state["positions"] = value[0].clone()
        elif owner == "x_embedder.proj":
            # Ours flattens a patch as row, column, channel.
            flat = value if kind == "bias" else value.permute(0, 2, 3, 1).flatten(1)
            state[f"patch_embedding.{kind}"] = flat.contiguous()
        elif owner == "final_layer.linear":
            # Of 2 C outputs a patch's second half is a variance, or unused.
            outputs = value.shape[0] // patch**2
            kept = value.view(patch**2, outputs, *value.shape[1:])[:, :channels]
            state[f"final_head.{kind}"] = kept.flatten(0, 1).contiguous()
        elif found := re.match(r"projectors\.(\d+)\.(\d+)$", owner):
            if found[1] == "0":  # further projectors are of further encoders
                state[f"projector.{found[2]}.{kind}"] = value
        elif found := re.match(r"blocks\.(\d+)\.(.+)$", owner):
            if found[2] not in OF_BLOCK:
                raise ValueError(f"the file holds {name}, which no network of this format has")
            state[f"blocks.{found[1]}.{OF_BLOCK[found[2]]}.{kind}"] = value
        elif owner in RENAMED:
            state[f"{RENAMED[owner]}.{kind}"] = value
        else:
            raise ValueError(f"the file holds {name}, which no network of this format has")
    return state


def _conventions(
    format: str,
    config: dict[str, Any],
    state: dict[str, Tensor],
    arguments: Mapping[str, Any],
    said: Conventions,
) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Kind, arguments and weights under the file's path and prediction."""
    if format == "dit":
        words = {"prediction": "noise of DDPM's linear betas, 1000 steps; the variance left out"}
        inner = {f"call.{name}": value for name, value in state.items()}
        return "dit", {"channels": config["channels"], "network": config}, inner, words
    known = {"linear": "linear", "gvp": "cosine", "cosine": "cosine", "vp": "vp"}
    path = str(said.take("path") or arguments.get("path_type") or "linear").lower()
    if path not in known:
        raise ValueError(f"path is '{path}'; it must be one of linear, cosine (gvp), vp")
    names = {"v": "velocity", "velocity": "velocity", "score": "score", "noise": "noise"}
    prediction = str(said.take("prediction") or arguments.get("prediction") or "velocity")
    if prediction not in names:
        raise ValueError(f"prediction is '{prediction}'; it must be velocity, noise or score")
    path, prediction = known[path], names[prediction]
    words = {"path": path, "prediction": prediction, "time": "0 data, 1 noise, as here"}
    if format == "sit":
        state, words["time"] = _turned(state, negate=prediction == "velocity"), "0 noise, 1 data"
    if (path, prediction) == ("linear", "velocity"):
        return "sit", config, state, words
    if format == "reg":
        raise ValueError(f"a class token on path {path} with prediction {prediction} is not known")
    whole = {"path": path, "prediction": prediction, "network": config}
    return "interpolant", whole, {f"call.{k}": v for k, v in state.items()}, words


def _turned(state: dict[str, Tensor], negate: bool) -> dict[str, Tensor]:
    """The same network asked at 1 - t: cos(f - a) and sin(f - a) of the features' angles a = f t
    are sums of cos a and sin a. Its velocity is dx/dt of the other direction."""
    name = "time_embedding.linear1.weight"
    cosines, sines = state[name].double().chunk(2, dim=1)
    steps = torch.arange(cosines.shape[1], dtype=torch.float32)
    # The frequencies as the network computes them, in float32.
    frequencies = torch.exp(-math.log(10_000) / cosines.shape[1] * steps).double()
    c, s = frequencies.cos(), frequencies.sin()
    turned = torch.cat([cosines * c + sines * s, cosines * s - sines * c], dim=1)
    state = state | {name: turned.float()}
    if negate:
        state |= {k: -state[k] for k in ("final_head.weight", "final_head.bias")}
    return state
