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
from stages.networks.formats import (
    BENCH_FACTS,
    BENCH_NEEDED,
    FORMATS,
    files_of,
    folder_format,
    names_a_function,
)
from stages.networks.found import Conventions, Found, digest


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
        token_scale: float | None = None,
    ) -> Denoiser:
        """denoiser(y, s) in EDM coordinates: y (B, C, H, W), or packed states; s > 0.

        labels: (B,) or one for all; None is without a class. guidance: classifier-free; it acts in
        `interval` of t = s / (1 + s), closed but for JiT's, on the first `channels` of the image
        (None: on those that the format's own code guides), on the class token by `token_scale` (see
        `Guidance`). Raises ValueError for labels outside 0..num_classes - 1, and for guidance of a
        network without classes and without a guide.
        """
        labels = self._checked(labels)
        conditional = _of(self, labels)
        if guidance == 1:
            return conditional
        if self.guide is not None:
            unconditional = self.guide.denoiser()
        elif self.num_classes and labels is not None and self.model.null_class:
            unconditional = _of(self, None)
        else:
            raise ValueError(
                f"guidance={guidance:g} needs labels of a network with classes and an input "
                "without one, or a guide"
            )
        where = self.guided_channels if channels is None else channels
        return Guidance(
            conditional,
            unconditional,
            guidance,
            interval,
            where,
            self.model.open_interval,
            self.model.noise_scale,
            token_scale,
            self.packing,
        )

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


@dataclass(frozen=True)
class Read:
    """A network's weights and facts, its files, and the network that guidance leads away from."""

    found: Found
    files: tuple[Path, ...]
    guide: Read | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the files."""
        return digest(list(self.files))

    @property
    def model(self) -> TrainedModel:
        """What the network is, without weights."""
        return TrainedModel.of(Path(), self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """What describes the network where it is stored."""
        found = self.found
        return {
            "network": found.kind,
            "config": found.config,
            "method": found.format if found.method == "unknown" else found.method,
            "steps": [0],
            "shape": list(found.shape),
            "num_classes": found.num_classes,
            "guided_channels": found.guided_channels,
            "null_class": found.null_class,
            "open_interval": found.open_interval,
            "format": found.format,
            "conventions": dict(found.conventions),
        }

    def module(self) -> nn.Module:
        """The network with its weights, frozen: nothing missing, nothing left over.

        Raises ValueError where file and description differ.
        """
        found = self.found
        try:
            module = build_network(found.kind, found.config, seed=0)
        except TypeError as error:
            raise ValueError(f"the file's network has arguments unknown here ({error})") from error
        try:
            given = module.load_state_dict(found.state, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise ValueError(f"the weights do not fit: {reason[0].strip()}") from error
        for kind, names in (("lacks", given.missing_keys), ("holds", given.unexpected_keys)):
            if names:
                raise ValueError(
                    f"the file {kind} {names[0]}, against its own description of the network"
                )
        return module.eval().requires_grad_(False)


def load(path: str | Path, format: str | None = None, **conventions: Any) -> Network:
    """A network from a file, a folder, or `module:function`; arguments and errors as `read`'s."""
    return _network(read(path, format, **conventions))


def read(path: str | Path, format: str | None = None, **conventions: Any) -> Read:
    """What is known of a network, and its weights, which may still lie in the mapped file.

    format: of `FORMATS`; None recognises it. conventions: what the files cannot tell or what is to
    be read otherwise, such as num_heads (sizes that were never published), path and prediction (SiT
    family), clip_sample (diffusers), guide (the path of a network to be guided away from).

    Raises ValueError where there is nothing, where a file is damaged or of no known format, where
    it could be of two (the sentence says what to give), and for conventions it does not have.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is '{format}'; it must be one of {', '.join(FORMATS)}")
    guide = conventions.pop("guide", None)
    guide = None if guide is None else read(guide)
    said = Conventions(conventions)
    if format == "python" or (format is None and names_a_function(path)):
        found = python_functions.read(str(path), said)
        return Read(found, tuple(files_of(path)), guide)
    path = Path(path).expanduser()
    files = files_of(path)
    return Read(_reader(path, format)(said), tuple(files), guide)


Reader = Callable[[Conventions], Found]


def _reader(path: Path, format: str | None) -> Reader:
    """What reads a file or a folder."""
    if path.is_dir():
        return _folder_reader(path, format)
    if path.suffix == ".pkl" or format in ("edm", "edm2"):
        _agree(path, format, ("edm", "edm2"))
        return lambda said: karras.read_pickle(path, said)
    stored, arguments = torch_files.read(path)
    found = "jit" if any("x_embedder.proj1" in name for name in stored) else None
    found = found or transformers.recognised(stored)
    if not found:
        raise ValueError(
            f"{path} holds tensors of no known network; the formats are {', '.join(FORMATS)}"
        )
    if found == "jit":
        _agree(path, format, ("jit",))
        return lambda said: jit.read(stored, arguments, said)
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
    return lambda said: transformers.read(format, stored, arguments, said)


def _folder_reader(path: Path, format: str | None) -> Reader:
    kind = folder_format(path)
    _agree(path, format, ("edm", "edm2") if kind == "converted" else (kind,))
    if kind == "bench":
        return _bench(path)
    if kind == "converted":
        return lambda said: karras.read_folder(path, said)
    return lambda said: diffusers_folders.read(path, said)


def _agree(path: Path, said: str | None, found: tuple[str, ...]) -> None:
    if said is not None and said not in found:
        raise ValueError(f"format={said}, but {path} is of format {' or '.join(found)}")


def _bench(path: Path) -> Reader:
    from safetensors.torch import load_file

    try:
        facts = json.loads((path / BENCH_FACTS).read_text(encoding="utf-8"))
        steps = facts["steps"]
        missing = [name for name in BENCH_NEEDED if name not in facts]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / BENCH_FACTS} describes no network ({error})") from error
    if missing:
        raise ValueError(f"{path / BENCH_FACTS} lacks '{missing[0]}'")

    def read(said: Conventions) -> Found:
        step = said.take("step", steps[-1])
        said.check_empty("bench")
        if step not in steps:
            kept = ", ".join(map(str, steps))
            raise ValueError(f"step is {step}, of which {path} keeps no weights (it has {kept})")
        return Found(
            format="bench",
            kind=facts["network"],
            config=facts["config"],
            state=load_file(path / checkpoint_name(step)),
            shape=tuple(facts["shape"]),
            num_classes=facts["num_classes"],
            method=facts["method"],
            guided_channels=facts.get("guided_channels"),
            null_class=facts.get("null_class", True),
            open_interval=facts.get("open_interval", False),
            conventions={"step": str(step), **facts.get("conventions", {})},
        )

    return read


def _network(given: Read) -> Network:
    found = given.found
    return Network(
        format=found.format,
        shape=found.shape,
        num_classes=found.num_classes,
        module=given.module(),
        model=given.model,
        conventions=dict(found.conventions),
        digest=given.digest,
        guided_channels=found.guided_channels,
        guide=None if given.guide is None else _network(given.guide),
        files=given.files,
    )
