"""The stage `train`: a velocity network by a method of the SiT family, with EMA checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages import densities
from stages.densities import DensitySettings
from stages.methods import table
from stages.model import TrainedNetwork, build_network, checkpoint_name
from stages.powerspectrum import Spectrum
from stages.prepare import Data

if TYPE_CHECKING:
    from torch import nn

    from stages.loop import TrainState
    from stages.losslog import LossLog
    from stages.methods.slots import TimeDensity

ABSCISSA = "training_step"


class NetworkSettings(Settings):
    """The size of the network."""

    kind: table.choice("network", table.NETWORKS) = Field("sit", description="the architecture")
    width: int = Field(64, ge=8, le=8192, description="features of a token")
    depth: int = Field(4, ge=1, le=200, description="blocks")
    heads: int = Field(2, ge=1, le=128, description="attention heads")
    patch: int = Field(2, ge=1, le=64, description="side of a patch, in pixels")

    @model_validator(mode="after")
    def _divides(self) -> NetworkSettings:
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not divisible by heads={self.heads}; "
                f"set width to {self.width // self.heads * self.heads or self.heads}, say"
            )
        if self.width % 4:
            raise ValueError(
                f"width={self.width} is not divisible by 4, as its position table needs; "
                f"set width to {self.width // 4 * 4 or 4}, say"
            )
        return self


class TrainOptions(Settings):
    """Network, optimizer, length and checkpoints of a training."""

    method: table.choice("method", table.LOSSES) = Field("sit", description="the training loss")
    network: NetworkSettings = Field(NetworkSettings(), description="the network's size")
    density: DensitySettings = Field(DensitySettings(), description="where t is drawn")
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="probability of training on the null class"
    )
    lr: float = Field(5e-3, gt=0, le=10, description="learning rate of AdamW after the warm-up")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's moment decays, in [0, 1)")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW's weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which lr rises linearly")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    batch_size: int = Field(64, ge=1, le=2**20, description="images a step, over all workers")
    steps: int = Field(1200, ge=1, le=10**8, description="optimizer steps")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the weights' moving average")
    num_checkpoints: int = Field(
        4, ge=1, le=1000, description="checkpoints at equal distances, where none are listed"
    )
    checkpoint_steps: tuple[int, ...] = Field(
        (), description="steps whose EMA weights are kept; unset spaces num_checkpoints equally"
    )
    log_every: int = Field(25, ge=1, description="steps a point of the loss curves averages over")
    save_every: int = Field(
        200,
        ge=1,
        description="steps between resumable states",
        json_schema_extra={"keyed": False},
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the network's products; weights stay in float32"
    )
    compile: bool = Field(False, description="compile the network (worth it on a GPU)")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where training runs")
    num_workers: int = Field(
        0, ge=0, le=4096, description="Ray Train workers; 0 trains in the node's own process"
    )

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose EMA weights are kept, ascending; the last step is always one."""
        if self.checkpoint_steps:
            return tuple(sorted({*self.checkpoint_steps, self.steps}))
        parts = range(1, self.num_checkpoints + 1)
        return tuple(sorted({max(1, self.steps * i // self.num_checkpoints) for i in parts}))

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        beyond = [s for s in self.checkpoint_steps if not 1 <= s <= self.steps]
        if beyond:
            raise ValueError(
                f"checkpoint_steps has {beyond[0]}, which is not within steps={self.steps}; "
                "raise steps, or leave that checkpoint out"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is above steps={self.steps}; lower warmup_steps"
            )
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every={self.log_every} is above steps={self.steps}, so the curves would be "
                f"empty; lower log_every"
            )
        if self.num_workers and self.batch_size % self.num_workers:
            low = self.batch_size // self.num_workers * self.num_workers
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by num_workers={self.num_workers}; "
                f"try {low or self.num_workers} or {low + self.num_workers}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must both lie in [0, 1)")
        return self


class TrainSettings(TrainOptions):
    """The stage's settings."""

    seed: int = Field(0, ge=0, description="of initial weights, order of images, and all draws")
    start_step: int | None = Field(
        None, ge=1, description="with a start: its checkpoint to continue; unset is the last"
    )


def num_parameters(kind: str, config: dict[str, Any]) -> int:
    """Trained parameters of a network; nothing is allocated."""
    import torch

    with torch.device("meta"):
        network = resolve(table.NETWORKS[kind])(**config)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def network_config(settings: TrainOptions, shape: tuple[int, ...], num_classes: int) -> dict:
    """Keyword arguments of the network for images of `shape` (C, H, W)."""
    size = settings.network
    return {
        "image_size": list(shape[1:]),
        "channels": shape[0],
        "patch_size": size.patch,
        "width": size.width,
        "depth": size.depth,
        "num_heads": size.heads,
        "num_classes": num_classes,
    }


def run(context: Context) -> Result:
    """Train under Ray Train: in this process, or on `num_workers` workers with a shared disk."""
    import os

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings: TrainSettings = context.settings
    trainer = TorchTrainer(
        lambda config: train_worker(config["context"]),
        train_loop_config={"context": context},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu=settings.device == "cuda"
        ),
        run_config=RunConfig(
            name=context.path.name, storage_path=str(context.work.path / "ray-train")
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        # Errors of workers arrive inside one of Ray's own.
        for failure in getattr(error, "worker_failures", {}).values():
            cause = getattr(failure, "_base_exc", failure)
            if isinstance(cause, StageError):
                raise cause from error
        raise
    return finish(context)


def _device(settings: TrainOptions) -> Any:
    """Where this process trains; a worker of several on a machine has its own GPU."""
    if settings.device == "cuda" and settings.num_workers:
        from ray.train.torch import get_device

        return get_device()
    return settings.device


def train_worker(context: Context) -> None:
    """What every worker does: continue from the last state, train, keep checkpoints and states.

    Only the first worker writes. All that `finish` needs is in the work area.
    """
    from torch import distributed

    from stages import loop

    settings: TrainSettings = context.settings
    data = context.inputs["data"].load()
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    state, log = _start(context, data)
    loss = resolve(table.LOSSES[settings.method])(
        label_dropout=settings.label_dropout, time_density=_time_density(context)
    )
    batches = loop.Batches(
        data.train, data.train.labels, settings.batch_size, settings.seed, _device(settings)
    )
    kept, before = set(settings.kept_steps), _steps_before(context)
    # A continued training goes on in the stream of images, noise and times where its start ended.
    for step in loop.train(state, loss, lambda k: batches(before + k), settings.steps):
        rows = log.add(step)
        keep, save = step.step in kept, step.step % settings.save_every == 0
        if keep or save:
            log.check(step.step)  # never keep what a broken loss has made
        if first:
            if rows:
                context.points(ABSCISSA, rows)
            if keep:
                _keep(context.work.path, step.step, state)
            if save or step.step == settings.steps:
                _save(context, state, log)
            _tell(context, step.step, log)


def _time_density(context: Context) -> TimeDensity | None:
    """The density t is drawn from; None for plain uniform."""
    density, spectrum = context.settings.density, context.inputs.get("spectrum")
    try:
        found = None if spectrum is None else spectrum.load()
        return densities.time_density(density, density.kind, density.base, found)
    except ValueError as error:
        raise StageError(str(error)) from error


def _steps_before(context: Context) -> int:
    """Steps made before this training began, by its start and what that continued."""
    start = context.inputs.get("start")
    if start is None:
        return 0
    return start.description["steps_before"] + _start_step(context)


def _start_step(context: Context) -> int:
    """The checkpoint of the start to continue."""
    return context.settings.start_step or context.inputs["start"].description["steps"][-1]


def _continue(network: nn.Module, context: Context, config: dict[str, Any]) -> None:
    """Give the network the EMA weights of the start's checkpoint."""
    facts = context.inputs["start"].description
    for name, ours in (
        ("network", context.settings.network.kind),
        ("config", config),
        ("method", context.settings.method),
    ):
        if facts[name] != ours:
            raise ValueError(
                f"the training to continue has {name} {facts[name]}, this one {ours}; a training "
                "goes on with the network and the loss it began with"
            )
    found = context.inputs["start"].load().network(_start_step(context))
    network.load_state_dict(found.state_dict())


def _start(context: Context, data: Any) -> tuple[TrainState, LossLog]:
    """The state to train from: fresh, continued, or the last that an interrupted run saved."""
    from stages import resume
    from stages.loop import Optimization, TrainState
    from stages.losslog import LossLog

    settings: TrainSettings = context.settings
    device = _device(settings)
    config = network_config(settings, data.shape, data.num_classes)
    try:
        network = build_network(settings.network.kind, config, settings.seed)
        if context.inputs.get("start") is not None:
            _continue(network, context, config)
    except ValueError as error:
        raise StageError(str(error)) from error
    optimization = Optimization(
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        clip=settings.clip,
        ema_decay=settings.ema,
        precision=settings.precision,
    )
    state = TrainState(network.to(device), optimization)
    if settings.compile:
        network.compile()
    log = LossLog(settings.log_every)
    found = resume.latest(context.work.path)
    if found is not None:
        step, tensors, record = found
        state.restore(step, tensors)
        log.restore(tensors, record, device)
        context.log(f"continuing after step {step} of {settings.steps}")
    # The decay's warm-up is for fresh weights; those of a start have an average behind them.
    state.ema.num_updates += _steps_before(context)
    return state, log


def _keep(folder: Path, step: int, state: TrainState) -> None:
    """Write the EMA weights of a checkpoint to the work area."""
    from safetensors.torch import save_file

    from stages.resume import write_atomically

    path = folder / checkpoint_name(step)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda p: save_file(state.ema.network.state_dict(), p))


def _save(context: Context, state: TrainState, log: LossLog) -> None:
    """Write the resumable state; the one before stays until this one is whole."""
    from stages import resume

    resume.save(context.work.path, state.step, state.tensors() | log.tensors(), log.record())
    context.work.push()


def _tell(context: Context, step: int, log: LossLog) -> None:
    recent = [value for name, _, value in log.curves[-4:] if name == "loss/velocity"]
    note = f"loss {recent[-1]:.4f}" if recent else ""
    context.progress(step, context.settings.steps, "steps", note)
    if step % (10 * log.every) == 0 and note:
        context.log(f"step {step} of {context.settings.steps}: {note}")


def finish(context: Context) -> Result:
    """Make the artifact of what `train_worker` left in the work area."""
    from stages import resume

    settings: TrainSettings = context.settings
    data = context.inputs["data"].load()
    step, _, record = resume.latest(context.work.path)
    if step != settings.steps:
        raise StageError(f"training ended after step {step} of {settings.steps}")
    (context.path / "checkpoints").mkdir()
    for kept in settings.kept_steps:
        name = checkpoint_name(kept)
        shutil.copyfile(context.work.path / name, context.path / name)
    config = network_config(settings, data.shape, data.num_classes)
    facts = {
        "network": settings.network.kind,
        "config": config,
        "method": settings.method,
        "steps": list(settings.kept_steps),
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        "time_density": settings.density.name,
        "steps_before": _steps_before(context),
        "parameters": num_parameters(settings.network.kind, config),
    }
    (context.path / "model.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    curves = [tuple(row) for row in record["curves"]]
    seconds = [tuple(row) for row in record["step_seconds"]]
    num_tokens = settings.batch_size * (data.shape[1] * data.shape[2]) // settings.network.patch**2
    return Result(
        metrics={name: value for name, _, value in curves},
        curves=curves,
        abscissa=ABSCISSA,
        timings={
            "step_seconds": seconds,
            "tokens_per_second": [(step, num_tokens / value) for step, value in seconds],
        },
    )


def _needs(settings: TrainSettings) -> list[str]:
    spectrum = ["spectrum"] if densities.needs_spectrum(settings.density.kind) else []
    return spectrum + (["start"] if settings.start_step is not None else [])


STAGE = Stage(
    name="train",
    settings=TrainSettings,
    output=TrainedNetwork,
    run="stages.train:run",
    inputs={
        "data": Input(Data),
        "start": Input(TrainedNetwork, optional=True),
        "spectrum": Input(Spectrum, optional=True),
    },
    sources=lambda settings: [
        table.LOSSES[settings.method],
        table.NETWORKS[settings.network.kind],
        *densities.sources(settings.density, settings.density.kind, settings.density.base),
    ],
    needs=_needs,
)
