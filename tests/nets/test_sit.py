"""SiT against published counts, independent libraries, and what its options promise."""

import math

import pytest
import torch
from torch.nn import functional as F

from stages.methods.draws import Draws
from stages.methods.patches import patchify, unpatchify
from stages.nets.sit import Block, SiT, TimeEmbedding, check_labels, sincos_positions
from tests.nets.sizes import SIZES

TINY = {"image_size": 8, "channels": 1, "width": 16, "depth": 2, "num_heads": 2}


def tiny(**options) -> SiT:
    """A small network whose gates and heads are not zero, as after some training."""
    torch.manual_seed(0)
    network = SiT(**{**TINY, "num_classes": 10, "alignment_depth": 1, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return network


def inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.arange(batch)


def millions(**options) -> float:
    with torch.device("meta"):
        network = SiT(**options)
    return round(sum(p.numel() for p in network.parameters()) / 1e6, 3)


@pytest.mark.parametrize(
    ("size", "sit", "reg", "maskalign"),
    [("B", 130.500, 131.684, 152.940), ("XL", 675.111, 676.886, 724.696)],
)
def test_parameter_counts_are_the_published_ones(size, sit, reg, maskalign):
    assert millions(**SIZES[size]) == sit
    assert millions(**SIZES[size], class_token_dim=768) == reg
    assert millions(**SIZES[size], class_token_dim=768, mix_layers=2) == maskalign


@pytest.mark.parametrize(("size", "paper"), [("B", 154), ("XL", 732)])
def test_maskalign_comes_within_a_hundredth_of_the_papers_count_but_does_not_meet_it(size, paper):
    """Two mixing blocks are the nearest whole number; the paper's count is not met exactly."""
    counts = [millions(**SIZES[size], class_token_dim=768, mix_layers=m) for m in (1, 2, 3)]
    errors = [abs(count / paper - 1) for count in counts]
    assert min(errors) == errors[1]
    assert 0.005 < errors[1] <= 0.0101


def test_a_fresh_network_predicts_zero_and_its_blocks_pass_tokens_through():
    network = SiT(**TINY, num_classes=10, class_token_dim=6, teacher_dim=6, alignment_depth=1)
    x, t, labels = inputs()
    output = network(x, t, labels, torch.randn(3, 6), align=True)
    assert output.velocity.abs().max() == 0
    assert output.class_velocity.abs().max() == 0
    embedded = network.patch_embedding(patchify(x, 2)) + network.positions[1:]
    torch.testing.assert_close(output.hidden[:, 1:], embedded)


def test_a_block_agrees_with_torchs_attention():
    """adaLN-Zero around torch's own multi-head attention and a tanh-GELU MLP."""
    torch.manual_seed(0)
    block, width = Block(16, 2, 4.0), 16
    torch.nn.init.normal_(block.modulation.weight)
    attention = torch.nn.MultiheadAttention(width, num_heads=2, batch_first=True)
    attention.in_proj_weight, attention.in_proj_bias = block.qkv.weight, block.qkv.bias
    attention.out_proj = block.attention_out
    mlp = torch.nn.Sequential(block.mlp_in, torch.nn.GELU(approximate="tanh"), block.mlp_out)
    norm = torch.nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    x, condition = torch.randn(3, 5, width), torch.randn(3, width)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition)[:, None].chunk(6, -1)
    h = norm(x) * (1 + scale1) + shift1
    expected = x + gate1 * attention(h, h, h)[0]
    expected = expected + gate2 * mlp(norm(expected) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, condition), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_positions_follow_the_formula_on_any_grid(grid):
    table, width = sincos_positions(grid, 16), 16
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = []
            for position in (column, row):
                angles = [position / 10_000 ** (k / (width / 4)) for k in range(width // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * grid[1] + column], torch.tensor(expected))


def test_time_features_follow_the_formula():
    embedding = TimeEmbedding(16)
    t = 0.3
    angles = [t * 10_000 ** (-k / 128) for k in range(128)]
    features = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    expected = embedding.linear2(F.silu(embedding.linear1(features)))
    torch.testing.assert_close(embedding(torch.tensor([t]))[0], expected)


def test_positions_are_frozen_and_the_class_tokens_is_zero():
    network = tiny(class_token_dim=6)
    assert network.positions.shape == (17, 16)
    assert not network.positions.requires_grad
    assert network.positions[0].abs().max() == 0
    torch.testing.assert_close(network.positions[1:], sincos_positions((4, 4), 16))


def test_a_network_from_the_meta_device_is_a_network():
    with torch.device("meta"):
        network = SiT(**TINY)
    network.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(network.positions, sincos_positions((4, 4), 16))
    x, t, labels = inputs()
    assert network(x, t, labels).abs().max() == 0


def test_patches_come_back_as_the_image_they_were():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    torch.testing.assert_close(patches[0, 1], x[0, :, :2, 2:4].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, (2, 3), 2), x)


def test_plain_use_returns_a_velocity_of_the_images_shape():
    x, t, labels = inputs()
    assert tiny()(x, t, labels).shape == x.shape
    wide = SiT(image_size=(4, 8), channels=3, width=16, depth=1, num_heads=2, num_classes=0)
    assert wide(torch.randn(2, 3, 4, 8), torch.rand(2)).shape == (2, 3, 4, 8)


def test_no_label_a_null_label_and_a_dropped_label_are_one():
    network = tiny()
    x, t, labels = inputs()
    null = network(x, t)
    assert torch.equal(network(x, t, torch.full((3,), 10)), null)
    drop = torch.tensor([True, False, True])
    mixed = network(x, t, labels, drop=drop)
    torch.testing.assert_close(mixed[drop], null[drop])
    torch.testing.assert_close(mixed[1], network(x, t, labels)[1])
    assert not torch.allclose(mixed[1], null[1])


def test_the_projector_runs_only_when_asked_for():
    network, calls = tiny(class_token_dim=6, teacher_dim=5), []
    network.projector.register_forward_hook(lambda *_: calls.append(1))
    x, t, labels = inputs()
    velocity, class_velocity = network(x, t, labels, torch.randn(3, 6))
    assert velocity.shape == x.shape
    assert class_velocity.shape == (3, 6)
    assert not calls
    output = network(x, t, labels, torch.randn(3, 6), align=True)
    assert output.projection.shape == (3, 17, 5)
    assert calls


def test_hidden_states_are_those_after_the_block_of_the_alignment_depth():
    x, t, labels = inputs()
    hidden = []
    for depth in (1, 2):
        network, seen = tiny(teacher_dim=5, alignment_depth=depth, mix_layers=1), []
        for block in network.blocks:
            block.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        output = network(x, t, labels, align=True)
        assert torch.equal(output.hidden, seen[depth - 1])
        torch.testing.assert_close(output.projection, network.projector(output.hidden))
        hidden.append(output.hidden)
    assert not torch.allclose(*hidden)


@pytest.mark.parametrize("mix_layers", [0, 1])
@pytest.mark.parametrize("class_token_dim", [0, 6])
def test_keeping_every_patch_is_masking_none(mix_layers, class_token_dim):
    network = tiny(mix_layers=mix_layers, class_token_dim=class_token_dim, teacher_dim=5)
    x, t, labels = inputs()
    token = (torch.randn(3, 6),) if class_token_dim else ()
    keep = torch.arange(16).expand(3, -1)
    masked = network(x, t, labels, *token, keep=keep, align=True)
    full = network(x, t, labels, *token, align=True)
    torch.testing.assert_close(unpatchify(masked.velocity, (4, 4), 2), full.velocity)
    torch.testing.assert_close(masked.hidden, full.hidden)


@pytest.mark.parametrize("mix_layers", [0, 2])
def test_only_mixing_carries_a_masked_patchs_content_to_the_others(mix_layers):
    network = tiny(mix_layers=mix_layers, class_token_dim=6)
    x, t, labels = inputs()
    x.requires_grad_()
    keep = Draws(0, torch.arange(3)).keep(16, 12)
    velocity, class_velocity = network(x, t, labels, torch.randn(3, 6), keep=keep)
    (velocity.square().sum() + class_velocity.square().sum()).backward()
    gradient = patchify(x.grad, 2).norm(dim=-1)
    kept = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)
    assert (gradient[kept] > 0).all()
    assert (gradient[~kept] > 0).all() if mix_layers else gradient[~kept].max() == 0


def test_velocities_under_masking_belong_to_the_kept_patches():
    """Without attention every patch stands alone, so masking the others changes nothing."""
    network = tiny(class_token_dim=6)
    for block in network.blocks:
        torch.nn.init.zeros_(block.attention_out.weight)
    x, t, labels = inputs()
    keep, token = Draws(0, torch.arange(3)).keep(16, 5), torch.randn(3, 6)
    masked, class_masked = network(x, t, labels, token, keep=keep)
    full, class_full = network(x, t, labels, token)
    assert masked.shape == (3, 5, 4)
    expected = torch.stack([patchify(full, 2)[i, keep[i]] for i in range(3)])
    torch.testing.assert_close(masked, expected)
    torch.testing.assert_close(class_masked, class_full)


def test_bfloat16_by_autocast_and_by_conversion():
    network = tiny(class_token_dim=6, teacher_dim=5, mix_layers=1)
    x, t, labels = inputs()
    token = torch.randn(3, 6)
    exact = network(x, t, labels, token)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = network(x, t, labels, token)[0]
    low = network.bfloat16()(x.bfloat16(), t, labels, token.bfloat16())[0]
    for v in (auto, low):
        assert (v.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_dim": 5, "alignment_depth": 3}, "alignment_depth 3"),
        ({"teacher_dim": 5, "alignment_depth": 0}, "alignment_depth 0"),
        ({"image_size": 9}, "patch_size"),
        ({"width": 18}, "width 18"),
        ({"num_heads": 3}, "num_heads 3"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"width": 0}, "width is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"image_size": 0}, "image_size 0x0"),
        ({"projector_width": 0}, "projector_width is 0"),
        ({"num_classes": -1}, "num_classes"),
        ({"mix_layers": -1}, "mix_layers"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SiT(**{**TINY, **options})


def test_inputs_that_do_not_fit_are_refused():
    x, t, labels = inputs()
    network = tiny()
    with pytest.raises(ValueError, match=r"takes \(B, 1, 8, 8\)"):
        network(torch.zeros(3, 1, 6, 6), t, labels)
    for wrong in (labels - 1, labels + 9):
        with pytest.raises(ValueError, match="labels run from"):
            network(x, t, wrong)
    with pytest.raises(ValueError, match="no class token"):
        network(x, t, labels, torch.zeros(3, 6))
    with pytest.raises(ValueError, match="a class token"):
        tiny(class_token_dim=6)(x, t, labels)
    with pytest.raises(ValueError, match="projector"):
        network(x, t, labels, align=True)
    check_labels(torch.tensor([0, 10]), 10)
