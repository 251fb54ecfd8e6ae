"""Trainings on Ray Train workers: gradients as of one process, lost workers, elastic groups."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest
import torch

from pipeline.errors import DamagedArtifactError, StageError
from pipeline.objects import ObjectLocation
from pipeline.workarea import WorkArea
from stages.artifacts import network as network_artifact
from stages.settings.networks import NetworkSettings, config_of
from stages.training import loop, run, teach, train
from tests import s3
from tests.stages.conftest import TEACH, TINY, trained_in
from tests.stages.context import context, digests, make, sealed

# One group: all of them share a Ray and its two CPUs.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("own_ray"),
    pytest.mark.xdist_group("ray_train"),
]

OWN = {"alignment_depth": 1, "projector_width": 8}
MASKED = TINY.revised(method="maskalign", maskalign=OWN)
LONG = MASKED.revised(num_workers=2, steps=200, save_every=1)


@pytest.fixture(scope="module", autouse=True)
def server():
    """It is there before Ray, whose workers find it."""
    with s3.server() as running:
        yield running


@pytest.fixture(scope="module")
def two(tmp_path_factory, few, teacher):
    """Trained on two workers without a disturbance."""
    folder = tmp_path_factory.mktemp("two")
    return make(folder, train.STAGE, LONG, data=few, teacher=teacher)


@pytest.fixture(scope="module")
def tiny_two(tmp_path_factory, few):
    """The same of the small network that one process trains in other tests."""
    folder = tmp_path_factory.mktemp("tiny")
    return make(folder, train.STAGE, TINY.revised(num_workers=2), data=few)


def reduced_gradient(data, teacher) -> torch.Tensor:
    """Of one step at global batch 20, by this process's share of it."""
    dataset = data.load()
    own = MASKED.maskalign.of_network(teacher.description["width"])
    config = config_of(MASKED.network, dataset.shape, dataset.num_classes, **own)
    network = network_artifact.build_network("sit", config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    features = teacher.of(data, images=dataset.train)
    batches = loop.Batches(dataset.train, dataset.train.labels, 20, 0, teacher=features, readers=2)
    loss = MASKED.maskalign.loss(0.1, None)
    how = loop.Optimization(1e-3, accumulate=2)
    model = loop._replicated(network, how.accumulate)
    with batches:
        loop.backward(model, loss, batches(3), how, batches.share)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("mode", ["stored", "online"])
def test_two_workers_reduced_gradients_are_those_of_one(tmp_path, few, teacher, mode):
    """Masks, times and noise are drawn by seed, step and sample. A teacher online: each worker asks
    its own for the features of its part."""
    if mode == "online":
        teacher = make(tmp_path / "teach", teach.STAGE, TEACH.revised(mode=mode), data=few)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work(config):
        from torch import distributed

        found = reduced_gradient(*config["inputs"])
        assert distributed.get_world_size() == 2
        torch.save(found, tmp_path / f"rank-{distributed.get_rank()}.pt")

    TorchTrainer(
        work,
        train_loop_config={"inputs": (few, teacher)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="gradients", storage_path=str(tmp_path / "ray")),
    ).fit()
    whole = reduced_gradient(few, teacher)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert (found - whole).norm() < 1e-6 * whole.norm()


def test_two_ray_workers_train_as_one(tiny_two, model):
    two = tiny_two
    # Rounding grows: AdamW normalises even gradients that are nothing but rounding.
    for step, tolerance in ((7, 2e-6), (18, 1e-4)):
        pairs = [artifact.load().network(step).parameters() for artifact in (two, model)]
        ours, theirs = (torch.cat([p.flatten() for p in found]).double() for found in pairs)
        assert (ours - theirs).norm() < tolerance * theirs.norm()
    for name, value in model.metrics.items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-6)


def kill_a_worker(state, killed) -> None:
    """Kill one Ray Train worker as soon as the training has saved a state."""
    while not state.exists():
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return


def test_a_killed_worker_is_survived(tmp_path, few, teacher, two):
    """The group starts anew from the last state, and ends with the bytes of a calm training."""
    killed: list[int] = []
    state = tmp_path / "work/state-0.safetensors"
    watcher = threading.Thread(target=kill_a_worker, args=(state, killed), daemon=True)
    watcher.start()
    made = make(tmp_path, train.STAGE, LONG, data=few, teacher=teacher)
    watcher.join(timeout=5)
    assert killed
    assert digests(made.path) == digests(two.path)


class Elsewhere(WorkArea):
    """An area in an object store that each process has in a cache of its own, as machines do."""

    folder = ""

    def __reduce__(self):
        return elsewhere, (self._location.uri, self.folder)


