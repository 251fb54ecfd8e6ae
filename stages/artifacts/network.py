"""A trained network on disk: EMA weights at its checkpoints, and how to build it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stage import resolve
from stages.artifacts.described import DescribedArtifact
from stages.methods import table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.payload import Payload
    from stages.methods.path import Denoiser, Packing

GUIDE = "guide"  # the folder of the network that guidance leads away from


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and its checkpoints.

    steps: the checkpoints, ascending. method: the training loss. shape: (C, H, W) of images.
    class_counts: the data's training images of each class; none where they are not known.
    guided_channels: the first so many channels are guided, None for all. null_class: whether the
    network can be asked without a class. guided_interval: of t, where guidance acts unless it is
    said; open_interval: whether its ends are left out. guide: the network that guidance leads away
    from, where it is another.
    """

    folder: Path | Payload
    kind: str
    config: dict[str, Any]
    method: str
    steps: tuple[int, ...]
    shape: tuple[int, int, int]
    num_classes: int
    class_counts: tuple[int, ...] = ()
    guided_channels: int | None = None
    null_class: bool = True
    guided_interval: tuple[float, float] = (0.0, 1.0)
    open_interval: bool = False
    guide: TrainedModel | None = None

    @classmethod
    def of(cls, folder: Path | Payload, facts: Mapping[str, Any]) -> TrainedModel:
        """The network in a folder, by the facts of its description."""
        return cls(
            folder=folder,
            kind=facts["network"],
            config=facts["config"],
            method=facts["method"],
            steps=tuple(facts["steps"]),
            shape=tuple(facts["shape"]),
            num_classes=facts["num_classes"],
            class_counts=tuple(facts.get("class_counts", ())),
            guided_channels=facts.get("guided_channels"),
            null_class=facts.get("null_class", True),
            guided_interval=tuple(facts.get("guided_interval", (0.0, 1.0))),
            open_interval=facts.get("open_interval", False),
            guide=cls.of(folder / GUIDE, guide) if (guide := facts.get("guide")) else None,
        )

    @property
    def known_classes(self) -> int:
        """The classes that the network knows, 0 for none."""
        other = self.config.get("label_dim", self.num_classes)
        return self.config.get("num_classes", other)

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None where only leaving labels out does."""
        if self.kind in table.NO_NULL_LABEL:
            return self.config.get("null_class")
        return self.known_classes

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise at the end of the network's own path."""
        return self.config.get("noise_scale", 1.0)

    @property
    def packing(self) -> Packing | None:
        """How image and class token make one state; None where the state is the image."""
        from stages.methods.path import Packing

        return Packing(self.shape) if self.config.get("class_token_dim") else None

    def network(self, step: int | None = None, device: str = "cpu") -> nn.Module:
        """The network with the EMA weights of a checkpoint (default: the last), frozen.

        Raises ValueError when that step was not kept.
        """
        from safetensors.torch import load_file

        from stages.nets.blocks import placed

        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            kept = ", ".join(map(str, self.steps))
            raise ValueError(f"no checkpoint of step {step} was kept (there are {kept})")
        network = build_network(self.kind, self.config, seed=0)
        network.load_state_dict(load_file(self.folder / checkpoint_name(step)))
        return placed(network, device).eval().requires_grad_(False)


class TrainedNetwork(DescribedArtifact):
    """EMA weights at the kept steps, and how to build the network. Facts: network, its
    configuration, method, steps, shape, number of classes, training images of each class."""

    facts = "model.json"

    def load(self) -> TrainedModel:
        return TrainedModel.of(self.path, self.description)


def checkpoint_name(step: int) -> str:
    """Where the EMA weights after `step` steps stand in the artifact."""
    return f"checkpoints/step-{step:06d}.safetensors"


