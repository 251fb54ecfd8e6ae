"""The stage `train`: a velocity network by a method of the SiT family, with EMA checkpoints."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve
from stages.methods import table
from stages.prepare import Data

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.loop import Step, TrainState

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


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and its checkpoints.

    steps: the checkpoints, ascending. method: the training loss. shape: (C, H, W) of images.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    method: str
    steps: tuple[int, ...]
    shape: tuple[int, int, int]
    num_classes: int

    def network(self, step: int | None = None, device: str = "cpu") -> nn.Module:
        """The network with the EMA weights of a checkpoint (default: the last), frozen.

        Raises ValueError when that step was not kept.
        """
        from safetensors.torch import load_file

        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            kept = ", ".join(map(str, self.steps))
            raise ValueError(f"no checkpoint of step {step} was kept (there are {kept})")
        network = build_network(self.kind, self.config, seed=0)
        network.load_state_dict(load_file(self.folder / checkpoint_name(step)))
        return network.to(device).eval().requires_grad_(False)


class TrainedNetwork(Artifact):
    """EMA weights at the kept steps, and how to build the network."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """Plain facts: network, its configuration, method, steps, shape, number of classes."""
        return json.loads((self.path / "model.json").read_text())

    def load(self) -> TrainedModel:
        facts = self.description
        return TrainedModel(
            folder=self.path,
            kind=facts["network"],
            config=facts["config"],
            method=facts["method"],
            steps=tuple(facts["steps"]),
            shape=tuple(facts["shape"]),
            num_classes=facts["num_classes"],
        )


def checkpoint_name(step: int) -> str:
    """Where the EMA weights after `step` steps stand in the artifact."""
    return f"checkpoints/step-{step:06d}.safetensors"


def build_network(kind: str, config: dict[str, Any], seed: int) -> nn.Module:
    """A freshly initialised network; the process's own random state is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resolve(table.NETWORKS[kind])(**config)


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


@dataclass
class Log:
    """Curve points so far, and the losses of the window that is not yet full.

    What a killed run needs to end with the same curves; `record` and `window` go into the state.
    """

    every: int
    curves: list[tuple[str, int, float]] = field(default_factory=list)
    step_seconds: list[tuple[int, float]] = field(default_factory=list)
    window: list[dict[str, Tensor]] = field(default_factory=list)
    _clock: float = field(default_factory=time.perf_counter)
    _timed: int = 0

    def add(self, step: Step) -> list[tuple[str, int, float]]:
        """Take a step in; returns the new curve points when it fills the window."""
        losses = {f"loss/{name}": value for name, value in step.losses.items()}
        self.window.append(losses | {"gradient_norm": step.gradient_norm})
        self._timed += 1
        if step.step % self.every:
            return []
        means = self.values(step.step).mean(0).tolist()
        rows = [(name, step.step, mean) for name, mean in zip(self.window[0], means, strict=True)]
        self.curves += rows
        self.step_seconds.append((step.step, (time.perf_counter() - self._clock) / self._timed))
        self.window, self._timed, self._clock = [], 0, time.perf_counter()
        return rows

    def values(self, last_step: int) -> Tensor:
        """(steps, names) of the window, averaged over the workers, in float64.

        Raises StageError, naming the step, when one is NaN or infinite.
        """
        import torch

        from stages.loop import mean_over_processes

        values = torch.stack([torch.stack(list(row.values())) for row in self.window])
        values = mean_over_processes(values.double()).cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = last_step - len(self.window) + row + 1
            raise StageError(
                f"{list(self.window[0])[column]} is {values[row, column].item()} at step {step}; "
                "training stopped, its last good state is kept: lower train.lr or raise "
                "train.warmup_steps"
            )
        return values

    def tensors(self) -> dict[str, Tensor]:
        """The window as `{"window.NAME": (steps,)}`, to be saved."""
        import torch

        names = list(self.window[0]) if self.window else []
        return {f"window.{name}": torch.stack([row[name] for row in self.window]) for name in names}

    def record(self) -> dict[str, Any]:
        """The rest, as JSON data."""
        names = list(self.window[0]) if self.window else []
        return {"curves": self.curves, "step_seconds": self.step_seconds, "window": names}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue from what `tensors` and `record` returned."""
        self.curves = [tuple(row) for row in record["curves"]]
        self.step_seconds = [tuple(row) for row in record["step_seconds"]]
        columns = [tensors[f"window.{name}"] for name in record["window"]]
        rows = zip(*columns, strict=True)
        self.window = [dict(zip(record["window"], row, strict=True)) for row in rows]


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
            name=context.path.name, storage_path=str(context.path.parent / "ray-train")
        ),
    )
    trainer.fit()
    return finish(context)


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
    loss = resolve(table.LOSSES[settings.method])(label_dropout=settings.label_dropout)
    batches = loop.Batches(
        data.train, data.train.labels, settings.batch_size, settings.seed, settings.device
    )
    kept = set(settings.kept_steps)
    for step in loop.train(state, loss, batches, settings.steps):
        rows = log.add(step)
        keep, save = step.step in kept, step.step % settings.save_every == 0
        if (keep or save) and log.window:
            log.values(step.step)  # never keep what a broken loss has made
        if first:
            if rows:
                context.points(ABSCISSA, rows)
            if keep:
                _keep(context.work.path, step.step, state)
            if save or step.step == settings.steps:
                _save(context, state, log)
            _tell(context, step.step, log)


def _start(context: Context, data: Any) -> tuple[TrainState, Log]:
    """The state to train from: fresh, or the last that an interrupted run saved."""
    from stages import resume
    from stages.loop import Optimization, TrainState

    settings: TrainSettings = context.settings
    config = network_config(settings, data.shape, data.num_classes)
    try:
        network = build_network(settings.network.kind, config, settings.seed)
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
    state = TrainState(network.to(settings.device), optimization)
    if settings.compile:
        network.compile()
    log = Log(settings.log_every)
    found = resume.latest(context.work.path)
    if found is not None:
        step, tensors, record = found
        state.restore(step, tensors)
        log.restore(tensors, record)
        context.log(f"continuing after step {step} of {settings.steps}")
    return state, log


def _keep(folder: Path, step: int, state: TrainState) -> None:
    """Write the EMA weights of a checkpoint to the work area."""
    from safetensors.torch import save_file

    from stages.resume import write_atomically

    path = folder / checkpoint_name(step)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda p: save_file(state.ema.network.state_dict(), p))


def _save(context: Context, state: TrainState, log: Log) -> None:
    """Write the resumable state; the one before stays until this one is whole."""
    from stages import resume

    resume.save(context.work.path, state.step, state.tensors() | log.tensors(), log.record())
    context.work.push()


def _tell(context: Context, step: int, log: Log) -> None:
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


STAGE = Stage(
    name="train",
    settings=TrainSettings,
    output=TrainedNetwork,
    run="stages.train:run",
    inputs={"data": Input(Data)},
    sources=lambda settings: [
        table.LOSSES[settings.method],
        table.NETWORKS[settings.network.kind],
    ],
)