def elsewhere(uri, folder) -> Elsewhere:
    os.environ["PIPELINE_CACHE"] = f"{folder}/{os.getpid()}"
    area = Elsewhere(ObjectLocation.of(uri), "train", "0" * 32)
    area.folder = folder
    return area


def test_a_training_goes_on_on_other_machines(tmp_path, few, tiny_two, server, monkeypatch):
    """No process sees another's folder, nor what an earlier attempt had on its machines: what was
    saved comes through the store, and the first worker tells it to the other."""
    uri, made, short = server.uri(), {}, TINY.revised(steps=10, checkpoint_steps=(7,))
    for attempt, settings in (("one", short), ("two", TINY)):
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / attempt))
        at = context(tmp_path / attempt, settings.revised(num_workers=2), data=few)
        at.work = elsewhere(uri, str(tmp_path / attempt / "caches"))
        made[attempt] = run.run(at)
    caches = {p.parent.name for p in (tmp_path / "two/caches").glob("*/*/work")}
    assert len(caches) == 1, "the first worker alone has a work area"
    assert digests(at.path) == digests(tiny_two.path)
    times = [made[attempt].timings["step_seconds"] for attempt in ("one", "two")]
    assert times[1][:2] == times[0][:2], "steps 4 and 8 were not made again"
    assert [step for step, _ in times[1]] == [4, 8, 12, 16]


def test_a_damaged_input_of_workers_is_named(tmp_path, few, server, monkeypatch):
    """It is made again by the engine, which hears whose it is."""

    class Damaged:
        def load(self):
            raise DamagedArtifactError("it is damaged", ("data", "1" * 32))

    settings = TINY.revised(num_workers=2, max_failures=0)
    with pytest.raises(DamagedArtifactError, match="it is damaged") as error:
        run.run(context(tmp_path, settings, data=Damaged()))
    assert error.value.where == ("data", "1" * 32)


@pytest.mark.parametrize("how", [{"num_workers": (1, 2)}, {"num_workers": 2, "shard": True}])
def test_elastic_groups_and_spread_weights_train_the_same_network(tmp_path, few, teacher, how):
    settings = MASKED.revised(**how)
    made = make(tmp_path / "made", train.STAGE, settings, data=few, teacher=teacher)
    one = trained_in(context(tmp_path / "one", MASKED, data=few, teacher=teacher))
    pairs = [a.load().network(7).parameters() for a in (made, one)]
    ours, theirs = (torch.cat([p.flatten() for p in found]) for found in pairs)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_workers_watch_together(tmp_path, few):
    """Two workers measure the ICR that one process measures, and agree on when to end."""
    views = {"num_images": 24, "num_views": 3, "view_seeds": (0, 1), "batch_size": 36}
    ending = {"every": 2, "stop": True, "stop_confirmations": 1, "alarm_errors": 0.01}
    settings = TINY.revised(steps=60, live=views | ending)
    alone = trained_in(context(tmp_path / "one", settings, data=few))
    made = make(tmp_path / "two", train.STAGE, settings.revised(num_workers=2), data=few)
    ours, theirs = ([c for c in a.curves() if c[0] == "icr"] for a in (made, alone))
    assert [step for _, step, _ in ours] == [step for _, step, _ in theirs]
    assert [v for *_, v in ours] == pytest.approx([v for *_, v in theirs], abs=1e-3)
    assert made.load().steps == alone.load().steps
    assert made.load().steps[-1] < 60


def test_a_refusal_of_the_workers_arrives_once_as_its_own(tmp_path, few, teacher):
    patch = NetworkSettings(width=16, depth=1, heads=2, patch=2)
    settings = MASKED.revised(num_workers=2, network=patch.model_dump())
    with pytest.raises(StageError, match="4 patches, the network's grid is 4x4"):
        make(tmp_path, train.STAGE, settings, data=few, teacher=teacher)


def test_workers_that_find_no_room_wait_for_it(tmp_path, few, teacher, monkeypatch):
    import ray

    def busy(free, most=60):
        """Until there are those who wait."""
        begun = time.monotonic()
        while not free.exists() and time.monotonic() - begun < most:
            time.sleep(0.05)

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    at = context(tmp_path, MASKED.revised(num_workers=2), data=few, teacher=teacher)
    free, notice = tmp_path / "free", at.notice
    other = ray.remote(num_cpus=1)(busy).remote(free)
    monkeypatch.setattr(at, "notice", lambda text, **tags: (notice(text, **tags), free.touch()))
    trained = sealed(at, train.STAGE, run.run(at))
    ray.get(other)
    said = "2 workers found no room; they are started as soon as there is some"
    assert {text for text, _ in at.noticed} == {f"waiting for the cluster: {said}"}
    assert trained.load().steps[-1] == MASKED.steps
