"""How a stage is declared: typed settings and artifacts in, one typed artifact out.

A stage module holds its `Settings`, its `Artifact` and its `Stage` at the top, which import
nothing heavy, and a run function `run(context) -> Result` that imports torch and the mathematics
inside.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import pydantic

from pipeline.artifact import Artifact
from pipeline.shown import Shown


class Settings(pydantic.BaseModel):
    """Base of all settings: frozen, unknown keys refused, numbers finite, each field described.

    A field declared with `unkeyed` does not change results and so does not enter an artifact's key
    (how many shards run at once, say).
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    def revised(self, **changes: Any) -> Settings:
        """A validated copy with some fields changed."""
        return type(self).model_validate(self.model_dump() | changes)

    def shared_with(self, kind: type[Settings]) -> dict[str, Any]:
        """The values of the fields that `kind` has too."""
        names = kind.model_fields.keys()
        return {name: getattr(self, name) for name in type(self).model_fields if name in names}

    def keyed(self) -> dict[str, Any]:
        """The fields that results depend on, as plain JSON data."""
        return _keyed(self)


unkeyed = functools.partial(pydantic.Field, json_schema_extra={"keyed": False})
"""`pydantic.Field` of a setting that results do not depend on."""


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


Place = Annotated[str, pydantic.AfterValidator(_absolute)]
"""The type of a setting that says where something lies: made absolute where it is given, since
workers may run in another folder."""


def _keyed(model: pydantic.BaseModel) -> dict[str, Any]:
    dump = model.model_dump(mode="json")
    for name, info in type(model).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("keyed") is False:
            del dump[name]
        elif isinstance(value := getattr(model, name), pydantic.BaseModel):
            dump[name] = _keyed(value)
    return dump


class Resources(Settings):
    """What a node asks of the machine or cluster."""

    cpus: float = pydantic.Field(1, ge=0, description="CPU cores a task reserves")
    gpus: float = pydantic.Field(0, ge=0, description="GPUs a task reserves (fractions allowed)")
    threads: int = pydantic.Field(
        1, ge=1, le=256, description="threads of torch and BLAS; part of the artifact's key"
    )
    memory_gib: float = unkeyed(
        0,
        ge=0,
        description="memory a task reserves, and each of its shards or workers; 0 is no matter",
    )
    timeout_seconds: float | None = pydantic.Field(
        None, gt=0, description="a node that runs longer is stopped and fails"
    )
    retries: int = pydantic.Field(
        3, ge=0, le=100, description="retries after a lost worker or machine (not after errors)"
    )


@dataclass(frozen=True)
class Input:
    """A slot for one artifact of `type`, or for any number of them by node name (`many`)."""

    type: type[Artifact]
    many: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Workers:
    """Processes that a node starts by itself, beside its own, and waits for.

    Args:
        count: how many there are at the least.
        cpus, gpus: what all of these reserve together.
        setting: the stage's setting that says how many.
    """

    count: int
    cpus: float
    gpus: float
    setting: str


@dataclass(frozen=True)
class Stage:
    """A declared kind of work.

    Args:
        name: the first part of its nodes' names.
        settings: the class of its settings.
        output: the class of the artifact it writes.
        run: `"module:function"` of `run(context) -> Result`.
        inputs: its input slots.
        version: raise it when the artifact's layout or meaning changes.
        sources: the dotted names (`"module:attribute"`) of the methods and networks that given
            settings name; their modules enter the artifact's key.
        needs: the optional inputs that given settings cannot do without.
        files: the files and folders outside the store that given settings name; their contents
            enter the key, and the name of one alone does not.
        workers: the processes that given settings make its run function start, or None.
        fans_out: whether its run function works by `Context.map` alone: each shard reserves the
            node's GPUs and memory then, and the node itself, which waits, does not.
        metrics: the headline numbers that a given node may report: what sweeps can name; `*`
            stands for any part of a name.
        estimate: `"module:function"` of a function that takes given settings and, by input slot,
            what it gave for the node there, of several the first, and their number as `nodes`, and
            gives what the node takes, as far as it is known (see `pipeline.estimates`), and what
            later nodes ask for; no part of a key.
        curve_steps: where its nodes tell a curve while they run, how many steps a given one has.
    """

    name: str
    settings: type[Settings]
    output: type[Artifact]
    run: str
    inputs: Mapping[str, Input] = field(default_factory=dict)
    version: int = 1
    sources: Callable[[Any], Iterable[str]] = lambda settings: ()
    needs: Callable[[Any], Iterable[str]] = lambda settings: ()
    files: Callable[[Any], Iterable[Path]] = lambda settings: ()
    workers: Callable[[Any], Workers | None] = lambda settings: None
    fans_out: bool = False
    metrics: Callable[[Any], Sequence[str]] = lambda node: ("*",)
    estimate: str = ""
    curve_steps: Callable[[Any], int] | None = None


