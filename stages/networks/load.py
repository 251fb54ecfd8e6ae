"""Loading a network from elsewhere: its format is recognised, or asked for where a file cannot
tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts.network import TrainedModel, as_denoiser, build_network, checkpoint_name
from stages.methods.path import Denoiser, Guidance, Packing
from stages.networks import (
    diffusers_folders,
    jit,
    karras,
    python_functions,
    torch_files,
    transformers,
)
from stages.networks.found import Conventions, Found, digest

FORMATS = ("bench", "sit", "repa", "reg", "dit", "edm", "edm2", "jit", "diffusers", "python")
OF_STATE_DICTS = ("sit", "repa", "reg", "dit")


@dataclass(frozen=True)
class Network:
    """A network from elsewhere.

    format: as in `FORMATS`. shape: (C, H, W). num_classes: 0 for none. module: the network itself,
    frozen, whose layers can be tapped by name. conventions: what was applied, in words. digest:
    SHA-256 of the files it was read from. guide: another network whose unconditional denoiser
    guidance leads away from, where this one has none.
    """

    format: str
    shape: tuple[int, int, int]
    num_classes: int
    module: nn.Module
    model: TrainedModel
    conventions: dict[str, str]
    digest: str
    guided_channels: int | None = None
    guide: Network | None = None
    files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def packing(self) -> Packing | None:
        """How image and class token make one state (REG); None where the state is the image."""
        return Packing(self.shape) if self.model.config.get("class_token_dim") else None

    def denoiser(
        self,
        labels: Tensor | int | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ) -> Denoiser:
        """denoiser(y, s) in EDM coordinates: y (B, C, H, W), or packed states; s > 0.

        labels: (B,) or one for all; None is without a class. guidance: classifier-free; it acts in
        the closed `interval` of t = s / (1 + s), on the first `channels` of the image (None: on
        those that the format's own code guides). Raises ValueError for labels outside
        0..num_classes - 1, and for guidance of a network without classes and without a guide.
        """
        labels = self._checked(labels)
        conditional = _of(self, labels)
        if guidance == 1:
            return conditional
        if self.guide is not None:
            unconditional = self.guide.denoiser()
        elif self.num_classes and labels is not None:
            unconditional = _of(self, None)
        else:
            raise ValueError(
                f"guidance={guidance:g} needs labels of a network with classes, or a guide"
            )
        where = self.guided_channels if channels is None else channels
        return Guidance(conditional, unconditional, guidance, interval, where)

    def _checked(self, labels: Tensor | int | None) -> Tensor | None:
        if labels is None:
            return None
        labels = torch.as_tensor(labels, dtype=torch.long)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}; this network knows "
                f"{self.num_classes} classes"
            )
        return labels


def _of(network: Network, labels: Tensor | None) -> Denoiser:
    if labels is not None and labels.ndim == 0:
        return lambda y, s: _denoiser(network, labels.to(y.device).expand(len(y)))(y, s)
    return _denoiser(network, labels)


def _denoiser(network: Network, labels: Tensor | None) -> Denoiser:
    return as_denoiser(network.model, network.module, labels, network.packing)


def load(path: str | Path, format: str | None = None, **conventions: Any) -> Network:
    """A network from a file, a folder, or `module:function`.

    format: of `FORMATS`; None recognises it. conventions: what the files cannot tell or what is to
    be read otherwise, such as num_heads (sizes that were never published), path and prediction (SiT
    family), clip_sample (diffusers), guide (the path of a network to be guided away from).

    Raises ValueError where there is nothing, where a file is damaged or of no known format, where
    it could be of two (the sentence says what to give), and for conventions it does not have.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is '{format}'; it must be one of {', '.join(FORMATS)}")
    guide = conventions.pop("guide", None)
    said = Conventions(conventions)
    if format == "python" or (format is None and _names_a_function(path)):
        function = str(path)
        origin = python_functions.source(function)
        files = [origin] if origin is not None else []
        return _network(python_functions.read(function, said), files, guide)
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"there is no network at {path}")
    files, read = _reader(path, format)
    return _network(read(said), files, guide)


def _names_a_function(path: str | Path) -> bool:
    place, colon, name = str(path).partition(":")
    dotted = place.replace(".", "_").isidentifier() and name.isidentifier()
    return bool(colon) and dotted and not Path(path).exists()


