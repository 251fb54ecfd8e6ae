"""One training as its worker runs it: in this process, or one of several that Ray Train starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context
from stages.artifacts.network import build_network
from stages.methods import table
from stages.settings import densities, networks
from stages.training import watch as training_watch
from stages.training.repeated import repeating

if TYPE_CHECKING:
    from torch import nn

    from stages.artifacts.data import DataSet, Images
    from stages.artifacts.network import TrainedNetwork
    from stages.artifacts.teacher import Teacher
    from stages.methods.losses import Loss
    from stages.settings.losses import LossOptions
    from stages.training.log import LossLog
    from stages.training.loop import Batches, TrainState
    from stages.training.train import TrainOptions, TrainSettings

ABSCISSA = "training_step"
# What published networks and their losses share, where files do not say it.
PUBLISHED_DEFAULTS = {"sigma_data": 0.5, "noise_scale": 1.0}
# More waiting for data than this is told, once so many seconds were seen.
WAITING_SHARE, WAITING_SECONDS = 0.1, 30.0


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
    with repeating("train", context.settings.repeats_on_gpu):
        _train(context)


def _train(context: Context) -> None:
    from stages.training import loop

    settings: TrainSettings = context.settings
    data, teacher = context.inputs["data"].load(), context.inputs.get("teacher")
    first = _is_first()
    config = network_config(settings, data, teacher, context.inputs.get("start"))
    state, log, watch = _start(context, data, config)
    kept = set(settings.kept_steps)
    # A training that the alarm has ended stays ended when it is resumed.
    steps = state.step if watch is not None and watch.stops else settings.steps
    noticed = False
    with _batches(context, data, teacher) as batches, _saver(context, first) as saver:
        loss = _loss(context)
        check(settings.loss_options, state.network, data, batches)
        for step in loop.train(state, loss, batches, steps, batches.share):
            rows = list(log.add(step, batches.waited))
            keep, save = step.step in kept, step.step % settings.save_every == 0
            look, stop = watch is not None and watch.due(step.step), False
            if keep or save or look:
                log.check(step.step)  # never keep what a broken loss has made
            if look:
                if first:
                    rows += _look(context, watch, log, step.step, state)
                stop = loop.said_by_first(watch.stops, _device(settings))
            # Of a sharded training all processes bring them together.
            weights = state.weights() if keep or stop else {}
            save = save or stop or step.step == settings.steps
            tensors = state.tensors() if save else {}
            if first:
                if rows:
                    context.points(ABSCISSA, rows)
                    noticed = noticed or _waits(context, log, batches)
                if keep or stop:
                    saver.weights(step.step, weights)
                if save:
                    saver.state(step.step, tensors | log.tensors(), _record(log, watch))
                _tell(context, step.step, log)
            if stop:
                break


def _batches(context: Context, data: DataSet, teacher: Teacher | None) -> Batches:
    """The batches of this process, and the threads that read them."""
    from stages.artifacts import reading
    from stages.training import loop

    settings: TrainSettings = context.settings
    images, features = training_images(settings, data), None
    if teacher is not None:
        ours, pixels = context.inputs["data"], context.inputs.get("pixels")
        with raised_as(StageError):
            features = teacher.of(ours, pixels, images, _device(settings))
    small = images.small and (features is None or features.small)
    return loop.Batches(
        images,
        images.labels if settings.conditional and data.num_classes else None,
        settings.batch_size,
        settings.seed,
        _device(settings),
        features,
        # A continued training goes on in the stream of images and noise where its start ended.
        first_step=_steps_before(context),
        readers=reading.sensible(settings.readers, settings.device, small),
        end=settings.steps,
    )


def _waits(context: Context, log: LossLog, batches: Batches) -> bool:
    """Whether the training waits for data for so much of its time that a person was told."""
    share = log.waits(WAITING_SECONDS)
    if share <= WAITING_SHARE:
        return False
    context.notice(
        f"training waits {100 * share:.0f} % of its time for data; raise train.readers (of which "
        f"there are {batches.readers})"
    )
    return True


def _look(context: Context, watch: Any, log: LossLog, step: int, state: TrainState) -> list[Any]:
    """Measure the ICR of the averaged weights; its points go to the curves, news to the person."""
    with raised_as(StageError):
        rows, said = watch.look(step)
    log.curves += rows
    if said:
        context.notice(said, **watch.tags())
    if watch.stops:
        context.notice(f"training ends at step {step} of {context.settings.steps} (scan.stop)")
    return list(rows)


def _loss(context: Context) -> Loss:
    """The method's loss, t from the density that settings name."""
    settings, spectrum = context.settings, context.inputs.get("spectrum")
    density = settings.drawn
    with raised_as(StageError):
        loaded = None if spectrum is None else spectrum.load()
        of_time = densities.time_density(density, density.kind, density.base, loaded)
        return settings.loss_options.loss(settings.label_dropout, of_time)


