"""What the stage `train` does: train under Ray Train, keep checkpoints and resumable states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.stage import Context, Result
from stages import architectures, densities, objectives, watching
from stages.methods import table
from stages.model import build_network, checkpoint_name

if TYPE_CHECKING:
    from torch import nn

    from stages.loop import Batches, TrainState
    from stages.losslog import LossLog
    from stages.methods.losses import Loss
    from stages.prepare import DataSet, Images
    from stages.teacher import Teacher
    from stages.train import TrainOptions, TrainSettings

ABSCISSA = "training_step"
MAIN_LOSSES = ("loss/velocity", "loss/denoising")
REFUSAL = "refused.txt"

# Each start of the workers that finds no room for them has waited a minute.
MAX_FAILED_STARTS = 60


def run(context: Context) -> Result:
    """Train under Ray Train: in this process, or on `num_workers` workers with a shared disk.

    When a worker is lost, Ray Train starts the group anew and it goes on from the last state.
    """
    import os

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings: TrainSettings = context.settings
    trainer = TorchTrainer(
        lambda config: _guarded(config["context"]),
        train_loop_config={"context": context},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu=settings.device == "cuda"
        ),
        run_config=RunConfig(
            name=context.path.name,
            storage_path=str(context.work.path / "ray-train"),
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=MAX_FAILED_STARTS
            ),
        ),
    )
    refusal = context.work.path / REFUSAL
    refusal.unlink(missing_ok=True)
    _fit(trainer, settings)
    if refusal.exists():
        raise StageError(refusal.read_text())
    return finish(context)


def _fit(trainer: Any, settings: TrainSettings) -> None:
    """Train. Raises StageError where the workers never found room, as when a cluster has become
    smaller since the plan was checked against it."""
    from ray.train.v2.api.exceptions import ControllerError

    try:
        trainer.fit()
    except ControllerError as error:
        if "startup timed out" not in str(error):
            raise
        raise StageError(
            f"Ray Train's workers found no room in {MAX_FAILED_STARTS} attempts: num_workers="
            f"{settings.num_workers}; lower train.num_workers, or try again when the cluster has "
            "room; what was trained is kept"
        ) from error


def _guarded(context: Context) -> None:
    """`train_worker`, a mistake of the settings or a broken loss told through the work area: they
    are errors of every worker, and no reason to start the group anew."""
    from stages.resume import write_atomically

    try:
        train_worker(context)
    except StageError as error:
        text = str(error)
        if not context.settings.num_workers:
            raise
        if _is_first():
            write_atomically(context.work.path / REFUSAL, lambda path: path.write_text(text))


def _is_first() -> bool:
    from torch import distributed

    return not distributed.is_initialized() or distributed.get_rank() == 0


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
    from stages import loop

    settings: TrainSettings = context.settings
    data, teacher = context.inputs["data"].load(), _teacher(context)
    first = _is_first()
    config = network_config(settings, data, teacher)
    state, log, watch = _start(context, data, config)
    images = training_images(settings, data)
    batches = loop.Batches(
        images,
        images.labels if settings.conditional and data.num_classes else None,
        settings.batch_size,
        settings.seed,
        _device(settings),
        teacher and teacher.load(),
        # A continued training goes on in the stream of images and noise where its start ended.
        first_step=_steps_before(context),
    )
    loss = _loss(context)
    check(loss, state.network, data, batches)
    kept = set(settings.kept_steps)
    # A training that the alarm has ended stays ended when it is resumed.
    steps = state.step if watch is not None and watch.stops else settings.steps
    for step in loop.train(state, loss, batches, steps, batches.share):
        rows = list(log.add(step))
        keep, save = step.step in kept, step.step % settings.save_every == 0
        look, stop = watch is not None and watch.due(step.step), False
        if keep or save or look:
            log.check(step.step)  # never keep what a broken loss has made
        if look:
            if first:
                rows += _look(context, watch, log, step.step, state)
            stop = loop.said_by_first(watch.stops, _device(settings))
        if first:
            if rows:
                context.points(ABSCISSA, rows)
            if keep or stop:
                _keep(context.work.path, step.step, state)
            if save or stop or step.step == settings.steps:
                _save(context, state, log, watch)
            _tell(context, step.step, log)
        if stop:
            break


def _look(context: Context, watch: Any, log: LossLog, step: int, state: TrainState) -> list[Any]:
    """Measure the ICR of the averaged weights; its points go to the curves, news to the person."""
    try:
        rows, said = watch.look(step)
    except ValueError as error:
        raise StageError(str(error)) from error
    log.curves += rows
    if said:
        context.notice(said, **watch.tags())
    if watch.stops:
        context.notice(f"training ends at step {step} of {context.settings.steps} (scan.stop)")
    return list(rows)


def _loss(context: Context) -> Loss:
    """The method's loss, t from the density that settings name."""
    settings, spectrum = context.settings, context.inputs.get("spectrum")
    density = settings.density
    try:
        found = None if spectrum is None else spectrum.load()
        of_time = densities.time_density(density, density.kind, density.base, found)
        options = settings.own(settings.method)
        return objectives.loss_of(settings.method, options, settings.label_dropout, of_time)
    except ValueError as error:
        raise StageError(str(error)) from error


