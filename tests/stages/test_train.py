"""Training: exact resumption, NaN losses, draws and order by (seed, step, index), checkpoints."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import StageError
from stages.artifacts import network as network_artifact
from stages.settings.losses.sit import SiTOptions
from stages.settings.networks import NetworkSettings
from stages.training import loop, resume, run, train, worker
from tests.stages import losses
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests, make
from tests.stages.disks import Held


@pytest.fixture
def failing(monkeypatch):
    """Put the failing loss in SiT's place; returns its switches."""
    monkeypatch.setattr(SiTOptions, "mathematics", "tests.stages.losses:FailingLoss")
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": None, "nan": None})
    return losses.FAILS_AT


@pytest.mark.parametrize("interruptions", [(3,), (11, 12), (6, 13, 17)])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path, few, model, failing, interruptions
):
    for step in interruptions:
        failing["interrupt"] = step
        with pytest.raises(losses.InterruptedTrainingError):
            trained_in(context(tmp_path, TINY, data=few))
    failing["interrupt"] = None
    at = context(tmp_path, TINY, data=few)
    resumed = trained_in(at)
    if interruptions != (3,):
        assert any("continuing after step" in line for line in at.logged)
    assert digests(resumed.path) == digests(model.path)
    assert resumed.metrics == model.metrics


def test_curves_of_a_resumed_run_are_whole(tmp_path, few, failing):
    whole = context(tmp_path / "whole", TINY, data=few)
    worker.train_worker(whole)
    expected = run.finish(whole).curves
    assert [step for name, step, _ in expected if name == "loss/velocity"] == [4, 8, 12, 16]
    failing["interrupt"] = 11
    with pytest.raises(losses.InterruptedTrainingError):
        worker.train_worker(context(tmp_path / "cut", TINY, data=few))
    failing["interrupt"] = None
    cut = context(tmp_path / "cut", TINY, data=few)
    worker.train_worker(cut)
    result = run.finish(cut)
    assert result.curves == expected
    assert [step for step, _ in result.timings["step_seconds"]] == [4, 8, 12, 16]
    assert whole.sent == expected


def test_a_damaged_state_is_passed_over(tmp_path, few, model, failing):
    failing["interrupt"] = 12
    with pytest.raises(losses.InterruptedTrainingError):
        trained_in(context(tmp_path, TINY, data=few))
    failing["interrupt"] = None
    slots = {name: resume._readable(tmp_path / "work")[name] for name in resume.SLOTS}
    assert sorted(slots.values()) == [5, 10]
    newest = tmp_path / "work" / max(slots, key=slots.get)
    newest.write_bytes(newest.read_bytes()[:1000])
    at = context(tmp_path, TINY, data=few)
    assert digests(trained_in(at).path) == digests(model.path)
    assert any("continuing after step 5" in line for line in at.logged)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
def test_a_flipped_bit_of_a_state_gives_no_other_weights(tmp_path, few, model, failing, where):
    failing["interrupt"] = 12
    with pytest.raises(losses.InterruptedTrainingError):
        trained_in(context(tmp_path, TINY, data=few))
    failing["interrupt"] = None
    slots = resume._readable(tmp_path / "work")
    newest = tmp_path / "work" / max(slots, key=slots.get)
    data = bytearray(newest.read_bytes())
    data[int(where * len(data))] ^= 0x40
    newest.write_bytes(data)
    at = context(tmp_path, TINY, data=few)
    assert digests(trained_in(at).path) == digests(model.path)
    assert any("continuing after step 5" in line for line in at.logged)


def test_kept_weights_that_changed_on_disk_are_not_handed_on(tmp_path, few, failing):
    failing["interrupt"] = 12
    with pytest.raises(losses.InterruptedTrainingError):
        trained_in(context(tmp_path, TINY, data=few))
    failing["interrupt"] = None
    file = tmp_path / "work" / network_artifact.checkpoint_name(7)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(StageError, match=r"after step 7 were damaged.*same command again"):
        trained_in(context(tmp_path, TINY, data=few))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("step", [8, 10, 13])
