"""Toy stages: `number` makes one, `apply` maps it, `total` adds several."""

import json
import os
import signal
import time
from pathlib import Path

import pydantic

from pipeline.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import Input, Result, Settings, Stage, resolve

FUNCTIONS = {"double": "tests.toy.arithmetic:double", "square": "tests.toy.arithmetic:square"}


class Number(Artifact):
    """One number."""

    def load(self):
        return json.loads((self.path / "number.json").read_text())


class NumberSettings(Settings):
    value: int = pydantic.Field(1, ge=0, le=1000, description="the number")
    seconds: float = pydantic.Field(
        0.0, ge=0, description="how long it takes", json_schema_extra={"keyed": False}
    )
    fail: bool = pydantic.Field(False, description="fail instead")
    steps: int = pydantic.Field(0, ge=0, description="count to this, keeping state")
    level: float = pydantic.Field(0.0, description="added to the loss")
    marks: str = pydantic.Field(
        "", description="file that gets a line an execution", json_schema_extra={"keyed": False}
    )
    die_once: str = pydantic.Field(
        "",
        description="kill the worker unless this file exists",
        json_schema_extra={"keyed": False},
    )


class ApplySettings(Settings):
    function: str = pydantic.Field("double", description="what to apply")
    shards: int = pydantic.Field(1, ge=1, description="shards", json_schema_extra={"keyed": False})
    seconds: float = pydantic.Field(
        0.0, ge=0, description="how long a shard takes", json_schema_extra={"keyed": False}
    )
    marks: str = pydantic.Field(
        "",
        description="file that gets a line from each shard",
        json_schema_extra={"keyed": False},
    )


class TotalSettings(Settings):
    offset: float = pydantic.Field(0.0, description="added to the total")


def _mark(settings, node):
    if settings.marks:
        with Path(settings.marks).open("a") as stream:
            stream.write(f"{node}\n")


def run_number(context):
    settings = context.settings
    _mark(settings, context.node)
    if settings.die_once and not Path(settings.die_once).exists():
        Path(settings.die_once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.fail:
        raise StageError(f"value {settings.value} was told to fail")
    state = context.work.path / "step"
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, settings.steps):
        time.sleep(settings.seconds / settings.steps)
        temporary = state.with_suffix(".new")
        temporary.write_text(str(step + 1))
        temporary.replace(state)
        context.progress(step + 1, settings.steps, "steps")
        context.points("step", [("loss", step, 1 / (step + 1) + settings.level)])
    if not settings.steps:
        time.sleep(settings.seconds)
    print(f"made {settings.value}, counted from {first}")
    (context.path / "number.json").write_text(json.dumps(settings.value))
    curve = [("loss", step, 1 / (step + 1) + settings.level) for step in range(settings.steps)]
    return Result(metrics={"value": settings.value}, curves=curve, abscissa="step")


def apply_shard(index, value, settings):
    print(f"shard {index}")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    begun = time.time()
    time.sleep(settings.seconds)
    _mark(settings, f"{index} {gpus} {os.getpid()} {begun} {time.time()}")
    return resolve(FUNCTIONS[settings.function])(value)


def run_apply(context):
    settings, value = context.settings, context.inputs["number"].load()
    shards = context.map(apply_shard, range(settings.shards), value, settings)
    assert len(set(shards)) == 1
    (context.path / "number.json").write_text(json.dumps(shards[0]))
    return Result(metrics={"value": shards[0]})


def run_total(context):
    values = {name: number.load() for name, number in context.inputs["numbers"].items()}
    total = sum(values.values()) + context.settings.offset
    (context.path / "number.json").write_text(json.dumps(total))
    return Result(metrics={"value": total})


NUMBER = Stage(
    "number",
    NumberSettings,
    Number,
    "tests.toy.stages:run_number",
    metrics=lambda node: ("value", "loss") if node.settings.steps else ("value",),
    curve_steps=lambda node: node.settings.steps,
)
APPLY = Stage(
    "apply",
    ApplySettings,
    Number,
    "tests.toy.stages:run_apply",
    fans_out=True,
    inputs={"number": Input(Number)},
    sources=lambda settings: [FUNCTIONS[settings.function]],
    metrics=lambda node: ("value",),
)
TOTAL = Stage(
    "total",
    TotalSettings,
    Number,
    "tests.toy.stages:run_total",
    inputs={"numbers": Input(Number, many=True)},
    metrics=lambda node: ("value",),
)
