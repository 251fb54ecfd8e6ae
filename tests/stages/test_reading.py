"""Reading ahead: the same batches whatever the threads, none left behind, and the time it saves."""

import threading
import time

import pytest
import torch

from pipeline import gpus
from stages.artifacts import reading
from stages.artifacts.reading import QUEUE, Ahead
from stages.methods import sit
from stages.settings.losses.sit import SiTOptions
from stages.training import loop, train, worker
from tests.stages import losses
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests
from tests.stages.disks import Damaged, Held, Slow


def readers() -> list[str]:
    """The names of the threads that read at the moment."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("threads", [0, 1, 3, 7])
def test_results_stand_in_the_order_that_they_are_asked_for(threads):
    def square(number):
        time.sleep(0.002 * (number % 3))  # later ones are done before earlier ones
        return number**2

    with Ahead(square, threads) as squares:
        assert [squares(n) for n in (0, 1, 2, 3, 9, 10, 4, 5)] == [0, 1, 4, 9, 81, 100, 16, 25]
    assert list(reading.in_order(square, (3, 1, 2), threads)) == [9, 1, 4]
    assert not readers()


def test_a_queue_is_kept_and_nothing_is_read_beyond_its_end():
    read = []
    with Ahead(lambda n: read.append(n) or n, 2, end=7) as results:
        assert results(0) == 0
        while len(read) < 1 + QUEUE:
            time.sleep(0.001)
        time.sleep(0.02)
        assert sorted(read) == list(range(1 + QUEUE))
        assert [results(n) for n in range(1, 7)] == list(range(1, 7))
    assert sorted(read) == list(range(7))


def test_several_threads_read_at_once():
    """Three that wait for each other can only go on together."""
    together = threading.Barrier(3)
    with Ahead(lambda n: together.wait(timeout=10), 3, end=6) as results:
        assert len({results(n) for n in range(6)}) == 3


def test_an_error_is_raised_where_its_result_is_asked_for():
    def read(number):
        if number == 2:
            raise OSError("image 2 does not decode")
        return number

    for threads in (0, 3):
        with Ahead(read, threads) as results:
            assert [results(0), results(1)] == [0, 1]
            with pytest.raises(OSError, match="image 2 does not decode"):
                results(2)
            assert results(3) == 3
        assert not readers()


def test_only_time_in_which_nothing_computes_is_waiting():
    with Ahead(lambda n: time.sleep(0.1), 1, end=1) as results:
        results(0)
        assert results.waited == pytest.approx(0.1, abs=0.05)
    until = time.perf_counter() + 0.08
    with Ahead(lambda n: time.sleep(0.1), 1, end=1) as results:
        results(0, busy=lambda: time.perf_counter() < until)
        assert results.waited < 0.06


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_read_ahead_are_those_read_in_place(monkeypatch, threads):
    images, labels = Held(torch.randn(12, 1, 8, 8)), torch.arange(12) % 10
    plain = loop.Batches(images, labels, 5, seed=0, first_step=3)
    monkeypatch.setattr(loop, "_rank_and_world", lambda: (1, 2))
    with loop.Batches(images, labels, 5, seed=0, first_step=3, readers=threads) as ahead:
        for step in (0, 1, 2, 7, 8, 3):  # a resumed training begins anywhere
            ours, theirs = ahead(step), plain(step)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            assert ours.draws.step == theirs.draws.step == step + 3
            assert torch.equal(ours.draws.indices, theirs.draws.indices)
    assert not readers()


class Event:
    """Of a GPU that is at work until it was asked three times, SECONDS each."""

    SECONDS, asked = 0.02, 0

    def record(self, stream):
        self.stream = stream

    def query(self):
        Event.asked += 1
        time.sleep(Event.SECONDS)
        return Event.asked > 3


def test_a_gpu_is_given_what_is_stored(few, monkeypatch):
    """Its memory and its clock are stood for: pinned 8-bit images go there, and are finished
    there."""
    data, pinned, moved = few.load(), [], []
    plain = loop.Batches(data.train, data.train.labels, 6, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(part) or part)
        patched.setattr(torch.Tensor, "to", lambda part, *where, **how: moved.append(part) or part)
        patched.setattr(torch.cuda, "Event", Event)
        patched.setattr(torch.cuda, "current_stream", lambda device: device)
        patched.setattr(Event, "asked", 0)
        slow, began = Slow(data.train, 0.5), time.perf_counter()
        with loop.Batches(slow, data.train.labels, 6, 0, readers=1, end=1) as batches:
            batches.device = torch.device("cuda")
            batch = batches(0)
        took = time.perf_counter() - began
        assert Event.asked == 4
    assert [part.dtype for part in moved] == [torch.uint8, torch.int64, torch.int64]
    assert {id(part) for part in moved} <= {id(part) for part in pinned}
    assert torch.equal(batch.images, plain(0).images)
    assert torch.equal(batch.labels, plain(0).labels)
    assert 0 < batches.waited < took - 3 * Event.SECONDS  # in which the device had work


def test_what_cannot_be_read_stops_the_training_at_its_batch():
    images = torch.randn(12, 1, 8, 8)
    first = loop.Batches(Held(images), None, 4, seed=0).indices(torch.arange(12))
    batches = loop.Batches(Damaged(images, first[9].item()), None, 4, seed=0, readers=3)
    with batches:
        assert len(batches(0).images) == len(batches(1).images) == 4
        with pytest.raises(OSError, match="does not decode"):
            batches(2)
    assert not readers()


@pytest.mark.parametrize("threads", [1, 4])
def test_readers_change_nothing(tmp_path, few, model, threads):
    settings = TINY.revised(readers=threads)
    assert settings.keyed() == TINY.keyed()
    assert digests(trained_in(context(tmp_path, settings, data=few)).path) == digests(model.path)
    assert not readers()


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(SiTOptions, "mathematics", "tests.stages.losses:FailingLoss")
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": None, "nan": None})
    return losses.FAILS_AT


def test_a_training_that_reads_ahead_goes_on_exactly(tmp_path, few, model, failing):
    settings = TINY.revised(readers=3)
    for failing["interrupt"] in (6, 13):
        with pytest.raises(losses.InterruptedTrainingError):
            trained_in(context(tmp_path, settings, data=few))
        assert not readers()
    failing["interrupt"] = None
    resumed = trained_in(context(tmp_path, settings, data=few))
    assert digests(resumed.path) == digests(model.path)
    shares = resumed.manifest.timings["data_waiting_share"]
    assert [step for step, _ in shares] == [4, 8, 12, 16]
    assert all(0 <= share <= 1 for _, share in shares)


def test_an_interrupt_and_an_early_stop_end_the_readers(tmp_path, few, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    settings = TINY.revised(readers=2)
    with monkeypatch.context() as patched:
        patched.setattr(worker, "_tell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained_in(context(tmp_path / "interrupt", settings, data=few))
    assert not readers()
    views = {"num_images": 24, "num_views": 3, "view_seeds": (0, 1), "batch_size": 36}
    ending = {"every": 2, "stop": True, "stop_confirmations": 1, "alarm_errors": 0.01}
    live = settings.revised(steps=60, live=views | ending)
    stopped = trained_in(context(tmp_path / "stop", live, data=few))
    assert stopped.load().steps[-1] < 60
    assert not readers()


# --- a slow disk


class SlowLoss(sit.Loss):
    """SiT's, in a network that takes 60 ms longer."""

    def __call__(self, network, batch):
        time.sleep(0.06)
        return super().__call__(network, batch)