def test_a_nan_loss_stops_with_its_step_and_keeps_the_last_good_state(tmp_path, few, failing, step):
    failing["nan"] = step - 1
    with pytest.raises(StageError, match=rf"loss/velocity is nan at step {step};"):
        trained_in(context(tmp_path, TINY, data=few))
    kept, tensors, _ = resume.latest(tmp_path / "work")
    assert kept == (step - 1) // TINY.save_every * TINY.save_every
    assert all(torch.isfinite(value).all() for value in tensors.values())
    failing["nan"] = None
    trained_in(context(tmp_path, TINY, data=few))


def test_the_seed_decides_everything(tmp_path, few, model):
    again = trained_in(context(tmp_path / "again", TINY, data=few))
    assert digests(again.path) == digests(model.path)
    torch.manual_seed(5)
    torch.rand(3)  # the process's own random state plays no part
    state = torch.get_rng_state()
    other = trained_in(context(tmp_path / "other", TINY.revised(seed=1), data=few))
    assert torch.equal(torch.get_rng_state(), state)
    assert digests(other.path) != digests(model.path)


@pytest.mark.parametrize("how", [{"save_every": 1000}, {"activation_checkpointing": True}])
def test_how_it_is_done_changes_nothing(tmp_path, few, model, how):
    other = TINY.revised(**how)
    assert other.keyed() == TINY.keyed()
    assert digests(trained_in(context(tmp_path, other, data=few)).path) == digests(model.path)


def test_ray_trains_the_same_in_local_mode(tmp_path, few, model):
    assert digests(make(tmp_path, train.STAGE, TINY, data=few).path) == digests(model.path)


def test_checkpoints_hold_the_moving_average(few, model):
    loaded = model.load()
    assert loaded.steps == (7, 14, 18)
    assert (loaded.shape, loaded.num_classes) == ((1, 8, 8), 10)
    network = loaded.network(14)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    trained = network_artifact.build_network("sit", loaded.config, 0).parameters()
    numbers = sum(p.numel() for p in trained if p.requires_grad)
    assert model.description["parameters"] == numbers
    stored = load_file(model.path / "checkpoints/step-000014.safetensors")
    assert all(torch.equal(v, stored[k]) for k, v in network.state_dict().items())
    # The average after 7 steps by its definition, from the raw weights of every step.
    data = few.load()
    config = worker.network_config(TINY, data)
    how = loop.Optimization(TINY.lr, TINY.betas, 0.0, TINY.warmup_steps, TINY.clip, TINY.ema)
    state = loop.TrainState(network_artifact.build_network("sit", config, TINY.seed), how)
    average = {k: v.double() for k, v in state.network.state_dict().items()}
    batches = loop.Batches(data.train, data.train.labels, TINY.batch_size, TINY.seed)
    loss = TINY.loss_options.loss(TINY.label_dropout, None)
    for k, _ in enumerate(loop.train(state, loss, batches, 7)):
        decay = min(TINY.ema, (1 + k) / (10 + k))
        average = {
            name: decay * average[name] + (1 - decay) * value.double()
            for name, value in state.network.state_dict().items()
        }
    kept = loaded.network(7).state_dict()
    for name, value in average.items():
        torch.testing.assert_close(kept[name].double(), value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"no checkpoint of step 9 was kept \(there are 7, 14, 18"):
        loaded.network(9)


def test_every_epoch_shows_every_image_once():
    images = torch.arange(10.0)[:, None, None, None]
    batches = loop.Batches(Held(images), torch.arange(10), 4, seed=3)
    shown = torch.cat([batches(step).labels for step in range(10)]).view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in shown)
    assert len({tuple(epoch.tolist()) for epoch in shown}) == 4
    assert torch.equal(batches(7).images[:, 0, 0, 0].long(), batches(7).labels)
    other = loop.Batches(Held(images), torch.arange(10), 4, seed=4)
    assert not torch.equal(shown[0, :8].view(2, 4)[0], other(0).labels)


