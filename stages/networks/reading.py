"""Loading a network from elsewhere: its format is recognised, or asked for where a file cannot
tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts.network import (
    Guiding,
    TrainedModel,
    as_denoiser,
    build_network,
    checkpoint_name,
)
from stages.methods.path import Denoiser, Packing
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
    folder_of,
    names_a_function,
)
from stages.networks.found import Conventions, Found, digest


@dataclass(frozen=True)
class Network:
    """A network from elsewhere.

    format: as in `FORMATS`. shape: (C, H, W). num_classes: 0 for none. module: the network itself,
    frozen, whose layers can be tapped by name. conventions: what was applied, in words. digest:
    SHA-256 of the files it was read from. guide: another network that guidance leads away from,
    without classes (EDM2's) or with (autoguidance).
    """

    format: str
    shape: tuple[int, int, int]
    num_classes: int
    module: nn.Module
    model: TrainedModel
    conventions: dict[str, str]
    digest: str
    guide: Network | None = None
    files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def packing(self) -> Packing | None:
        """How image and class token make one state (REG); None where the state is the image."""
        return self.model.packing

    def denoiser(
        self,
        labels: Tensor | int | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        channels: int | None = None,
        token_scale: float | None = None,
    ) -> Denoiser:
        """denoiser(y, s) in EDM coordinates: y (B, C, H, W), or packed states; s > 0.

        labels: (B,) or one for all; None is without a class. guidance: classifier-free, or away
        from the guide; it acts in `interval` of t = s / (n + s), n the network's noise scale, on
        the first `channels` of the image (None for either: as the format's own code does), on the
        class token by `token_scale` (see `path.Guidance`). Raises ValueError for labels outside
        0..num_classes - 1, and for guidance of a network that has nothing to be guided away from.
        """
        labels = self._checked(labels)
        if guidance != 1 and labels is None and self.guide is None:
            raise ValueError(f"guidance={guidance:g} needs labels, or a guide")
        guiding = Guiding(guidance, interval, channels, token_scale)
        guide = None if self.guide is None else self.guide.module

        def of(labels: Tensor | None) -> Denoiser:
            return as_denoiser(self.model, self.module, labels, guiding=guiding, guide=guide)

        if labels is not None and labels.ndim == 0:
            return lambda y, s: of(labels.to(y.device).expand(len(y)))(y, s)
        return of(labels)

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
        more = {} if self.guide is None else {"guide": self.guide.facts}
        return more | {
            "network": found.kind,
            "config": found.config,
            "method": found.format if found.method == "unknown" else found.method,
            "steps": [0],
            "shape": list(found.shape),
            "num_classes": found.num_classes,
            "guided_channels": found.guided_channels,
            "null_class": found.null_class,
            "guided_interval": list(found.guided_interval),
            "open_interval": found.open_interval,
            "format": found.format,
            "conventions": dict(found.conventions),
        }

    def module(self) -> nn.Module:
        """The network with its weights, frozen: nothing missing, nothing left over.

        Raises ValueError where file and description differ.
        """
        module = self._built()
        self._check(module)
        module.load_state_dict(self.found.state)
        return module.eval().requires_grad_(False)

    def check(self) -> None:
        """Raise ValueError as `module` does; no weights are allocated."""
        if self.found.kind != "python":
            with torch.device("meta"):
                self._check(self._built())
        if self.guide is not None:
            self.guide.check()

    def _built(self) -> nn.Module:
        try:
            return build_network(self.found.kind, self.found.config, seed=0)
        except TypeError as error:
            raise ValueError(f"the file's network has arguments unknown here ({error})") from error

    def _check(self, module: nn.Module) -> None:
        ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in self.found.state.items()}
        for one, other, verb in ((ours, theirs, "lacks"), (theirs, ours, "holds")):
            if names := [name for name in one if name not in other]:
                raise ValueError(
                    f"the file {verb} {names[0]}, against its own description of the network"
                )
        for name, shape in ours.items():
            if shape != theirs[name]:
                raise ValueError(
                    f"the weights do not fit: {name} is {theirs[name]} in the file and {shape} in "
                    "the network that the file describes"
                )


def load(path: str | Path, /, format: str | None = None, **conventions: Any) -> Network:
    """A network from a file, a folder, or `module:function`; arguments and errors as `read`'s."""
    return _network(read(path, format, **conventions))


def read(path: str | Path, /, format: str | None = None, **conventions: Any) -> Read:
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
    found = _read(path, format, conventions)
    if guide is not None:
        _check_guide(found.found, guide.found)
    return replace(found, guide=guide)


def _check_guide(found: Found, guide: Found) -> None:
    """Raise ValueError for a guide of other images or classes."""
    for name in ("shape", "num_classes"):
        ours, theirs = getattr(found, name), getattr(guide, name)
        if ours != theirs and not (name == "num_classes" and not theirs):
            raise ValueError(f"guide has {name} {theirs}, and the network {ours}; they must agree")


def _read(path: str | Path, format: str | None, conventions: dict[str, Any]) -> Read:
    said = Conventions(conventions)
    if format == "python" or (format is None and names_a_function(path)):
        found = python_functions.read(str(path), said)
        return Read(found, tuple(files_of(path)))
    path = folder_of(Path(path).expanduser())
    files = files_of(path)
    return Read(_reader(path, format)(said), tuple(files))


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
        format = format or _sit_or_dit(arguments)
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


def _sit_or_dit(arguments: Mapping[str, Any]) -> str | None:
    """What a training file's arguments tell: only SiT has a path and a prediction."""
    if {"path_type", "prediction"} <= arguments.keys():
        return "sit"
    named = str(arguments.get("model", "")).partition("-")[0].lower()
    return named if named in ("sit", "dit") else None


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
            guided_interval=tuple(facts.get("guided_interval", (0.0, 1.0))),
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
        guide=None if given.guide is None else _network(given.guide),
        files=given.files,
    )