Read = Callable[[Conventions], Found]


def _reader(path: Path, format: str | None) -> tuple[list[Path], Read]:
    """The files that are read, and what reads them."""
    if path.is_dir():
        return _folder_reader(path, format)
    if path.suffix == ".pkl" or format in ("edm", "edm2"):
        _agree(path, format, ("edm", "edm2"))
        return [path], lambda said: karras.read_pickle(path, said)
    stored, arguments = torch_files.read(path)
    found = "jit" if any("x_embedder.proj1" in name for name in stored) else None
    found = found or transformers.recognised(stored)
    if not found:
        raise ValueError(
            f"{path} holds tensors of no known network; the formats are {', '.join(FORMATS)}"
        )
    if found == "jit":
        _agree(path, format, ("jit",))
        return [path], lambda said: jit.read(stored, arguments, said)
    if found == "sit or dit":
        format = format or ("sit" if {"path_type", "prediction"} <= arguments.keys() else None)
        if format is None:
            raise ValueError(
                f"{path} may be of SiT or of DiT, whose files have the same tensors; say "
                "format=sit or format=dit"
            )
        _agree(path, format, ("sit", "dit"))
    else:
        _agree(path, format, (found,))
        format = found
    return [path], lambda said: transformers.read(format, stored, arguments, said)


def _folder_reader(path: Path, format: str | None) -> tuple[list[Path], Read]:
    if (path / "model.json").is_file():
        _agree(path, format, ("bench",))
        return _bench(path)
    if (path / karras.FACTS).is_file():
        _agree(path, format, ("edm", "edm2"))
        files = [path / karras.FACTS, path / karras.WEIGHTS]
        return files, lambda said: karras.read_folder(path, said)
    if diffusers_folders.recognised(path):
        _agree(path, format, ("diffusers",))
        return diffusers_folders.files(path), lambda said: diffusers_folders.read(path, said)
    raise ValueError(
        f"{path} is a folder of no known format: it holds neither model.json (bench), "
        f"{karras.FACTS} (edm, edm2, converted) nor model_index.json or config.json (diffusers)"
    )


def _agree(path: Path, said: str | None, found: tuple[str, ...]) -> None:
    if said is not None and said not in found:
        raise ValueError(f"format={said}, but {path} is of format {' or '.join(found)}")


def _bench(path: Path) -> tuple[list[Path], Read]:
    from safetensors.torch import load_file

    facts = json.loads((path / "model.json").read_text(encoding="utf-8"))

    def read(said: Conventions) -> Found:
        step = said.take("step") or facts["steps"][-1]
        said.check_empty("bench")
        return Found(
            format="bench",
            kind=facts["network"],
            config=facts["config"],
            state=load_file(path / checkpoint_name(step)),
            shape=tuple(facts["shape"]),
            num_classes=facts["num_classes"],
            method=facts["method"],
            guided_channels=facts.get("guided_channels"),
            conventions={"step": str(step), **facts.get("conventions", {})},
        )

    return [path / "model.json", *sorted((path / "checkpoints").glob("*.safetensors"))], read


def _network(found: Found, files: list[Path], guide: str | Path | None) -> Network:
    """The network of a format's weights, whole: nothing missing, nothing left over."""
    model = TrainedModel(
        folder=Path(),
        kind=found.kind,
        config=found.config,
        method=found.method,
        steps=(),
        shape=found.shape,
        num_classes=found.num_classes,
    )
    try:
        module = build_network(found.kind, found.config, seed=0)
    except TypeError as error:
        raise ValueError(f"the file's network has arguments unknown here ({error})") from error
    given = module.load_state_dict(found.state, strict=False)
    if given.missing_keys or given.unexpected_keys:
        kind, names = (
            ("lacks", given.missing_keys)
            if given.missing_keys
            else ("holds", given.unexpected_keys)
        )
        raise ValueError(f"the file {kind} {names[0]}, against its own description of the network")
    return Network(
        format=found.format,
        shape=found.shape,
        num_classes=found.num_classes,
        module=module.eval().requires_grad_(False),
        model=model,
        conventions=dict(found.conventions),
        digest=digest(files),
        guided_channels=found.guided_channels,
        guide=None if guide is None else load(guide),
        files=tuple(files),
    )