SLOW = TINY.revised(steps=40, checkpoint_steps=(), num_checkpoints=1, log_every=8)


def trained_from_a_slow_disk(folder, few, monkeypatch, seconds, threads):
    """The training, and what it said. seconds: that a batch takes to be read."""
    monkeypatch.setattr(SiTOptions, "mathematics", f"{__name__}:SlowLoss")
    monkeypatch.setattr(worker, "WAITING_SECONDS", 2.0)
    disk = Slow(few.load().train, seconds)
    monkeypatch.setattr(worker, "training_images", lambda settings, data: disk)
    at = context(folder, SLOW.revised(readers=threads), data=few)
    made = trained_in(at)
    assert len(disk.threads) == max(1, threads)
    return made, at


def waiting(made, first: int = 0) -> float:
    """The share of the training's time, from a window on; windows are of equal length in steps."""
    seconds = [value for _, value in made.manifest.timings["step_seconds"]][first:]
    shares = [value for _, value in made.manifest.timings["data_waiting_share"]][first:]
    return sum(s * w for s, w in zip(seconds, shares, strict=True)) / sum(seconds)


def test_readers_keep_up_with_a_slow_disk(tmp_path, few, monkeypatch):
    """A batch is read in 120 ms, a step takes 60 and more: six threads read one each 20 ms."""
    made, at = trained_from_a_slow_disk(tmp_path, few, monkeypatch, 0.12, 6)
    print("waiting", made.manifest.timings["data_waiting_share"], waiting(made))
    assert waiting(made, first=1) < 0.1  # the first window waits for the first batch
    assert not at.noticed


@pytest.mark.parametrize("threads", [0, 1])
def test_a_training_that_waits_says_so_once(tmp_path, few, monkeypatch, threads):
    """One thread reads during the 60 ms of a step, and without any every reading is waited for."""
    made, at = trained_from_a_slow_disk(tmp_path, few, monkeypatch, 0.12, threads)
    print("waiting", waiting(made))
    assert (0.45 if threads == 0 else 0.2) < waiting(made) < (0.7 if threads == 0 else 0.55)
    (said,) = (message for message, _ in at.noticed)
    assert said.startswith("training waits ")
    assert f"% of its time for data; raise train.readers (of which there are {threads})" in said


def test_small_sets_are_read_in_place_on_a_cpu(few, monkeypatch):
    assert few.load().train.small
    monkeypatch.setattr(reading, "cores", lambda: 3)
    for asked, device, small, expected in (
        (None, "cpu", True, 0),
        (None, "cpu", False, 3),
        (None, "cuda", True, 3),
        (0, "cuda", False, 0),
        (12, "cpu", True, 12),
    ):
        assert reading.sensible(asked, device, small) == expected
    monkeypatch.setattr(reading, "cores", lambda: 64)
    assert reading.sensible(None, "cuda", False) == reading.MOST_READERS


@pytest.mark.parametrize(("number", "cores", "expected"), [(1, 64, 16), (8, 96, 12), (8, 32, 8)])
def test_gpus_share_the_cores_that_feed_them(monkeypatch, number, cores, expected):
    monkeypatch.setattr(gpus, "installed", lambda: ["GPU"] * number)
    monkeypatch.setattr(gpus.os, "sched_getaffinity", lambda process: range(cores))
    assert gpus.feeders(None, "cuda") == expected
    assert gpus.feeders(None, "cpu") == 0
    assert [gpus.feeders(asked, "cuda") for asked in (0, 40)] == [0, 40]


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = reading.cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * whole))
    assert reading.cores() == 1


def test_readers_are_bounded():
    with pytest.raises(ValueError, match="readers"):
        train.TrainOptions(readers=-1)
