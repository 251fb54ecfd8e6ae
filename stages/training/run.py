"""What the stage `train` does: train under Ray Train, keep checkpoints and resumable states."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamagedArtifactError, StageError
from pipeline.fanout import CUBLAS
from pipeline.stage import Context, Result
from stages.artifacts.network import TrainedNetwork, checkpoint_name
from stages.settings import networks
from stages.training import worker

if TYPE_CHECKING:
    from stages.artifacts.data import DataSet
    from stages.training.train import TrainOptions, TrainSettings

# What workers say through the work area.
REFUSED, DAMAGED = "refused", "damaged"


def run(context: Context) -> Result:
    """Train under Ray Train: in this process, or on `num_workers` workers, which may be on other
    machines: what they keep goes through the work area.

    When a worker is lost, Ray Train starts the group anew and it goes on from the last state.
    """
    settings: TrainSettings = context.settings
    for word in (REFUSED, DAMAGED):
        context.work.forget(word)
    attempts = itertools.count(1)
    try:
        while not _fit(_trainer(context, next(attempts))):
            context.notice(
                f"waiting for the cluster: {settings.num_workers} workers found no room; they are "
                "started as soon as there is some"
            )
    except Exception:
        if damaged := context.work.told(DAMAGED):
            raise _damaged(damaged) from None
        raise
    if damaged := context.work.told(DAMAGED):
        raise _damaged(damaged)
    if refused := context.work.told(REFUSED):
        raise StageError(refused)
    context.work.pull()  # of the machine on which the first worker was
    return finish(context)


def _damaged(told: str) -> DamagedArtifactError:
    message, where = json.loads(told)
    return DamagedArtifactError(message, tuple(where))


def _trainer(context: Context, attempt: int) -> Any:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings: TrainSettings = context.settings
    place, filesystem = context.work.shared("ray-train")
    on_gpus, reserved = settings.device == "cuda", None
    if context.memory_gib:
        memory = context.memory_gib * 2**30
        reserved = {"GPU" if on_gpus else "CPU": 1, "memory": memory}
    return TorchTrainer(
        lambda config: _guarded(config["context"]),
        train_loop_config={"context": context},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu=on_gpus, resources_per_worker=reserved
        ),
        run_config=RunConfig(
            name=f"{context.path.name}-{attempt}",
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=0
            ),
        ),
    )


def _fit(trainer: Any) -> bool:
    """Train; whether the workers found room, as they do not while others have all there is."""
    from ray.train.v2.api.exceptions import ControllerError

    try:
        trainer.fit()
    except ControllerError as error:
        if "startup timed out" not in str(error):
            raise
        return False
    return True


def _guarded(context: Context) -> None:
    """`train_worker`, a mistake of the settings or a broken loss told through the work area: they
    are errors of every worker, and no reason to start the group anew."""
    if context.settings.num_workers:
        os.environ.setdefault(*CUBLAS)  # these processes are Ray Train's own
    if context.settings.num_workers and context.work.told(DAMAGED):
        return  # Ray Train takes it for a lost worker, and would try again and again
    try:
        worker.train_worker(context)
    except StageError as error:
        if not context.settings.num_workers:
            raise
        if worker._is_first():
            context.work.tell(REFUSED, str(error))
    except DamagedArtifactError as error:
        if context.settings.num_workers and error.where:
            context.work.tell(DAMAGED, json.dumps([str(error), error.where]))
        raise


def tokens_a_sample(settings: TrainOptions, data: DataSet) -> int:
    """Tokens of a sample in the blocks: patches that are kept, and the class token."""
    from stages.methods.patches import num_kept

    num_patches = data.shape[1] * data.shape[2] // settings.network.patch**2
    own = settings.loss_options
    return num_kept(num_patches, getattr(own, "mask_ratio", 0.0)) + own.uses_class_token


def finish(context: Context) -> Result:
    """Make the artifact of what `train_worker` left in the work area."""
    from stages.training import resume

    settings: TrainSettings = context.settings
    data = context.inputs["data"].load()
    step, _, record = resume.latest(context.work.path)
    if step != settings.steps and not record.get("stopped"):
        raise StageError(f"training ended after step {step} of {settings.steps}")
    (context.path / "checkpoints").mkdir()
    kept_steps = [kept for kept in settings.kept_steps if kept < step] + [step]
    for kept in kept_steps:
        name = checkpoint_name(kept)
        if not resume.sealed(context.work.path / name):
            context.work.clear()
            raise StageError(
                f"the weights kept after step {kept} were damaged on disk while it trained; run "
                "the same command again: it trains from the start"
            )
        shutil.copyfile(context.work.path / name, context.path / name)
    given = (context.inputs.get(name) for name in ("teacher", "start"))
    config = worker.network_config(settings, data, *given)
    facts = {
        "network": settings.network.kind,
        "config": config,
        "method": settings.method,
        "steps": kept_steps,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        "class_counts": data.class_counts,
        "time_density": settings.drawn.name,
        "steps_before": worker._steps_before(context),
        "seed": settings.seed,
        "num_images": len(worker.training_images(settings, data)),
        "parameters": networks.num_parameters(settings.network.kind, config),
    }
    TrainedNetwork.describe(context.path, facts)
    curves = [tuple(row) for row in record["curves"]]
    seconds, waiting = (
        [tuple(row) for row in record[n]] for n in ("step_seconds", "waiting_share")
    )
    return Result(
        metrics={name: value for name, _, value in curves},
        curves=curves,
        abscissa=worker.ABSCISSA,
        timings={"step_seconds": seconds, "data_waiting_share": waiting}
        | _speeds(settings, data, seconds),
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
