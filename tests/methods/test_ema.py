"""The moving average against its recursion, and the optimizer against the unfused one."""

import copy

import pytest
import torch

from stages.methods.ema import EMA, adamw
from stages.nets.sit import SiT


def network_of(seed: int = 0) -> SiT:
    torch.manual_seed(seed)
    return SiT(8, 1, 2, width=16, depth=1, num_heads=2, num_classes=3)


def wander(network, step: int) -> None:
    """Move all trained weights somewhere."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator))


def test_the_average_follows_its_recursion_with_the_warm_up():
    network = network_of()
    ema = EMA(network, decay=0.5)
    expected = {name: p.detach().double() for name, p in network.named_parameters()}
    for k in range(12):
        wander(network, k)
        ema.update(network)
        decay = min(0.5, (1 + k) / (10 + k))
        for name, p in network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    assert ema.num_updates == 12
    assert 12 / 21 > 0.5 > 1 / 10  # both branches of the minimum were taken
    for name, p in ema.network.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_the_papers_hold_the_decay_constant():
    network = network_of()
    ema = EMA(network, decay=0.9999, warm_up=False)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    wander(network, 0)
    ema.update(network)
    for name, p in ema.network.named_parameters():
        expected = 0.9999 * before[name] + 0.0001 * network.get_parameter(name)
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-7)


def test_the_average_is_a_frozen_copy_of_its_own():
    network = network_of()
    ema = EMA(network)
    before = copy.deepcopy(ema.network.state_dict())
    wander(network, 0)
    assert all(torch.equal(v, before[k]) for k, v in ema.network.state_dict().items())
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert not ema.network.training
    ema.update(network)
    assert torch.equal(ema.network.positions, network.positions)
    assert network.training


def test_a_restored_average_goes_on_as_the_first_would():
    network = network_of()
    first = EMA(network, decay=0.9)
    for k in range(3):
        wander(network, k)
        first.update(network)
    second = EMA(first.network, decay=0.9, num_updates=first.num_updates)
    wander(network, 3)
    # The restored average is frozen, so what training changes is read from the network.
    for ema in (first, second):
        ema.update(network)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_follows_other_weights_and_another_network():
    """Values that are loaded in place, and then the weights of a network of its own."""
    network, other = network_of(), network_of(1)
    ema = EMA(network, decay=0.5, warm_up=False)
    ema.update(network)
    network.load_state_dict(network_of(2).state_dict())
    for source in (network, other):
        expected = {
            name: (p.double() + q.detach().double()) / 2
            for (name, p), q in zip(
                ema.network.named_parameters(), source.parameters(), strict=True
            )
        }
        ema.update(source)
        for name, p in ema.network.named_parameters():
            torch.testing.assert_close(p.double(), expected[name])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(network_of(), decay)


def test_fused_adamw_is_adamw_and_leaves_frozen_weights_out():
    ours, theirs = network_of(), network_of()
    fused = adamw(ours.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    plain = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, foreach=False
    )
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            if a.requires_grad:
                a.grad = torch.randn(a.shape, generator=generator)
                b.grad = a.grad.clone()
        fused.step()
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    held = {id(p) for group in fused.param_groups for p in group["params"]}
    assert held == {id(p) for p in ours.parameters() if p.requires_grad}
