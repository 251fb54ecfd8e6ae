"""The stage `checkpoint`: a network trained elsewhere, as if a node of this run had trained it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Place, Result, Settings, Stage, resolve, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.network import TrainedModel, TrainedNetwork, checkpoint_name
from stages.methods import table
from stages.settings.scans import ScannedOptions

FACTS = "model.json"
NEEDED = ("network", "config", "method", "steps", "shape", "num_classes")


class CheckpointSettings(Settings):
    """The stage's settings."""

    path: Place = unkeyed(
        description="folder laid out as a training's artifact: model.json and "
        "checkpoints/step-NNNNNN.safetensors; its contents, not its place, enter keys"
    )
    setting: str = unkeyed(
        "stein.checkpoint", description="the setting that path was given in, for messages"
    )
    scanned: tuple[ScannedOptions, ...] = unkeyed(
        (),
        description="scans of this network that are to come: those that cannot be made are refused "
        "here",
    )


def sources_of(settings: CheckpointSettings) -> list[Path]:
    """The files to read; UsageError where one is absent, which is before any work."""
    folder = Path(settings.path)
    if not (folder / FACTS).is_file():
        raise UsageError(
            f"{settings.setting}={settings.path} holds no {FACTS}; set it to a folder laid out as "
            f"a training's artifact, with {FACTS} and {checkpoint_name(1)}"
        )
    weights = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    if not weights:
        raise UsageError(f"{settings.setting}={settings.path} holds no {checkpoint_name(1)}")
    return [folder / FACTS, *weights]


def run(context: Context) -> Result:
    """Check that the network can be built and fits the data, and copy it."""
    facts_file, *files = sources_of(context.settings)
    with raised_as(StageError):
        facts = _facts(facts_file, context.inputs["data"])
    facts["class_counts"] = context.inputs["data"].load().class_counts
    (context.path / "checkpoints").mkdir()
    for file in files:
        shutil.copyfile(file, context.path / "checkpoints" / file.name)
    TrainedNetwork.describe(context.path, facts)
    model = TrainedModel.of(context.path, facts)
    for step in model.steps:
        try:
            model.network(step)
        except Exception as error:  # every way in which weights do not fit
            raise StageError(
                f"{checkpoint_name(step)} does not hold the weights of the network that "
                f"{FACTS} describes ({_reason(error)}); mend the config there"
            ) from error
    if context.settings.scanned:
        scanned, data = context.settings.scanned, context.inputs["data"].load()
        with raised_as(StageError):
            resolve(table.SCAN_CHECK)(scanned, model, model.network(), data)
    return Result(metrics={"step": model.steps[-1]})


def _reason(error: Exception) -> str:
    """The first difference, and how many more there are: torch lists them under a heading."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not rest:
        return first
    more = f", and {len(rest) - 1} more" if len(rest) > 1 else ""
    return rest[0].rstrip(".") + more


def _facts(file: Path, data: Data) -> dict[str, Any]:
    """The description of the network. Raises ValueError where it is not one for these data."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    missing = [name for name in NEEDED if name not in facts]
    if missing:
        raise ValueError(f"{file} lacks '{missing[0]}'; it needs {', '.join(NEEDED)}")
    if facts["network"] not in table.NETWORKS:
        known = ", ".join(table.NETWORKS)
        raise ValueError(f"{file} names the network '{facts['network']}', unknown here ({known})")
    ours = {"shape": data.description["shape"], "num_classes": data.load().num_classes}
    for name, value in ours.items():
        if facts[name] != value:
            raise ValueError(
                f"{file} has {name} {facts[name]}, the data set {value}; choose the data set that "
                "the network was trained on"
            )
    kept = {int(path.stem.partition("-")[2]) for path in file.parent.glob("checkpoints/step-*")}
    absent = sorted(set(facts["steps"]) - kept)
    if absent or not facts["steps"]:
        raise ValueError(f"{file} lists step {absent[:1] or 'none'}, whose weights are not there")
    return facts


STAGE = Stage(
    name="checkpoint",
    settings=CheckpointSettings,
    output=TrainedNetwork,
    run="stages.training.checkpoint:run",
    inputs={"data": Input(Data)},
    sources=lambda settings: table.NETWORKS.values(),
    files=sources_of,
    metrics=lambda node: ("step",),
)
