"""Two processes that share a network's parts train as two that each have the whole."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing

from stages.methods import maskalign
from stages.nets.blocks import recompute
from stages.nets.compiled import compile_network
from stages.nets.sit import SiT
from stages.training import loop, resume, sharding, train
from stages.training.log import LossLog
from tests.nets.test_compiled import Counting

WIDTH, IMAGES, STEPS = 6, 24, 4


class Stored:
    """Random images and, as a teacher, random features of them."""

    images = None

    def __len__(self):
        return IMAGES

    def raw(self, which):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(IMAGES, 1, 8, 8, generator=generator)[which]
        patches = torch.randn(IMAGES, 16, WIDTH, generator=generator)[which]
        return images if self.images is None else (patches, patches[:, 0])

    def finish(self, raw, draws=None):
        if draws is not None:
            return raw
        return torch.nn.functional.normalize(raw[0], dim=-1), raw[1].clone()


class Features(Stored):
    images = ()


def network():
    torch.manual_seed(0)
    sizes = {"teacher_dim": WIDTH, "class_token_dim": WIDTH, "projector_width": 8}
    made = SiT(8, 1, 2, 16, 3, 2, num_classes=4, mix_layers=1, alignment_depth=2, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def state_of(shard: bool, accumulate: int = 1, unused: bool = False) -> loop.TrainState:
    """unused: with a parameter that no loss reads."""
    how, made = loop.Optimization(1e-3, clip=0.3, accumulate=accumulate, ema_decay=0.9), network()
    if unused:
        made.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    return loop.TrainState(made, how, "cpu" if shard else None)


def trained(state: loop.TrainState, steps: int = STEPS, loss=None) -> list[list[float]]:
    """Train; the losses and the gradient's norm of every step, over all processes."""
    stored, rows, loss = Stored(), [], loss or maskalign.Loss()
    with loop.Batches(stored, torch.arange(IMAGES) % 4, 8, 0, teacher=Features()) as batches:
        log = LossLog(every=1)
        for step in loop.train(state, loss, batches, steps, batches.share):
            rows.append([value for _, _, value in log.add(step)])
    return rows


def work(rank: int, folder) -> None:
    place = f"file://{folder}/group"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    found = {}
    for name, shard, accumulate in (
        ("replicated", False, 1),
        ("sharded", True, 1),
        ("in parts", True, 2),
    ):
        state = state_of(shard, accumulate)
        rows = trained(state)
        found[name] = rows, state.tensors(), state.weights()
        if name == "sharded":
            held = [p.to_local().numel() for p in state.network.parameters()]
            found["held"] = sum(held), sum(p.numel() for p in state.network.parameters())
    more = state_of(False, 2, unused=True)
    found["replicated, in parts"] = trained(more), {}, more.weights()
    reduced = []

    def watched(model, batch):
        reduced.append(any(p.grad is not None for p in model.parameters()))
        return maskalign.Loss()(model, batch)

    trained(state_of(True, 2), 2, watched)
    found["reduced"], found["graphs"] = reduced, {}
    for name, shard in (("computed again", True), ("replicated, computed again", False)):
        again, backend = state_of(shard), Counting()
        recompute(again.network)
        compile_network(again.network, backend)
        found[name] = trained(again), again.tensors(), again.weights()
        found["graphs"][name] = backend.graphs
    # Interrupted after half, and gone on with by new processes.
    half = state_of(True)
    rows = trained(half, STEPS // 2)
    tensors = half.tensors()
    if rank == 0:
        resume.save(folder, half.step, tensors, {})
    step, saved, _ = loop.saved_by_first(lambda: resume.latest(folder), "cpu")
    other = state_of(True)
    other.restore(step, saved)
    found["resumed"] = rows + trained(other), other.tensors(), other.weights()
    if rank:
        assert not found["sharded"][1], "the first process alone has it whole"
    else:
        torch.save(found, folder / "found.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    multiprocessing.spawn(work, (folder,), 2)
    return torch.load(folder / "found.pt") | {"folder": folder}


def alike(ours, theirs):
    """But for rounding, which AdamW makes a step of where a gradient is nothing else."""
    (rows, *own), (their_rows, *other) = ours, theirs
    assert torch.tensor(rows).allclose(torch.tensor(their_rows), rtol=1e-5, atol=1e-6)
    for found, expected in zip(own, other, strict=True):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
        a, b = (torch.cat([of[name].flatten() for name in found]) for of in (found, expected))
        assert (a - b).norm() < 1e-5 * b.norm()


@pytest.mark.parametrize(
    "name", ["sharded", "in parts", "computed again", "replicated, computed again"]
)
def test_they_train_the_same_network(found, name):
    """Their gradients' norms are added up in another order; in parts the gradients too; blocks are
    compiled, and computed again."""
    alike(found[name], found["replicated"])


def test_parameters_that_a_loss_leaves_alone_go_with_gradients_in_parts(found):
    rows, _, weights = found["replicated, in parts"]
    assert weights.pop("unused").shape == (3,)
    alike((rows, weights), (found["replicated"][0], found["replicated"][2]))


def test_gradients_in_parts_are_spread_after_each(found):
    assert found["reduced"] == [False, True] * 2


def test_blocks_that_are_computed_again_are_compiled(found):
    assert found["graphs"]["computed again"] >= 1
    assert found["graphs"]["replicated, computed again"] >= 1


def test_each_process_holds_half(found):
    mine, all_of_them = found["held"]
    assert mine == pytest.approx(all_of_them / 2, rel=0.05)


def test_an_interrupted_one_goes_on_as_it_would_have(found):
    rows, tensors, _ = found["resumed"]
    assert rows == found["sharded"][0]
    expected = found["sharded"][1]
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())


def test_one_process_goes_on_from_what_two_saved(found):
    step, tensors, _ = resume.latest(found["folder"])
    state = state_of(False)
    state.restore(step, tensors)
    trained(state)
    assert state.step == STEPS
    alike(([], state.tensors()), ([], found["replicated"][1]))


def test_where_nothing_is_spread_tensors_are_what_they_are():
    state = state_of(False)
    again = copy.deepcopy(state.network)
    assert not sharding.is_sharded(again)
    value = torch.ones(3)
    assert sharding.together(value) is value
    assert sharding.part(value, torch.zeros(3)) is value


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"num_workers": 0}, "shard=true and num_workers=0 .*set num_workers=2"),
        ({"num_workers": (1, 4)}, r"shard=true and num_workers=\(1, 4\) contradict"),
        ({"method": "edm", "network": {"kind": "unet"}}, "only sit and jit are spread"),
        ({"live": {}}, "leave scan.live unset"),
    ],
)
def test_what_cannot_be_spread_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        train.TrainSettings(**{"num_workers": 2, "shard": True, "batch_size": 8} | how)


def test_trainings_that_are_not_spread_keep_their_keys():
    plain = train.TrainSettings(num_workers=2)
    assert "shard" not in plain.keyed()
    assert plain.revised(shard=True).keyed()["shard"] is True