def network_config(
    settings: TrainOptions, data: DataSet, teacher: Teacher | None = None
) -> dict[str, Any]:
    """Keyword arguments of the network for these data and this teacher."""
    width = 0 if teacher is None else teacher.description["width"]
    own = settings.own(settings.method).of_network(width)
    num_classes = data.num_classes if settings.conditional else 0
    return architectures.config_of(settings.network, data.shape, num_classes, **own)


def training_images(settings: TrainSettings, data: DataSet) -> Images:
    """The images to train on. Raises StageError where there are fewer than asked for."""
    if settings.limit is None:
        return data.train
    if settings.limit > len(data.train):
        raise StageError(
            f"{settings.limit_setting}={settings.limit} is above the {len(data.train)} training "
            "images; lower it"
        )
    return data.train.first(settings.limit)


def _teacher(context: Context) -> Teacher | None:
    """The teacher, if the method aligns with one; StageError where it saw other images."""
    teacher = context.inputs.get("teacher")
    if teacher is None:
        return None
    facts, ours = teacher.description, context.inputs["data"].description
    if (facts["data"], facts["num_images"]) != (ours["name"], ours["num_train"]):
        raise StageError(
            f"the teacher's features are of {facts['num_images']} images of {facts['data']}, the "
            f"data are {ours['num_train']} of {ours['name']}; connect a teacher of these data"
        )
    return teacher


def check(loss: Loss, network: nn.Module, data: DataSet, batches: Batches) -> None:
    """Raise StageError unless loss, network, data and teacher fit together: before any step."""
    import torch

    from stages.methods.draws import Draws
    from stages.methods.losses import Batch, check_fit

    one = torch.arange(1)
    targets, tokens = (None, None) if batches.teacher is None else batches.teacher.batch(one)
    everything = Batch(data.train[:1], batches.labels, Draws(0, one), targets, tokens)
    try:
        check_fit(loss, network, everything)
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
    facts, settings = context.inputs["start"].description, context.settings
    theirs = {"method": facts["method"], "network": facts["network"], **facts["config"]}
    ours = {"method": settings.method, "network": settings.network.kind, **config}
    if found := architectures.differences(ours, theirs):
        raise ValueError(
            f"the training to continue has {', '.join(found)}; a training goes on with the network "
            "and the loss it began with"
        )
    found = context.inputs["start"].load().network(_start_step(context))
    network.load_state_dict(found.state_dict())


def _start(context: Context, data: Any, config: dict[str, Any]) -> tuple[TrainState, LossLog, Any]:
    """The state to train from: fresh, continued, or the last that an interrupted run saved; and
    what watches the training, or None."""
    from stages import resume
    from stages.loop import Optimization, TrainState
    from stages.losslog import LossLog

    settings: TrainSettings = context.settings
    device = _device(settings)
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
        accumulate=settings.accumulate,
    )
    state = TrainState(network.to(device), optimization)
    if settings.compile:
        network.compile()
    watching.check_scans(settings, state.ema.network, config, data)
    log = LossLog(settings.log_every)
    watch = watching.watch_of(settings, state.ema.network, config, data)
    found = resume.latest(context.work.path)
    if found is not None:
        step, tensors, record = found
        state.restore(step, tensors)
        log.restore(tensors, record, device)
        if watch is not None:
            watch.restore(record["watched"])
        context.log(f"continuing after step {step} of {settings.steps}")
    # The decay's warm-up is for fresh weights; those of a start have an average behind them.
    state.ema.num_updates += _steps_before(context)
    return state, log, watch