@dataclass(frozen=True)
class Guiding:
    """Classifier-free guidance as it is asked for; None is as the network's own code has it.

    scale: 1 is none. interval: of t. channels: the first so many of the image. token_scale: of the
    class token, None for that of the image. See `path.Guidance`.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    channels: int | None = None
    token_scale: float | None = None


NOT_GUIDED = Guiding()


def as_denoiser(
    model: TrainedModel,
    network: nn.Module,
    labels: Tensor | None = None,
    around: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda call: call,
    guiding: Guiding = NOT_GUIDED,
    guide: nn.Module | None = None,
) -> Denoiser:
    """A network of `model` as denoiser(y, s) in EDM coordinates; its own numbers are float32.

    labels: (B,) of the samples, None for the null class; networks without classes take none.
    around: wraps what is called for every evaluation. guide: the network of `model.guide`, which
    guidance then leads away from, under the same labels if it knows classes (Karras et al. 2024).
    Raises ValueError for guidance of a network that has nothing to be guided away from.
    """
    from stages.methods.path import Guidance

    conditional = _plain_denoiser(model, network, labels, around)
    if guiding.scale == 1:
        return conditional
    check_guidance(model, guiding.scale)
    pair = None
    if model.guide is not None:
        away = _plain_denoiser(model.guide, guide, labels, around)
    else:
        away = _plain_denoiser(model, network, None, around)
        pair = _with_and_without(model, network, labels, around)
    return Guidance(
        conditional,
        away,
        guiding.scale,
        guiding.interval or model.guided_interval,
        guiding.channels or model.guided_channels,
        model.open_interval,
        model.noise_scale,
        guiding.token_scale,
        model.packing,
        pair,
    )


def _with_and_without(
    model: TrainedModel, network: nn.Module, labels: Tensor | None, around: Callable[..., Any]
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """D(y, s) with the labels and without, in one call on twice the samples; None where that is
    not to be had."""
    import torch

    null = model.null_label
    if labels is None or null is None:
        return None
    both = torch.cat([labels, torch.full_like(labels, null)])
    doubled = _plain_denoiser(model, network, both, around)
    return lambda y, s: doubled(torch.cat([y, y]), s).chunk(2)


def _plain_denoiser(
    model: TrainedModel, network: nn.Module, labels: Tensor | None, around: Callable[..., Any]
) -> Denoiser:
    import torch

    from stages.methods.path import DirectDenoiser, EDMDenoiser, VelocityDenoiser

    known = labels is not None and model.known_classes
    condition = {"labels": labels} if known else {}
    if model.kind in table.PUBLISHED:
        return DirectDenoiser(around(network), condition)
    if model.kind in table.EDM_NETWORKS:
        # The preconditioning keeps the precision of the state.
        inner, sigma_data = around(network.inner), network.sigma_data
        return EDMDenoiser(inner, sigma_data, condition, dtype=torch.float32)
    return VelocityDenoiser(around(network), condition, model.packing, dtype=torch.float32)


def check_guidance(model: TrainedModel, scale: float) -> None:
    """Raise ValueError for guidance of a network that has nothing to be guided away from."""
    if scale == 1 or model.guide is not None:
        return
    if not model.known_classes:
        raise ValueError(
            f"guidance={scale:g}: the network was trained without classes, which guidance needs; "
            "set guidance=1"
        )
    if not model.null_class:
        raise ValueError(
            f"guidance={scale:g}: the network knows no input without a class; set networks.guide "
            "to a network without classes, or guidance=1"
        )


def build_network(kind: str, config: dict[str, Any], seed: int) -> nn.Module:
    """A freshly initialised network; the process's own random state is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resolve({**table.NETWORKS, **table.PUBLISHED}[kind])(**config)


def model_identity(model: TrainedNetwork, step: int) -> str:
    """SHA-256 of a checkpoint's weights: what a stored schedule belongs to."""

    entry = model.manifest.files.get(checkpoint_name(step))
    if entry is None:
        kept = ", ".join(map(str, model.description["steps"]))
        raise ValueError(f"no checkpoint of step {step} was kept (there are {kept})")
    return entry["sha256"]
