"""Trainings that go on from networks of other methods."""

import pytest
import torch

from stages.nets.sit import SiT
from stages.training.taken_over import take_over

SIZE = {"image_size": [8, 8], "channels": 4, "width": 16, "depth": 2, "num_heads": 2}
SIZE |= {"num_classes": 3}
TEACHER = {"teacher_dim": 6, "projector_width": 8, "alignment_depth": 1}
CONFIGS = {
    "sit": SIZE,
    "repa": SIZE | TEACHER,
    "reg": SIZE | TEACHER | {"class_token_dim": 6},
    "maskalign": SIZE | TEACHER | {"class_token_dim": 6, "mix_layers": 2},
}


def network(method, seed=0, **changes):
    torch.manual_seed(seed)
    made = SiT(**CONFIGS[method] | changes)
    return made


def trained(method):
    """A network none of whose weights are zero."""
    made = network(method, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if CONFIGS[method].get("class_token_dim"):
            made.positions[0] = 0
    return made


def velocity(made, method, token):
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])
    return made(x, t, labels, token if CONFIGS[method].get("class_token_dim") else None)


@pytest.mark.parametrize(
    ("theirs", "ours", "fresh"),
    [
        ("sit", "sit", []),
        ("sit", "repa", ["teacher_dim"]),
        ("repa", "sit", []),
        ("repa", "repa", []),
        ("reg", "maskalign", ["mix_layers"]),
    ],
)
def test_the_first_output_is_that_of_the_file(theirs, ours, fresh):
    start, made, token = trained(theirs), network(ours), torch.randn(2, 6)
    assert take_over(made, start.state_dict(), CONFIGS[ours], CONFIGS[theirs]) == fresh
    torch.manual_seed(3)
    expected = velocity(start, theirs, token)
    torch.manual_seed(3)
    found = velocity(made, ours, token)
    if isinstance(expected, tuple):
        assert all(map(torch.equal, found, expected))
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("theirs", ["sit", "repa"])
def test_maskalign_goes_on_from_networks_without_a_class_token(theirs):
    start, made = trained(theirs), network("maskalign")
    fresh = take_over(made, start.state_dict(), CONFIGS["maskalign"], CONFIGS[theirs])
    assert fresh[:2] == ["class_token_dim", "mix_layers"]
    ours, given = made.state_dict(), start.state_dict()
    assert not ours["positions"][0].any()
    assert torch.equal(ours["positions"][1:], given["positions"])
    shared = given.keys() - {"positions"}
    assert all(torch.equal(ours[name], given[name]) for name in shared)
    # With the class token's own columns left out, what the blocks do to patches is unchanged.
    plain = network("maskalign").state_dict()
    assert torch.equal(ours["class_head.weight"], plain["class_head.weight"])


def test_what_cannot_go_on_is_refused():
    state = trained("reg").state_dict()
    with pytest.raises(ValueError, match=r"has class_token_dim=6, which this method's has not"):
        take_over(network("sit"), state, CONFIGS["sit"], CONFIGS["reg"])
    wide = {"width": 32}
    with pytest.raises(ValueError, match=r"has width 16 \(here 32\)"):
        take_over(network("sit", **wide), state, SIZE | wide, CONFIGS["sit"])
    other = {"teacher_dim": 7}
    with pytest.raises(ValueError, match=r"has teacher_dim 6 \(here 7\)"):
        take_over(network("repa", **other), state, CONFIGS["repa"] | other, CONFIGS["repa"])
