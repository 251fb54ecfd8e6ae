"""JiT against the outputs of the official code."""

import pytest
import torch

from stages.nets.jit import JiT, rotary_angles, rotated
from tests.nets.published import CLOSE, FIXTURES, apart, arguments, tensors


@pytest.fixture(scope="module")
def network():
    facts = arguments("jit/kwargs.json")
    made = JiT(**{k: v for k, v in facts.items() if k not in ("t_eps", "noise_scale")})
    stored = torch.load(FIXTURES / "jit/JiT-tiny.pt", weights_only=True)
    made.load_state_dict({key.removeprefix("net."): value for key, value in stored.items()})
    return made.eval().requires_grad_(False)


def test_clean_images_are_those_of_the_official_code(network):
    io = tensors("jit/io.safetensors")
    assert apart(network(io["x"], io["t"], io["y"]), io["x0"]) < CLOSE
    assert apart(network(io["x"], io["t"]), io["x0_null"]) < CLOSE
    assert apart(network(io["x"], io["t"], torch.full((4,), 5)), io["x0_null"]) < CLOSE


def test_every_block(network):
    io, seen = tensors("jit/io.safetensors"), {}
    hooks = [
        block.register_forward_hook(lambda m, i, out, index=index: seen.update({index: out}))
        for index, block in enumerate(network.blocks)
    ]
    network(io["x"], io["t"], io["y"])
    for hook in hooks:
        hook.remove()
    for index in range(3):
        assert apart(seen[index], io[f"block{index}"]) < CLOSE


def test_rotations_keep_norms_and_depend_on_distances():
    angles = rotary_angles(4, 16)
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 16, 16)
    turned_q, turned_k = rotated(q, angles), rotated(k, angles)
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm(dim=1))
    products = turned_q @ turned_k.T
    # Tokens at (0, 0) and (1, 1), and at (2, 1) and (3, 2): equally far apart.
    torch.testing.assert_close(products[0, 5], products[9, 14])
    assert not torch.isclose(products[0, 5], products[0, 6])


def test_all_of_it_trains():
    shape = {"hidden_size": 16, "depth": 2, "num_heads": 2, "bottleneck_dim": 4}
    made = JiT(8, 4, num_classes=3, in_context_len=2, in_context_start=1, **shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    made(torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.8]), torch.tensor([0, 2])).sum().backward()
    without = [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a side of 10 is not divisible by patch 4"):
        JiT(10, 4)
    with pytest.raises(ValueError, match="hidden_size 24 over 12 heads must be a multiple of 4"):
        JiT(8, 4, hidden_size=24)
    with pytest.raises(ValueError, match="in_context_start 4 is no block of the 2"):
        JiT(8, 4, depth=2)
