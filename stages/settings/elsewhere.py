"""A network from elsewhere: where it lies, its format, and what its files cannot tell."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipeline.errors import UsageError
from pipeline.stage import Place, Settings, resolve, unkeyed
from stages.networks.formats import BENCH_FACTS, FORMATS, files_of, names_a_function

# The formats whose networks were trained and sampled over EDM's noise levels.
OVER_SIGMA = frozenset({"edm", "edm2", "dit", "diffusers", "python"})


def _placed(path: str) -> str:
    return path if names_a_function(path) else str(Path(path).expanduser().absolute())


NetworkPlace = Annotated[str, AfterValidator(_placed)]
"""A file or folder, made absolute where it is given; or `module:function`."""


class NetworkOptions(Settings):
    """A network from elsewhere, and how it is read. What is unset is as the format has it."""

    path: NetworkPlace | None = unkeyed(
        None,
        description="a network trained elsewhere, which is run instead of training one (recipe "
        "train: which trainings go on from): a "
        "checkpoint file or folder of one of the formats, or module:function of your own that "
        "gives a denoiser; its contents, not its place, enter keys; unset trains one",
    )
    format: Literal[FORMATS] | None = Field(
        None, description="of the file; unset recognises it, as far as it can tell"
    )
    num_heads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="sit, repa, reg, dit: attention heads of a size of your own",
    )
    encoder_depth: int | None = Field(
        None, ge=1, le=1024, description="repa, reg: the block that was aligned with a teacher"
    )
    path_type: Literal["linear", "cosine", "gvp", "vp"] | None = Field(
        None, description="sit, repa: the path it was trained on; gvp is cosine"
    )
    prediction: str | None = Field(
        None,
        description="sit, repa: velocity, noise or score; diffusers: epsilon, v_prediction, "
        "sample or flow",
    )
    in_context_start: int | None = Field(
        None, ge=0, le=1024, description="jit: the block that the class's tokens enter before"
    )
    noise_scale: float | None = Field(
        None,
        gt=0,
        le=100,
        description="jit: standard deviation of its noise; 1, or 2 at 512 pixels",
    )
    clip_sample: bool | None = Field(
        None,
        description="diffusers: cut denoised images to [-1, 1], as its samplers may; then they are "
        "no posterior means",
    )
    step: int | None = Field(None, ge=0, description="bench: the checkpoint; unset is every one")
    guide: Place | None = unkeyed(
        None,
        description="a network that guidance leads away from, instead of the first without a "
        "class: EDM2's unconditional one or, for autoguidance, a weaker one with classes",
    )
    shape: tuple[int, int, int] | None = Field(
        None, description="python, diffusers: (C, H, W) of an image, where they do not say"
    )
    num_classes: int | None = Field(
        None,
        ge=0,
        description="python: its classes, where the denoiser does not say; sit, repa, reg, dit: "
        "where a file was trained without a null class, its classes",
    )

    @property
    def conventions(self) -> dict[str, Any]:
        """What is said of the file, under the names of `stages.networks.load`."""
        said = self.model_dump(include=set(NetworkOptions.model_fields) - {"path", "format"})
        said["path"] = said.pop("path_type")
        return {name: value for name, value in said.items() if value is not None}

    def keyed(self) -> dict[str, Any]:
        """As the base's, without what is unset; of `module:function` its name too."""
        kept = {name: value for name, value in super().keyed().items() if value is not None}
        return kept | ({"path": self.path} if names_a_function(self.path or "") else {})

    def files(self, setting: str = "networks.path") -> list[Path]:
        """The files to read, those of the guide last. Raises UsageError where one is not there."""
        found = []
        for name, path in ((setting, self.path), ("networks.guide", self.guide)):
            if path is None:
                continue
            try:
                files = files_of(path)
            except ValueError as error:
                raise UsageError(
                    f"{_of(name, path, str(error))}; place the file or folder there, or set {name} "
                    "to where it is"
                ) from error
            if absent := [file for file in files if not file.is_file()]:
                raise UsageError(f"{name}={path} lacks {absent[0]}; place it there")
            found += files
        return found

    def facts(self, setting: str = "networks.path") -> dict[str, Any] | None:
        """What describes the network; None where there is none, or its files are not there yet.

        Raises UsageError where the files cannot be read, or do not say enough.
        """
        if self.path is None:
            return None
        try:
            files = self.files(setting)
        except UsageError:
            return None
        if files and files[0].name == BENCH_FACTS:
            self._check_bench(setting)
            return _bench_facts(files[0], setting)
        stamps = tuple((str(file), (s := file.stat()).st_size, s.st_mtime_ns) for file in files)
        said = json.dumps(self.conventions, sort_keys=True)
        try:
            return _facts(self.path, self.format, said, stamps)
        except ValueError as error:
            words = _of(setting, self.path, _named(str(error)))
            raise UsageError(words) from error

    def _check_bench(self, setting: str) -> None:
        """Raise UsageError for what a folder of this project tells by itself."""
        said = {} if self.format in (None, "bench") else {"format": self.format}
        said |= {name: value for name, value in self.conventions.items() if name != "step"}
        if said:
            name, value = next(iter(said.items()))
            name = {"path": "path_type"}.get(name, name)
            raise UsageError(
                f"networks.{name}={value} and {setting}={self.path} contradict each other: the "
                f"folder's {BENCH_FACTS} describes its network; leave networks.{name} unset"
            )

    @property
    def over_sigma(self) -> bool:
        """Whether its solvers' levels lie over EDM's noise levels, as far as is known."""
        return (self.format or (self.facts() or {}).get("format")) in OVER_SIGMA


def _of(setting: str, path: str, words: str) -> str:
    """A sentence under the setting that it is of; the path once."""
    return f"{setting}: {words}" if path in words else f"{setting}={path}: {words}"


def _named(words: str) -> str:
    """A reader's sentence with the settings that it asks for under their names here."""
    for name in NetworkOptions.model_fields:
        words = words.replace(f"say {name}=", f"say networks.{name}=")
        words = words.replace(f" or {name}=", f" or networks.{name}=")
    return words


def _bench_facts(file: Path, setting: str) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{setting}: {file} is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{setting}: {file} holds no facts by name, but a {type(facts).__name__}")
    return {"format": "bench", **facts}


@lru_cache(maxsize=16)
def _facts(path: str, format: str | None, said: str, stamps: tuple) -> dict[str, Any]:
    # Only now does a plan need torch: the file is what says which network it holds.
    given = resolve("stages.networks.reading:read")(path, format, **json.loads(said))
    given.check()
    return given.facts
