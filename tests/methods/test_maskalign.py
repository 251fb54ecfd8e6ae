"""MaskAlign's relation to REG and REPA, its masks, and its diagnostics."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from stages.methods import maskalign, reg, repa
from stages.methods.diagnostics import Heatmap, alignment_heatmap, stability_gap
from stages.methods.draws import Draws
from stages.methods.losses import Batch, alignment_loss, alignment_targets, patch_targets
from stages.methods.patches import patchify, take_tokens
from stages.nets.sit import SiT

Z = 6


def tiny(**options) -> SiT:
    """A small network with a teacher's projector and no weight at zero, in float64."""
    torch.manual_seed(0)
    network = SiT(
        **{
            "image_size": 8,
            "channels": 1,
            "width": 16,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 10,
            "class_token_dim": Z,
            "teacher_dim": Z,
            "projector_width": 12,
            "alignment_depth": 1,
            **options,
        }
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return network


def batch_of(size: int = 8, step: int = 5, images=None, features=None) -> Batch:
    generator = torch.Generator().manual_seed(2)
    random = torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    random_features = torch.randn(size, 16, Z, generator=generator, dtype=torch.float64)
    return Batch(
        images=random if images is None else images,
        labels=torch.arange(size) % 10,
        draws=Draws(0, torch.arange(size), step),
        patch_targets=patch_targets(random_features if features is None else features, (4, 4)),
        class_features=3 * torch.randn(size, Z, generator=generator, dtype=torch.float64),
    )


def gradients(network, loss, batch) -> dict:
    network.zero_grad()
    loss(network, batch).total.backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def kept_mask(keep: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(keep), 16, dtype=torch.bool).scatter_(1, keep, True)


def test_without_mask_and_mixing_it_is_reg():
    ours, theirs = maskalign.Loss(mask_ratio=0.0), reg.Loss()
    network, batch = tiny(), batch_of()
    a, b = ours(network, batch), theirs(network, batch)
    assert a.terms.keys() == b.terms.keys()
    torch.testing.assert_close(a.total, b.total, rtol=1e-12, atol=0)
    first, second = gradients(network, ours, batch), gradients(network, theirs, batch)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-10, atol=1e-13)
    assert not torch.allclose(maskalign.Loss()(network, batch).total, b.total)


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.0, 16), (0.25, 12), (0.5, 8), (0.75, 4), (0.99, 1), (0.3, 11)]
)
def test_the_number_of_kept_patches_is_fixed(ratio, count):
    loss, shapes = maskalign.Loss(mask_ratio=ratio), set()
    for step in range(20):
        keep = loss.keep(batch_of(step=step))
        shapes.add(None if keep is None else tuple(keep.shape))
    assert shapes == {None if count == 16 else (8, count)}


