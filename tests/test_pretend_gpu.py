"""The stand-in GPU computes as the CPU does, and catches what it is there for."""

import pytest
import torch

from tests.pretend_gpu import DEVICE, MixedDevicesError, running


def test_it_computes_as_the_cpu_does():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Flatten())
    x = torch.randn(2, 1, 5, 5)
    ours = torch.nn.utils.parameters_to_vector(network.parameters()).clone()
    network(x).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    with running() as gpu:
        network.to(DEVICE)
        gpu.waits.clear()
        given = x.to(DEVICE, non_blocking=True)
        network(given).square().mean().backward()
        found = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert found.device == DEVICE
        assert not gpu.waits
        assert torch.equal(found.cpu(), expected)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        optimizer.step()
        moved = torch.nn.utils.parameters_to_vector(network.parameters()).cpu()
    assert (moved - ours).abs().max().item() == pytest.approx(1e-3, rel=1e-2)


def test_changes_in_place_and_views_are_seen():
    with running() as gpu:
        x = torch.zeros(4, device=DEVICE)
        x[1:3].add_(1)
        x.view(2, 2)[0] += 2
        assert not gpu.waits
        assert x.cpu().tolist() == [2, 3, 1, 0]


MIXES = {
    "a sum": lambda x: x + torch.ones(3),
    "a product": lambda x: torch.ones(2, 3) @ x,
    "a selection": lambda x: torch.where(torch.ones(3) > 0, x, 0.0),
    "weights": lambda x: torch.nn.Linear(3, 2)(x),
    "a generator": lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_planted_mix_is_refused(mix):
    with running():
        x = torch.ones(3).to(DEVICE)
        with pytest.raises(MixedDevicesError, match=r"test_pretend_gpu\.py:\d+"):
            mix(x)


WAITS = {
    "a number": lambda x: x.sum().item(),
    "a truth": lambda x: bool((x > 0).all()),
    "a list": lambda x: x.tolist(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy to the device": lambda x: torch.ones(3).to(x),
    "a list to the device": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "a mask": lambda x: x[x > 0],
    "an index of the host": lambda x: x[torch.tensor([0, 2])],
    "places": lambda x: x.nonzero(),
    "a copy into": lambda x: x.copy_(torch.zeros(3)),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_planted_wait_is_counted(wait):
    with running() as gpu:
        x = torch.ones(3).to(DEVICE)
        gpu.waits.clear()
        wait(x)
        assert sum(gpu.waits.values()) == 1
        assert "test_pretend_gpu.py:" in next(iter(gpu.waits))


NO_WAITS = {
    "a number given": lambda x: x * 2.0 + torch.tensor(1.0),
    "written there": lambda x: torch.full((3,), 0.5, device=x.device),
    "numbers where a mask says": lambda x: x.masked_fill(x > 0, 0.0),
    "a pinned copy": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "places of the device": lambda x: x[torch.arange(2, device=x.device)],
    "random": lambda x: torch.randn_like(x),
}


@pytest.mark.parametrize("call", NO_WAITS.values(), ids=NO_WAITS)
def test_what_needs_no_wait_counts_as_none(call):
    with running() as gpu:
        x = torch.ones(3).to(DEVICE)
        gpu.waits.clear()
        call(x)
        assert not gpu.waits