def network_config(
    settings: TrainOptions,
    data: DataSet,
    teacher: Teacher | None = None,
    start: TrainedNetwork | None = None,
) -> dict[str, Any]:
    """Keyword arguments of the network for these data and this teacher; those of the network it
    goes on from where that was published with more than settings name.

    Raises StageError where the loss does not fit that network.
    """
    width = 0 if teacher is None else teacher.description["width"]
    own = settings.loss_options.of_network(width)
    if start is not None and goes_on_as_it_is(start.description):
        theirs = start.description["config"]
        for name, usual in PUBLISHED_DEFAULTS.items():
            value = theirs.get(name, usual)
            if own.get(name, value) != value:
                raise StageError(
                    f"train.{settings.method}.{name}={own[name]:g}, and the network to go on from "
                    f"was trained with {value:g}; set it to that"
                )
        more = {"train_uncertainty": False} if "train_uncertainty" in own else {}
        return theirs | more
    num_classes = data.num_classes if settings.conditional else 0
    return networks.config_of(settings.network, data.shape, num_classes, **own)


def goes_on_as_it_is(facts: Mapping[str, Any]) -> bool:
    """Whether a network from elsewhere is trained on as its file describes it."""
    return facts.get("format", "bench") != "bench" and facts["network"] in table.TRAINED_PUBLISHED


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


def check(loss: LossOptions, network: nn.Module, data: DataSet, batches: Batches) -> None:
    """Raise StageError unless loss, network, data and teacher fit together: before any step."""
    import torch

    from stages.methods.draws import Draws
    from stages.methods.losses import Batch, check_fit

    one = torch.arange(1)
    targets, tokens = (None, None) if batches.teacher is None else batches.teacher.batch(one)
    everything = Batch(data.train[:1], batches.labels, Draws(0, one), targets, tokens)
    with raised_as(StageError):
        check_fit(loss, network, everything)


def _steps_before(context: Context) -> int:
    """Steps made before this training began, by its start and what that continued."""
    start = context.inputs.get("start")
    if start is None:
        return 0
    return start.description["steps_before"] + _start_step(context)


def _start_step(context: Context) -> int:
    """The checkpoint of the start to continue."""
    step = context.settings.start_step
    return context.inputs["start"].description["steps"][-1] if step is None else step


def _continue(network: nn.Module, context: Context, config: dict[str, Any]) -> None:
    """Give the network the EMA weights of the start's checkpoint."""
    facts, settings = context.inputs["start"].description, context.settings
    if facts.get("format", "bench") != "bench":
        _take_over(network, context, config)
        return
    theirs = {"method": facts["method"], "network": facts["network"], **facts["config"]}
    ours = {"method": settings.method, "network": settings.network.kind, **config}
    if other := networks.differences(ours, theirs):
        raise ValueError(
            f"the training to continue has {', '.join(other)}; a training goes on with the network "
            "and the loss it began with"
        )
    trained = context.inputs["start"].load().network(_start_step(context))
    network.load_state_dict(trained.state_dict())


