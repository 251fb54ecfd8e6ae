"""Folders of diffusers: a pipeline's (model_index.json) or a network's own, local files only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.networks.found import Conventions, Found

PARTS = {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}
# As folders name the same network that were saved before it had a class of its own.
FORMER_NAMES = {"Transformer2DModel": "DiTTransformer2DModel"}
CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DESCRIBED = dict.fromkeys(WEIGHTS, CONFIG)
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
FLOW = "FlowMatchEulerDiscreteScheduler"


def recognised(folder: Path) -> bool:
    """Whether a folder is laid out as diffusers saves pipelines and networks."""
    return (folder / "model_index.json").is_file() or (folder / CONFIG).is_file()


def network_folder(folder: Path) -> Path:
    """Where the network of a pipeline lies; the folder itself where it is a network's own, or the
    pipeline has one folder for all."""
    return next((folder / part for part in PARTS if (folder / part).is_dir()), folder)


def files(folder: Path) -> list[Path]:
    """The files that a network is read from. Of weights safetensors are preferred; a scheduler is
    looked for in the pipeline, beside the network, and in its parent's pipeline."""
    inner = network_folder(folder)
    weights = [inner / name for name in WEIGHTS]
    schedulers = [
        *(folder / "scheduler" / SCHEDULER, folder / SCHEDULER),
        folder.parent / "scheduler" / SCHEDULER,
    ]
    return [inner / CONFIG, _first(weights), _first(schedulers)]


def _first(paths: list[Path]) -> Path:
    return next((path for path in paths if path.is_file()), paths[0])


def read(folder: Path, said: Conventions) -> Found:
    """The network of a folder, with its scheduler's noise levels.

    Raises ValueError where a file is missing, for other networks and schedulers, and for
    conventions that contradict them.
    """
    from stages.networks import torch_files

    config_file, weights, scheduler_file = files(folder)
    config, scheduler = _json(config_file), _json(scheduler_file)
    part = str(config.get("_class_name"))
    part = FORMER_NAMES.get(part, part)
    _check_read(config_file, part, config)
    scheduler = _asked(scheduler_file, scheduler, said)
    clip = said.take("clip_sample", False)
    shape = _shape(config_file, config, said)
    said.check_empty("diffusers")
    flow = scheduler["prediction_type"] == "flow"
    if clip and flow:
        raise ValueError("clip_sample and a flow contradict each other; leave clip_sample out")
    if not weights.is_file():
        raise ValueError(f"{weights} is not there; save the network with save_pretrained")
    stored, _ = torch_files.read(weights)
    classes = config.get("num_class_embeds") or 0
    null = None
    words = {
        "network": part,
        "prediction": scheduler["prediction_type"],
        "levels": f"{scheduler.get('_class_name')}, "
        + ("linear path" if flow else str(scheduler.get("beta_schedule"))),
        "clip_sample": "on" if clip else "off",
    }
    if part == PARTS["transformer"]:
        classes = config.get("num_embeds_ada_norm") or 0
        null = classes  # the row behind the classes
        words["time"] = "features at i/127 and norms of 1e-5, as diffusers; the original has i/128"
    return Found(
        format="diffusers",
        kind="diffusers",
        config={
            "part": part,
            "arguments": config,
            "scheduler": scheduler,
            "channels": shape[0],
            "null_class": null,
            "clip": float(scheduler.get("clip_sample_range", 1.0)) if clip else None,
        },
        state={f"call.model.{name}": value.float() for name, value in stored.items()},
        shape=shape,
        num_classes=classes,
        null_class=not classes or null is not None,
        conventions=words,
    )


def _check_read(file: Path, part: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for a network that is not read here."""
    if part not in PARTS.values():
        raise ValueError(f"{file} is of a {part}; {' and '.join(PARTS.values())} are read")
    if config.get("in_channels") is None:
        raise ValueError(f"{file} does not say in_channels")
    plain = {"time_embedding_type": "positional", "class_embed_type": None}
    for name, value in plain.items():
        if config.get(name, value) not in (value, None):
            raise ValueError(
                f"{file} has {name}={config[name]}; only {value or 'classes by their number'} is "
                "read"
            )


def _asked(file: Path, scheduler: dict[str, Any], said: Conventions) -> dict[str, Any]:
    """The scheduler with the prediction in force. Raises ValueError for one without noise levels of
    its own, and for a prediction that contradicts it."""
    kind = str(scheduler.get("_class_name"))
    asked = said.take("prediction", choices=PREDICTIONS)
    if kind == FLOW:
        if asked not in (None, "flow"):
            raise ValueError(f"prediction={asked} and a {kind} contradict each other; leave it out")
        return scheduler | {"prediction_type": "flow"}
    prediction = asked or str(scheduler.get("prediction_type") or PREDICTIONS[0])
    prediction = "flow" if prediction == "flow_prediction" else prediction
    if prediction not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise ValueError(f"{file} has prediction_type={prediction}; {known} are read")
    if prediction != "flow" and not {"beta_schedule", "trained_betas"} & scheduler.keys():
        raise ValueError(
            f"{file} is of a {kind}, which has no betas; those of DDPM's kind are read"
        )
    return scheduler | {"prediction_type": prediction}


def _shape(file: Path, config: Mapping[str, Any], said: Conventions) -> tuple[int, int, int]:
    """(C, H, W) of an image, as the file says or else a person."""
    size, shape = config.get("sample_size"), said.take("shape")
    if shape is None and size is None:
        raise ValueError(
            f"{file} does not say sample_size; say shape=(C, H, W) of the images it was trained on"
        )
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    found = (config["in_channels"], *sides) if shape is None else tuple(shape)
    if len(found) != 3 or found[0] != config["in_channels"]:
        raise ValueError(f"shape {found} does not fit {config['in_channels']} channels")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); give the folder that save_pretrained wrote, with "
            "its scheduler"
        ) from error