def test_masks_are_fresh_in_every_sample_and_step():
    loss = maskalign.Loss(mask_ratio=0.5)
    masks = torch.cat([kept_mask(loss.keep(batch_of(step=step))) for step in range(20)])
    assert len(masks.unique(dim=0)) > 150
    assert (masks.float().mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 160**0.5


@pytest.mark.parametrize("mix_layers", [0, 2])
def test_masked_patches_count_only_through_the_mixing_blocks(mix_layers):
    """The gradient of the whole loss in the noisy image, at the network's input."""
    network, batch = tiny(mix_layers=mix_layers), batch_of()
    loss, seen = maskalign.Loss(), []

    def watched(x, *args, **kwargs):
        seen.append(x.requires_grad_())
        return network(x, *args, **kwargs)

    loss(watched, batch).total.backward()
    gradient = patchify(seen[0].grad, 2).norm(dim=-1)
    kept = kept_mask(loss.keep(batch))
    assert (gradient[kept] > 0).all()
    assert (gradient[~kept] > 0).all() if mix_layers else gradient[~kept].max() == 0


def test_the_same_mask_selects_the_teachers_tokens_and_the_velocitys_target():
    network, loss, batch = tiny(), maskalign.Loss(), batch_of()
    kept = kept_mask(loss.keep(batch))
    before = loss(network, batch)
    features = batch.patch_targets.clone()
    features[~kept] = -features[~kept]
    after = loss(network, batch_of(features=features))
    torch.testing.assert_close(after.total, before.total)
    features = batch.patch_targets.clone()
    features[kept] = -features[kept]
    after = loss(network, batch_of(features=features))
    torch.testing.assert_close(after.terms["velocity"], before.terms["velocity"])
    assert not torch.allclose(after.terms["alignment"], before.terms["alignment"])


def test_each_term_is_the_mean_over_what_was_kept():
    network, loss, batch = tiny(mix_layers=1), maskalign.Loss(label_dropout=0.0), batch_of()
    keep, t = loss.keep(batch), batch.draws.time()
    eps, eps_cls = batch.draws.noise((1, 8, 8)).double(), batch.draws.class_noise(Z).double()
    time = t.double()
    x = (1 - time)[:, None, None, None] * batch.images + time[:, None, None, None] * eps
    c = (1 - time)[:, None] * batch.class_features + time[:, None] * eps_cls
    output = network(x, t, batch.labels, c, keep=keep, align=True)
    velocity, alignment = [], []
    for i in range(8):
        for k, patch in enumerate(keep[i].tolist()):
            row, column = 2 * (patch // 4), 2 * (patch % 4)
            target = (eps - batch.images)[i, 0, row : row + 2, column : column + 2].flatten()
            velocity.append((output.velocity[i, k] - target).square().mean())
            cosine = F.cosine_similarity(
                output.projection[i, 1 + k], batch.patch_targets[i, patch], dim=0
            )
            alignment.append(-cosine)
        alignment.append(
            -F.cosine_similarity(output.projection[i, 0], batch.class_features[i], dim=0)
        )
    class_loss = (output.class_velocity - (eps_cls - batch.class_features)).square().mean()
    terms = loss(network, batch)
    torch.testing.assert_close(terms.terms["velocity"], sum(velocity) / len(velocity))
    torch.testing.assert_close(terms.terms["alignment"], sum(alignment) / len(alignment))
    torch.testing.assert_close(terms.terms["class"], class_loss)
    expected = terms.terms["velocity"] + 0.5 * terms.terms["alignment"] + 0.03 * class_loss
    torch.testing.assert_close(terms.total, expected)


def test_the_other_draws_are_regs():
    """Methods compared at one seed see the same t and noise: a mask adds a draw, moves none."""
    seen = []

    def spy(x, t, labels, c, *, drop, keep=None, align):
        seen.append((x, t, c, drop))
        raise InterruptedError

    for loss in (reg.Loss(), maskalign.Loss()):
        with pytest.raises(InterruptedError):
            loss(spy, batch_of())
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)


def test_other_patch_sizes_and_oblong_images():
    generator = torch.Generator().manual_seed(0)
    size = {"image_size": (4, 8), "channels": 3, "patch_size": 4, "width": 16, "num_heads": 2}
    teacher = {"class_token_dim": Z, "teacher_dim": Z, "alignment_depth": 1}
    network = SiT(**size, **teacher, depth=2, num_classes=0)
    features = torch.randn(5, 2, Z, generator=generator)
    batch = Batch(
        torch.randn(5, 3, 4, 8, generator=generator),
        None,
        Draws(0, torch.arange(5)),
        patch_targets(features, (1, 2)),
        torch.randn(5, Z, generator=generator),
    )
    loss = maskalign.Loss(mask_ratio=0.5)
    eps, keep = batch.draws.noise((3, 4, 8)), loss.keep(batch)
    target = take_tokens(patchify(eps - batch.images, 4), keep)
    # A fresh network predicts zero, so its loss is the target's mean square.
    torch.testing.assert_close(loss(network, batch).terms["velocity"], target.square().mean())


@pytest.mark.parametrize("class_token_dim", [0, Z])
@pytest.mark.parametrize("masked", [False, True])
def test_the_heatmap_counts_the_largest_gradients(class_token_dim, masked):
    network, batch = tiny(class_token_dim=class_token_dim), batch_of(size=16)
    keep = maskalign.Loss().keep(batch) if masked else None
    heatmap = alignment_heatmap(network, batch, keep, top=0.2)

    t = batch.draws.time()
    time = t.double()[:, None, None, None]
    x = (1 - time) * batch.images + time * batch.draws.noise((1, 8, 8)).double()
    token = ()
    if class_token_dim:
        eps = batch.draws.class_noise(Z).double()
        token = ((1 - time[..., 0, 0]) * batch.class_features + time[..., 0, 0] * eps,)
    output = network(x, t, batch.labels, *token, keep=keep, align=True)
    targets = alignment_targets(batch, keep, bool(class_token_dim))
    loss = alignment_loss(output.projection, targets)
    (gradient,) = torch.autograd.grad(loss, output.hidden)
    present = keep if masked else torch.arange(16).expand(16, -1)
    hits = torch.zeros(16)
    for i in range(16):
        norms = gradient[i, bool(class_token_dim) :].norm(dim=-1)
        for k in norms.argsort(descending=True)[: 2 if masked else 3]:
            hits[present[i, k]] += 1
    torch.testing.assert_close(heatmap.hits, hits.double())
    torch.testing.assert_close(heatmap.seen, torch.bincount(present.flatten()).double())
    assert all(p.grad is None for p in network.parameters())


def test_the_heatmaps_summaries():
    flat = Heatmap(torch.full((16,), 2.0), torch.full((16,), 20.0))
    assert flat.max_min_ratio == 1
    assert flat.coefficient_of_variation == pytest.approx(0, abs=1e-6)
    total = flat + Heatmap(torch.tensor([10.0] * 8 + [0.0] * 8), torch.full((16,), 20.0))
    torch.testing.assert_close(total.probability, torch.tensor([0.3] * 8 + [0.05] * 8))
    assert total.max_min_ratio == pytest.approx(6)
    assert total.coefficient_of_variation == pytest.approx(0.125 / 0.175)
    never = Heatmap(torch.tensor([1.0, 0.0]), torch.tensor([10.0, 10.0]))
    assert never.max_min_ratio == math.inf
    with pytest.raises(ValueError, match="top"):
        alignment_heatmap(tiny(), batch_of(), top=0.0)


def test_a_patch_that_no_mask_left_in_is_no_part_of_the_summaries():
    unseen = Heatmap(torch.tensor([2.0, 4.0, 0.0]), torch.tensor([10.0, 10.0, 0.0]))
    assert unseen.max_min_ratio == pytest.approx(2)
    assert unseen.coefficient_of_variation == pytest.approx(1 / 3)
    assert unseen.probability.isnan().tolist() == [False, False, True]


def test_diagnostics_compare_patches():
    batch = batch_of()
    none = torch.empty(8, 0, dtype=torch.long)
    one = dataclasses.replace(batch, patch_targets=batch.patch_targets[:, :1])
    for function in (alignment_heatmap, stability_gap):
        with pytest.raises(ValueError, match="the mask keeps no patch"):
            function(tiny(), batch, none)
        with pytest.raises(ValueError, match="the image is 1 patch, and diagnostics compare"):
            function(tiny(), one, none)


def test_the_stability_gap_vanishes_where_tokens_stand_alone():
    """No attention, no gap: the mask can only act through other tokens."""
    batch = batch_of()
    keep = maskalign.Loss(mask_ratio=0.5).keep(batch)
    for mix_layers in (0, 1):
        network = tiny(mix_layers=mix_layers)
        masked, full = stability_gap(network, batch, keep)
        assert abs(masked - full) > 1e-4
        for block in network.blocks:
            torch.nn.init.zeros_(block.attention_out.weight)
        masked, full = stability_gap(network, batch, keep)
        torch.testing.assert_close(masked, full, rtol=1e-12, atol=0)


@pytest.mark.parametrize("class_token", [False, True])
def test_the_gaps_two_sides_are_the_alignment_losses(class_token):
    network = tiny(class_token_dim=Z * class_token)
    loss, batch = maskalign.Loss(0.5, label_dropout=0.0), batch_of()
    masked, full = stability_gap(network, batch, loss.keep(batch))
    if class_token:
        torch.testing.assert_close(masked, loss(network, batch).terms["alignment"])
    everything = torch.arange(16).expand(8, -1)
    _, whole = stability_gap(network, batch, everything)
    ancestor = (reg.Loss if class_token else repa.Loss)(label_dropout=0.0)
    torch.testing.assert_close(whole, ancestor(network, batch).terms["alignment"])
    assert not torch.allclose(full, whole)