def _take_over(network: nn.Module, context: Context, config: dict[str, Any]) -> None:
    """Give the network the weights of one from elsewhere, which may lack parts of the method's."""
    from stages.training.taken_over import take_over

    facts, settings = context.inputs["start"].description, context.settings
    if facts["network"] != settings.network.kind:
        raise ValueError(
            f"the network to go on from is a {facts['network']}, not a {settings.network.kind}; a "
            "training goes on by a method of its own kind"
        )
    weights = context.inputs["start"].load().network().state_dict()
    if goes_on_as_it_is(facts):
        network.load_state_dict(weights)
        context.log(f"goes on from a network of {facts['format']}")
        return
    fresh = take_over(network, weights, config, facts["config"])
    context.log(f"goes on from a network of {facts['format']}; fresh: {', '.join(fresh) or 'none'}")


def _start(context: Context, data: Any, config: dict[str, Any]) -> tuple[TrainState, LossLog, Any]:
    """The state to train from: fresh, continued, or the last that an interrupted run saved; and
    what watches the training, or None."""
    from stages.nets.blocks import placed, recompute
    from stages.nets.compiled import compile_network
    from stages.training import resume
    from stages.training.log import LossLog
    from stages.training.loop import Optimization, TrainState, saved_by_first

    settings: TrainSettings = context.settings
    device = _device(settings)
    with raised_as(StageError):
        network = build_network(settings.network.kind, config, settings.seed)
        if context.inputs.get("start") is not None:
            _continue(network, context, config)
    optimization = Optimization(
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        clip=settings.clip,
        ema_decay=settings.ema,
        ema_warm_up=settings.ema_warm_up,
        precision=settings.precision,
        accumulate=settings.accumulate,
    )
    scanned = replace(data, train=training_images(settings, data))
    training_watch.check_scans(settings, network, config, scanned)
    if settings.shard:  # its blocks come to the device one by one
        state = TrainState(network, optimization, shard_on=device)
    else:
        state = TrainState(placed(network, device), optimization)
    if settings.activation_checkpointing:
        recompute(network)
    if settings.compile:
        compile_network(network)
    log = LossLog(settings.log_every)
    watch = training_watch.watch_of(settings, state.ema.network, config, scanned)
    # Its machine may be the only one that has the state.
    saved = saved_by_first(lambda: resume.latest(context.work.path), device)
    if saved is not None:
        step, tensors, record = saved
        state.restore(step, tensors)
        log.restore(tensors, record, device)
        if watch is not None:
            watch.restore(record["watched"])
        context.log(f"continuing after step {step} of {settings.steps}")
    # The decay's warm-up is for fresh weights; those of a start have an average behind them.
    state.ema.num_updates += _steps_before(context)
    return state, log, watch


def _saver(context: Context, first: bool) -> Any:
    """What writes states and checkpoints; of the first process alone."""
    from stages.training.saving import Saver

    return Saver(context.work.path, context.work.push) if first else nullcontext()


def _record(log: LossLog, watch: Any) -> dict[str, Any]:
    """What a state holds beside tensors."""
    record = log.record()
    if watch is not None:
        record |= {"watched": watch.record(), "stopped": watch.stops, "tags": dict(watch.tags())}
    return record


def _tell(context: Context, step: int, log: LossLog) -> None:
    main = f"loss/{context.settings.loss_options.terms[0]}"
    recent = [value for name, _, value in log.curves[-8:] if name == main]
    note = f"loss {recent[-1]:.4f}" if recent else ""
    measured = [value for name, _, value in log.curves[-40:] if name == "icr"]
    note += f", ICR {measured[-1]:.4f}" if measured else ""
    context.progress(step, context.settings.steps, "steps", note)
    if step % (10 * log.every) == 0 and note:
        waiting = f"{100 * log.waits():.0f} % of the time waiting for data"
        context.log(f"step {step} of {context.settings.steps}: {note}; {waiting}")