@dataclass(frozen=True)
class Result:
    """What a run function returns beside the files it wrote.

    Args:
        metrics: headline numbers, by the shared names.
        curves: rows `(metric, step, value)`; must not hold times, which differ between runs.
        abscissa: what the step of the curves is (`training_step`, `nfe`, `sigma_1000`).
        timings: measured times and speeds, kept in the manifest outside the payload; lists of
            `(step, value)` become curves in MLflow.
        tags: what was found in words, for MLflow.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Sequence[tuple[str, int, float]] = ()
    abscissa: str | None = None
    timings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Work(Protocol):
    """Where a node keeps resumable state, outside the artifact, until it has finished. It can be
    sent to processes on other machines; see `pipeline.workarea`."""

    path: Path

    def push(self) -> None:
        """Make what is in `path` safe against the loss of this machine."""

    def pull(self) -> None:
        """Bring to `path` what other machines have made safe since."""

    def clear(self) -> None:
        """Forget all of it, everywhere."""

    def tell(self, name: str, text: str) -> None:
        """Leave a word for the node's processes on all machines."""

    def told(self, name: str) -> str | None:
        """The word of that name, None where none was left."""

    def forget(self, name: str) -> None:
        """Take a word back."""

    def shared(self, name: str) -> tuple[str, Any]:
        """A folder that all machines reach, and the pyarrow file system that it is on, None for a
        disk."""


class Context(Protocol):
    """What the engine hands to a run function."""

    node: str
    settings: Any
    inputs: Mapping[str, Any]
    path: Path
    work: Work
    threads: int
    memory_gib: float
    """What each worker that the node starts reserves."""

    def log(self, message: str) -> None:
        """Write a line to the node's log."""

    def progress(self, done: float, total: float, unit: str = "", note: str = "") -> None:
        """Tell the person who waits how far the node is."""

    def notice(self, message: str, **tags: str) -> None:
        """Say in the terminal and the log what must not be missed, and in MLflow as tags."""

    def points(self, abscissa: str, rows: Sequence[tuple[str, int, float]]) -> None:
        """Show curve points in MLflow while the node runs."""

    def recall(self, what: Mapping[str, Any]) -> Any:
        """JSON data that a node of this stage and code remembered under `what`, or None."""

    def remember(self, what: Mapping[str, Any], value: Any) -> None:
        """Keep JSON data for nodes with other inputs, under all that it depends on but the code."""

    def map(self, function: Callable[..., Any], items: Sequence[Any], *common: Any) -> list[Any]:
        """`[function(item, *common) for item in items]`, spread over the workers, in order.

        The `work` among `common` reaches the function as the area's path where it runs, and what
        the function leaves there is made safe; `work.pull()` then brings it here.
        """


@dataclass(frozen=True)
class Weights:
    """A weight file that a person must place: nothing is downloaded.

    Args:
        file: the file's name.
        purpose: what needs it.
        remedy: where to get it and which setting names it.
        find: returns its path, or None while it is missing.
        note: what `doctor` says beside it, such as what could not be verified.
    """

    file: str
    purpose: str
    remedy: str
    find: Callable[[], Path | None]
    note: str = ""


@dataclass(frozen=True)
class Fetch:
    """Data that the command `fetch` gets.

    Args:
        get: `"module:function"` of a function that takes the data's name, a folder, and whether
            that is the folder where presets look; it brings the data there, or checks them, and
            prints what it did.
        files: the names of the files to place there by hand instead.
    """

    get: str
    files: Sequence[str]


@dataclass(frozen=True)
class Catalog:
    """What the composition root hands to the engine: settings, stages, recipes and presets.

    Args:
        settings: the class of a preset.
        stages: every stage, by name.
        recipes: functions from resolved settings to a list of nodes, by name.
        presets: the folder of preset files.
        default_preset: the preset used when none is named.
        exclude_sources: modules that hold tables of names and never enter a key.
        packages: distributions whose versions stand in the manifests.
        weights: files that some settings need and nobody downloads.
        fetches: data that are fetched when asked, by name.
        convert: `"module:function"` of a function that takes a network's file and the folder to
            write, which may be None, and gives the folder that it wrote; it raises ValueError.
        compare_scores: `"module:function"` of a function that takes runs and gives
            `pipeline.compare.Line`s of the scores that they share.
        report_timed: `"module:function"` of a function that takes a run and gives
            `pipeline.publish.Timed` of what depends on measured times, which the report shows with
            the run.
        ending: `"module:function"` of a function that takes a run that finished and gives the lines
            that end it in a terminal.
        claims: `"module:function"` of a function that takes a run and the name of a form (text,
            markdown) and gives what the run says of the papers' claims.
        compare_page: `"module:function"` of a function that makes a `Comparison` an HTML page.
        export: `"module:function"` of a function that takes a run and the command's options and
            writes a node's samples as files.
        reference: `"module:function"` of a function that takes the command's options and makes a
            reference for scores from images.
        shown: what MLflow is to show.
    """

    settings: type[Settings]
    stages: Mapping[str, Stage]
    recipes: Mapping[str, Callable[[Any], list[Any]]]
    presets: Path
    default_preset: str = "digits"
    exclude_sources: frozenset[str] = frozenset()
    packages: Sequence[str] = ()
    weights: Sequence[Weights] = ()
    fetches: Mapping[str, Fetch] = field(default_factory=dict)
    convert: str = ""
    compare_scores: str = ""
    compare_page: str = ""
    report_timed: str = ""
    ending: str = ""
    claims: str = ""
    export: str = ""
    reference: str = ""
    shown: Shown = field(default_factory=Shown)


def resolve(dotted: str) -> Any:
    """The object that `"module:attribute"` names."""
    module, _, attribute = dotted.partition(":")
    return getattr(importlib.import_module(module), attribute)