def _keep(folder: Path, step: int, state: TrainState) -> None:
    """Write the EMA weights of a checkpoint to the work area."""
    from safetensors.torch import save_file

    from stages.resume import write_atomically

    path = folder / checkpoint_name(step)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda p: save_file(state.ema.network.state_dict(), p))


def _save(context: Context, state: TrainState, log: LossLog, watch: Any) -> None:
    """Write the resumable state; the one before stays until this one is whole."""
    from stages import resume

    record = log.record()
    if watch is not None:
        record |= {"watched": watch.record(), "stopped": watch.stops, "tags": dict(watch.tags())}
    resume.save(context.work.path, state.step, state.tensors() | log.tensors(), record)
    context.work.push()


def _tell(context: Context, step: int, log: LossLog) -> None:
    recent = [value for name, _, value in log.curves[-8:] if name in MAIN_LOSSES]
    note = f"loss {recent[-1]:.4f}" if recent else ""
    measured = [value for name, _, value in log.curves[-40:] if name == "icr"]
    note += f", ICR {measured[-1]:.4f}" if measured else ""
    context.progress(step, context.settings.steps, "steps", note)
    if step % (10 * log.every) == 0 and note:
        context.log(f"step {step} of {context.settings.steps}: {note}")


def tokens_a_sample(settings: TrainOptions, data: DataSet) -> int:
    """Tokens of a sample in the blocks: patches that are kept, and the class token."""
    num_patches = data.shape[1] * data.shape[2] // settings.network.patch**2
    own = settings.own(settings.method)
    kept = max(1, round(num_patches * (1 - getattr(own, "mask_ratio", 0.0))))
    return kept + (settings.method in table.TOKEN_LOSSES)


def finish(context: Context) -> Result:
    """Make the artifact of what `train_worker` left in the work area."""
    from stages import resume

    settings: TrainSettings = context.settings
    data = context.inputs["data"].load()
    step, _, record = resume.latest(context.work.path)
    if step != settings.steps and not record.get("stopped"):
        raise StageError(f"training ended after step {step} of {settings.steps}")
    (context.path / "checkpoints").mkdir()
    kept_steps = [kept for kept in settings.kept_steps if kept < step] + [step]
    for kept in kept_steps:
        name = checkpoint_name(kept)
        shutil.copyfile(context.work.path / name, context.path / name)
    config = network_config(settings, data, context.inputs.get("teacher"))
    facts = {
        "network": settings.network.kind,
        "config": config,
        "method": settings.method,
        "steps": kept_steps,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        "time_density": settings.density.name,
        "steps_before": _steps_before(context),
        "seed": settings.seed,
        "num_images": len(training_images(settings, data)),
        "parameters": architectures.num_parameters(settings.network.kind, config),
    }
    (context.path / "model.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    curves = [tuple(row) for row in record["curves"]]
    seconds = [tuple(row) for row in record["step_seconds"]]
    return Result(
        metrics={name: value for name, _, value in curves},
        curves=curves,
        abscissa=ABSCISSA,
        timings={"step_seconds": seconds} | _speeds(settings, data, seconds),
        tags=record.get("tags", {}),
    )


def _speeds(
    settings: TrainSettings, data: DataSet, seconds: list[tuple[int, float]]
) -> dict[str, list[tuple[int, float]]]:
    """Tokens a second, for networks that have tokens; else images a second."""
    name, number = "images_per_second", settings.batch_size
    if settings.network.kind == "sit":
        name = "tokens_per_second"
        number *= tokens_a_sample(settings, data)
    return {name: [(step, number / value) for step, value in seconds]}
