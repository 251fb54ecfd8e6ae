"""Folders of diffusers: a pipeline's (model_index.json) or a network's own, local files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.networks.found import Conventions, Found

PARTS = {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def recognised(folder: Path) -> bool:
    """Whether a folder is laid out as diffusers saves pipelines and networks."""
    return (folder / "model_index.json").is_file() or (folder / CONFIG).is_file()


def network_folder(folder: Path) -> Path:
    """Where the network of a pipeline lies; the folder itself where it is a network's own."""
    return next((folder / part for part in PARTS if (folder / part).is_dir()), folder)


def files(folder: Path) -> list[Path]:
    """The files that a network is read from."""
    inner = network_folder(folder)
    return [inner / CONFIG, inner / WEIGHTS, folder / "scheduler" / "scheduler_config.json"]


def read(folder: Path, said: Conventions) -> Found:
    """The network of a folder, with its scheduler's noise levels.

    Raises ValueError where a file is missing, for other networks, and for weights that are not
    safetensors.
    """
    from stages.networks import torch_files

    config_file, weights, scheduler_file = files(folder)
    config, scheduler = _json(config_file), _json(scheduler_file)
    part = config.get("_class_name")
    if part not in PARTS.values():
        raise ValueError(f"{config_file} is of a {part}; {' and '.join(PARTS.values())} are read")
    if not weights.is_file():
        raise ValueError(
            f"{weights} is not there; save the network with save_pretrained, which writes "
            "safetensors (.bin files are not read)"
        )
    clip = said.take("clip_sample", False)
    prediction = said.take("prediction")
    if prediction is not None:
        scheduler = scheduler | {"prediction_type": prediction}
    said.check_empty("diffusers")
    channels, classes = config["in_channels"], config.get("num_class_embeds") or 0
    null = None
    if part == "DiTTransformer2DModel":
        classes = config.get("num_embeds_ada_norm") or 0
        null = classes  # the row behind the classes
    stored, _ = torch_files.read(weights)
    side = config["sample_size"]
    limit = float(scheduler.get("clip_sample_range", 1.0)) if clip else None
    levels = scheduler.get("beta_schedule", "linear path")
    words = {
        "network": part,
        "prediction": scheduler.get("prediction_type", "flow"),
        "levels": f"{scheduler.get('_class_name')}, {levels}",
        "clip_sample": "on" if clip else "off",
    }
    if part == "DiTTransformer2DModel":
        words["time"] = "features at i/127 and norms of 1e-5, as diffusers; the original has i/128"
    return Found(
        format="diffusers",
        kind="diffusers",
        config={
            "part": part,
            "arguments": config,
            "scheduler": scheduler,
            "channels": channels,
            "null_class": null,
            "clip": limit,
        },
        state={f"call.model.{name}": value for name, value in stored.items()},
        shape=(channels, side, side),
        num_classes=classes,
        null_class=not classes or null is not None,
        conventions=words,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); give the folder that save_pretrained wrote, with "
            "its scheduler"
        ) from error
