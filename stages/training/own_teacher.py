"""The embedded teacher's training: a small ViT by SimCLR or by labels, resumable, in the node's own
process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.stage import Context
from stages.artifacts import reading
from stages.artifacts.teacher import TeacherNetwork
from stages.methods import classified, simclr
from stages.methods.training_views import Views
from stages.nets.compiled import compile_network
from stages.nets.vit import EmbeddedViT
from stages.settings.teachers import LABELS
from stages.training import loop, resume
from stages.training.log import LossLog

if TYPE_CHECKING:
    from stages.artifacts.data import DataSet

WEIGHTS = "encoder.safetensors"
LOG_EVERY, SAVE_EVERY = 25, 100


def teacher(context: Context, data: DataSet) -> TeacherNetwork:
    """Train on the training images, write the weights, return the frozen network.

    Raises ValueError for sizes that do not fit together, and for labels that there are not.
    """
    from safetensors.torch import save_file

    settings = context.settings
    if settings.objective == LABELS and data.num_classes < 2:
        raise ValueError(
            "teach.objective=labels learns classes, and these data have none; set "
            "teach.objective=simclr"
        )
    config = _config(settings, data)
    network, before = (_network(config, settings.seed).to(settings.device) for _ in range(2))
    _train(context, network, data)
    save_file({k: v.cpu() for k, v in network.state_dict().items()}, context.path / WEIGHTS)
    grid = tuple(side // settings.own_patch for side in data.shape[1:])
    return TeacherNetwork(
        name="embedded",
        weights_hash=_hash(network),
        resize="none",
        grid=grid,
        width=settings.width,
        tokens=_frozen(network),
        untrained=_frozen(before),
        weights=context.path / WEIGHTS,
        config=config,
    )


def frozen(
    folder: Path, facts: Mapping[str, Any], device: str | torch.device
) -> Callable[[Tensor], Tensor]:
    """The network of a teacher's artifact: images (B, C, H, W) in [-1, 1] -> all its tokens."""
    from safetensors.torch import load_file

    network = _network(facts["config"], 0)
    network.load_state_dict(load_file(folder / facts["weights"]))
    return _frozen(network.to(device))


def _config(settings: Any, data: DataSet) -> dict[str, Any]:
    """Keyword arguments of the network."""
    more: dict[str, Any] = {"stem": settings.stem} if settings.stem else {}
    if settings.objective == LABELS:
        more["outputs"] = data.num_classes
    return more | {
        "image_size": tuple(data.shape[1:]),
        "channels": data.shape[0],
        "patch_size": settings.own_patch,
        "width": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
    }


def _network(config: Mapping[str, Any], seed: int) -> EmbeddedViT:
    """The fresh network; the process's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EmbeddedViT(**config)


def _train(context: Context, network: nn.Module, data: DataSet) -> None:
    settings = context.settings
    how = loop.Optimization(
        lr=settings.lr,
        warmup_steps=min(20, settings.steps),
        decay_steps=settings.steps,
        ema_decay=0.0,
        precision=settings.compute,
    )
    if settings.compile:
        compile_network(network)
    state, log = loop.TrainState(network, how), LossLog(LOG_EVERY)
    if (saved := resume.latest(context.work.path)) is not None:
        step, tensors, record = saved
        state.restore(step, tensors)
        log.restore(tensors, record, settings.device)
        context.log(f"continuing after step {step} of {settings.steps}")
    context.progress(state.step, settings.steps, "steps")
    size = min(settings.train_batch_size, len(data.train))
    views = Views(padding=settings.padding, jitter=settings.jitter)
    loss, labels = simclr.Loss(settings.temperature, views), None
    if settings.objective == LABELS:
        loss, labels = classified.Loss(views), data.train.labels
    readers = reading.sensible(settings.readers, settings.device, data.train.small)
    ahead = {"readers": readers, "end": settings.steps}
    with loop.Batches(data.train, labels, size, settings.seed, settings.device, **ahead) as batches:
        for step in loop.train(state, loss, batches, settings.steps):
            if rows := log.add(step, batches.waited):
                note = f"loss {rows[0][2]:.3f}"
                context.progress(step.step, settings.steps, "steps", note)
            if step.step % SAVE_EVERY == 0 or step.step == settings.steps:
                try:
                    log.check(step.step)
                except StageError as error:
                    raise StageError(str(error).replace("train.", "teach.")) from error
                tensors = state.tensors() | log.tensors()
                resume.save(context.work.path, state.step, tensors, log.record())
                context.work.push()


def _frozen(network: EmbeddedViT) -> Callable[[Tensor], Tensor]:
    network.eval().requires_grad_(False)

    @torch.no_grad()
    def tokens(images: Tensor) -> Tensor:
        return network.tokens(images)

    return tokens


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
