"""The stage `checkpoint`: a network trained elsewhere, as if a node of this run had trained it.

Files of any format become our artifact, on which everything runs that runs on a trained network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, resolve, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.network import GUIDE, TrainedModel, TrainedNetwork, checkpoint_name
from stages.methods import table
from stages.networks.formats import BENCH_FACTS, BENCH_NEEDED
from stages.networks.found import digest
from stages.settings.elsewhere import NetworkOptions, NetworkPlace
from stages.settings.scans import ScannedOptions

if TYPE_CHECKING:
    from stages.networks.reading import Read


class CheckpointSettings(NetworkOptions):
    """The stage's settings."""

    path: NetworkPlace = unkeyed(
        description="file, folder or module:function; its contents, not its place, enter keys"
    )
    setting: str = unkeyed(
        "networks.path", description="the setting that path was given in, for messages"
    )
    scanned: tuple[ScannedOptions, ...] = unkeyed(
        (),
        description="scans of this network that are to come: those that cannot be made are refused "
        "here",
    )


def sources_of(settings: CheckpointSettings) -> list[Path]:
    """The files to read; UsageError where one is absent, which is before any work."""
    return settings.files(settings.setting)


def run(context: Context) -> Result:
    """Read the network, check that it fits the data, if there are any, and write it as a training
    would."""
    settings: CheckpointSettings = context.settings
    files, data = sources_of(settings), context.inputs.get("data")
    (context.path / "checkpoints").mkdir()
    with raised_as(StageError):
        if files[0].name == BENCH_FACTS:
            model = _copied(context.path, settings, files[0], data)
        else:
            model = _converted(context, settings, data)
    if settings.scanned:
        scanned = settings.scanned
        with raised_as(StageError):
            resolve(table.SCAN_CHECK)(scanned, model, model.network(), data.load())
    return Result(metrics={"step": model.steps[-1]})


def _converted(context: Context, settings: CheckpointSettings, data: Data | None) -> TrainedModel:
    """A network of the field's formats under our names and layout."""
    from stages.networks.reading import read

    given = read(settings.path, settings.format, **settings.conventions)
    facts = given.facts | {"steps_before": 0, "digest": given.digest}
    facts["class_counts"] = _class_counts(data)
    _check_fits(settings.path, facts, data)
    _try_out(settings, given, facts)
    _write(context.path, given)
    if given.guide is not None:
        _write(context.path / GUIDE, given.guide)
    TrainedNetwork.describe(context.path, facts)
    context.log(f"{facts['format']}, SHA-256 {facts['digest']}")
    for name, words in facts["conventions"].items():
        context.log(f"{name}: {words}")
    return TrainedModel.of(context.path, facts)


def _try_out(settings: CheckpointSettings, given: Read, facts: Mapping[str, Any]) -> None:
    """Raise ValueError for a function of the user's own whose denoiser does not answer: here, and
    not in every node that samples."""
    if facts["format"] == "python":
        try:
            given.module().try_out(facts["shape"], facts["num_classes"])
        except ValueError as error:
            raise ValueError(f"{settings.setting}={settings.path}: {error}") from error


def _write(folder: Path, given: Read) -> None:
    from safetensors.torch import save_file

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    state = given.module().state_dict()
    # Copies: a file keeps no memory that tensors share.
    save_file({k: v.clone().contiguous() for k, v in state.items()}, folder / checkpoint_name(0))


def _copied(
    folder: Path, settings: CheckpointSettings, facts_file: Path, data: Data | None
) -> TrainedModel:
    """A folder laid out as a training's artifact, all its checkpoints or the one asked for."""
    facts = _facts(facts_file, data)
    if settings.step is not None:
        if settings.step not in facts["steps"]:
            kept = ", ".join(map(str, facts["steps"]))
            raise ValueError(
                f"networks.step={settings.step}: no such checkpoint was kept (there are {kept})"
            )
        facts = facts | {"steps": [settings.step]}
    for step in facts["steps"]:
        name = checkpoint_name(step)
        shutil.copyfile(facts_file.parent / name, folder / name)
    if (facts_file.parent / GUIDE).is_dir():
        shutil.copytree(facts_file.parent / GUIDE, folder / GUIDE)
    named = {"format": "bench", "digest": digest(sources_of(settings))}
    named["class_counts"] = _class_counts(data)
    TrainedNetwork.describe(folder, {**facts, **named})
    model = TrainedModel.of(folder, facts)
    for step in model.steps:
        try:
            model.network(step)
        except Exception as error:  # every way in which weights do not fit
            raise StageError(
                f"{checkpoint_name(step)} does not hold the weights of the network that "
                f"{BENCH_FACTS} describes ({_reason(error)}); mend the config there"
            ) from error
    return model


def _reason(error: Exception) -> str:
    """The first difference, and how many more there are: torch lists them under a heading."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not rest:
        return first
    more = f", and {len(rest) - 1} more" if len(rest) > 1 else ""
    return rest[0].rstrip(".") + more


def _facts(file: Path, data: Data | None) -> dict[str, Any]:
    """The description of the network. Raises ValueError where it is not one for these data."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    missing = [name for name in BENCH_NEEDED if name not in facts]
    if missing:
        raise ValueError(f"{file} lacks '{missing[0]}'; it needs {', '.join(BENCH_NEEDED)}")
    known = {**table.NETWORKS, **table.PUBLISHED}
    if facts["network"] not in known:
        raise ValueError(
            f"{file} names the network '{facts['network']}', unknown here ({', '.join(known)})"
        )
    _check_fits(str(file), facts, data)
    kept = {int(path.stem.partition("-")[2]) for path in file.parent.glob("checkpoints/step-*")}
    absent = sorted(set(facts["steps"]) - kept)
    if absent or not facts["steps"]:
        raise ValueError(f"{file} lists step {absent[:1] or 'none'}, whose weights are not there")
    return facts


def _class_counts(data: Data | None) -> Sequence[int]:
    return () if data is None else data.load().class_counts


def _check_fits(named: str, facts: Mapping[str, Any], data: Data | None) -> None:
    """Raise ValueError where a network was trained on other data; one without classes fits all."""
    if data is None:
        return
    ours = {"shape": data.description["shape"], "num_classes": data.load().num_classes}
    for name, value in ours.items():
        if facts[name] != value and not (name == "num_classes" and not facts[name]):
            raise ValueError(
                f"{named} has {name} {facts[name]}, the data set {value}; choose the data set that "
                "the network was trained on"
            )


STAGE = Stage(
    name="checkpoint",
    settings=CheckpointSettings,
    output=TrainedNetwork,
    run="stages.training.checkpoint:run",
    inputs={"data": Input(Data, optional=True)},
    sources=lambda settings: (
        *table.NETWORKS.values(),
        *table.PUBLISHED.values(),
        "stages.networks.reading:read",
    ),
    files=sources_of,
    metrics=lambda node: ("step",),
    estimate="stages.settings.costs:checkpoint",
)
