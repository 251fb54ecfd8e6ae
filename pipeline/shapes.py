"""What manifests and records must look like before anybody reads them.

A store may be handed on by others, and a disk may give back what nobody wrote: JSON that parses is
not yet a manifest. What is checked here is used without further doubts elsewhere.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, NotRequired

import pydantic
from pydantic import Field
from typing_extensions import TypedDict

from pipeline.locations import is_plain

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")
_OPEN = pydantic.ConfigDict(strict=True, extra="allow")


def _plain(name: str) -> str:
    if not is_plain(name):
        raise ValueError("leads out of its folder")
    return name


def _one_part(name: str) -> str:
    if not is_plain(name) or "/" in name or not name.isprintable():
        raise ValueError("is no name of a folder")
    return name


def _without_controls(name: str) -> str:
    if not name.isprintable():
        raise ValueError("holds control characters")
    return name


Name = Annotated[str, pydantic.AfterValidator(_without_controls)]
Part = Annotated[str, pydantic.AfterValidator(_one_part)]
Place = Annotated[str, pydantic.AfterValidator(_plain)]
# No more than three centuries: sums of them stay numbers.
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
Row = Annotated[list[float | None], Field(min_length=2, max_length=2)]
Timing = float | list[Row]


class Git(TypedDict):
    """The state of the code."""

    __pydantic_config__ = _OPEN
    revision: NotRequired[str]
    dirty: NotRequired[bool]


class Blocks(TypedDict):
    """See `pipeline.blocks`."""

    __pydantic_config__ = _STRICT
    bytes: Annotated[int, Field(ge=1)]
    crc32: Annotated[str, Field(pattern="^([0-9a-f]{8})+$")]


def _as_many_blocks(file: dict[str, Any]) -> dict[str, Any]:
    blocks = file.get("blocks")
    if blocks and len(blocks["crc32"]) != 8 * -(-file["size"] // blocks["bytes"]):
        raise ValueError("has not as many blocks as its size asks for")
    return file


class File(TypedDict):
    """A payload file."""

    __pydantic_config__ = _STRICT
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    blocks: NotRequired[Blocks]


class ManifestFields(TypedDict):
    """The fields of `pipeline.artifact.Manifest`."""

    __pydantic_config__ = _STRICT
    key: Part
    stage: Part
    type: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
    version: int
    settings: dict[str, Any]
    inputs: dict[str, Any]
    sources: dict[str, str]
    threads: int
    files: dict[Place, Annotated[File, pydantic.AfterValidator(_as_many_blocks)]]
    external: dict[str, str]
    metrics: dict[Name, float]
    timings: dict[Name, Timing]
    tags: dict[Name, str]
    abscissa: Name | None
    curves: dict[Name, int]
    packages: dict[str, str]
    git: Git
    host: dict[str, Any]
    started: Name
    finished: Name
    seconds: Seconds
    schema: int


class NodeFields(TypedDict):
    """What a run's record says of a node."""

    __pydantic_config__ = _OPEN
    stage: Part
    key: Part
    upstream: list[Name]
    tags: dict[Name, str]
    state: Name
    seconds: Seconds | None
    error: str
    timings: NotRequired[dict[Name, Timing]]


class RecordFields(TypedDict):
    """A run's record."""

    __pydantic_config__ = _OPEN
    id: Part
    recipe: Name
    preset: str
    overrides: list[str]
    command: str
    created: Name
    state: Name
    settings: dict[str, Any]
    git: Git
    nodes: dict[Name, NodeFields]


@cache
def _adapter(shape: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(shape)


def check(data: Any, shape: Any) -> None:
    """Raise ValueError, in a few words, where data does not have a shape of this module."""
    try:
        _adapter(shape).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(repr(part)[1:-1][:60] for part in map(str, first["loc"]))
        raise ValueError(f"{where or 'it'}: {first['msg'].removeprefix('Value error, ')}") from None


def parse(text: bytes | str) -> Any:
    """JSON data, in UTF-8. Raises ValueError for whatever else."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