def test_workers_share_the_global_batch(monkeypatch):
    images = Held(torch.randn(12, 1, 8, 8))
    batches = loop.Batches(images, torch.arange(12) % 10, 6, seed=0)
    whole = [batches(step) for step in range(3)]
    assert all(torch.equal(batch.draws.indices, torch.arange(6)) for batch in whole)
    assert [batch.draws.step for batch in whole] == [0, 1, 2]
    for rank in range(3):
        monkeypatch.setattr(loop, "_rank_and_world", lambda rank=rank: (rank, 3))
        share = slice(2 * rank, 2 * rank + 2)
        for step in range(3):
            part = batches(step)
            assert torch.equal(part.images, whole[step].images[share])
            assert torch.equal(part.labels, whole[step].labels[share])
            noise = whole[step].draws.noise((1, 8, 8))[share]
            assert torch.equal(part.draws.noise((1, 8, 8)), noise)


def test_the_learning_rate_may_fall_along_a_cosine():
    how = loop.Optimization(lr=1.0, warmup_steps=2, decay_steps=10)
    rates = [how.lr_at(step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)


def test_warm_up_is_linear_then_constant():
    how = loop.Optimization(lr=1.0, warmup_steps=4)
    assert [how.lr_at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert loop.Optimization(lr=1.0, warmup_steps=0).lr_at(0) == 1.0


def test_kept_steps():
    assert train.TrainOptions(steps=1200).kept_steps == (300, 600, 900, 1200)
    assert train.TrainOptions(steps=30, checkpoint_steps=(10, 5), log_every=5).kept_steps == (
        5,
        10,
        30,
    )
    assert train.TrainOptions(steps=25, num_checkpoints=4).kept_steps == (6, 12, 18, 25)


def test_a_training_says_what_its_workers_reserve():
    """The fewest of an elastic group; a GPU alone, or a CPU."""

    def reserved(**changes):
        found = train.STAGE.workers(train.TrainSettings(**changes))
        return found and (found.count, found.cpus, found.gpus, found.setting)

    assert reserved() is None
    assert reserved(num_workers=4) == (4, 4, 0, "num_workers")
    assert reserved(num_workers=(2, 8)) == (2, 2, 0, "num_workers")
    assert reserved(num_workers=4, device="cuda") == (4, 0, 4, "num_workers")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 100, "checkpoint_steps": (50, 150)}, ("checkpoint_steps", "150", "steps=100")),
        ({"steps": 30, "warmup_steps": 31}, ("warmup_steps=31", "steps=30")),
        ({"steps": 30, "log_every": 31}, ("log_every=31", "steps=30")),
        ({"batch_size": 250, "num_workers": 8}, ("batch_size=250", "num_workers=8", "248", "256")),
        ({"betas": (0.9, 1.0)}, ("betas",)),
        ({"network": {"width": 30, "heads": 4}}, ("width=30", "heads=4", "to 28")),
        ({"network": {"width": 32, "heads": 3}}, ("width=32", "heads=3", "set width to 24")),
        ({"network": {"width": 10, "heads": 5}}, ("width=10", "heads=5", "set width to 20")),
        ({"network": {"width": 30, "heads": 2}}, ("width=30", "and by 4", "set width to 28")),
        ({"method": "sti"}, ("unknown method 'sti'", "did you mean 'sit'")),
    ],
)
def test_contradictions_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words[0]) as refused:
        train.TrainOptions(**changes)
    assert all(word in str(refused.value) for word in words)


def test_a_network_that_does_not_fit_the_images_is_refused_in_words(tmp_path, few):
    settings = TINY.revised(network=NetworkSettings(patch=3, width=16))
    with pytest.raises(StageError, match="not divisible by patch_size 3"):
        trained_in(context(tmp_path, settings, data=few))
