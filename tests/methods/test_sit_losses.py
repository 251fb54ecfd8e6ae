"""The losses of SiT, REPA and REG against their formulas written out, and exact optima."""

import pytest
import torch
from torch.nn import functional as F

from stages.methods import maskalign, reg, repa, sit
from stages.methods.draws import Draws
from stages.methods.losses import Batch, alignment_loss, check_fit, patch_targets
from stages.nets.sit import SiT
from stages.settings.losses import LossOptions
from stages.settings.methods import options_of
from tests.nets.published import tensors

Z = 6
LOSSES = [sit.Loss(), repa.Loss(), reg.Loss(), maskalign.Loss()]
NAMES = ["sit", "repa", "reg", "maskalign"]


def said_of(loss) -> type[LossOptions]:
    """What settings say of a loss."""
    return options_of(type(loss).__module__.rpartition(".")[2])


def network_for(loss, **options) -> SiT:
    """A small network for the loss, with no weight at zero, in float64."""
    torch.manual_seed(0)
    network = SiT(
        **{
            "image_size": 8,
            "channels": 1,
            "width": 16,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 10,
            "class_token_dim": Z * said_of(loss).uses_class_token,
            "teacher_dim": Z * said_of(loss).uses_teacher,
            "projector_width": 12,
            "alignment_depth": 1,
            "mix_layers": int(isinstance(loss, maskalign.Loss)),
            **options,
        }
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return network


def batch_of(size: int = 8, step: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    features = torch.randn(size, 16, Z, generator=generator, dtype=torch.float64)
    return Batch(
        images=images,
        labels=torch.arange(size) % 10,
        draws=Draws(0, torch.arange(size), step),
        patch_targets=patch_targets(features, (4, 4)),
        class_features=3 * torch.randn(size, Z, generator=generator, dtype=torch.float64),
    )


def noised(clean, noise, t):
    t = t.double().reshape(-1, *[1] * (clean.ndim - 1))
    return (1 - t) * clean + t * noise.double()


def gradients(network, loss, batch):
    network.zero_grad()
    terms = loss(network, batch)
    terms.total.backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return terms, found


def test_sit_is_the_mean_squared_error_of_the_velocity():
    loss, batch = sit.Loss(label_dropout=0.0), batch_of()
    network = network_for(loss)
    eps, t = batch.draws.noise((1, 8, 8)), batch.draws.time()
    terms = loss(network, batch)
    errors = []
    for i in range(8):
        one = slice(i, i + 1)
        v = network(noised(batch.images, eps, t)[one], t[one], batch.labels[one])
        errors.append((v - (eps[one] - batch.images[one])).square().mean())
    torch.testing.assert_close(terms.total, sum(errors) / 8)
    assert list(terms.terms) == ["velocity"]


def test_reg_and_repa_follow_their_papers_sample_by_sample():
    batch = batch_of()
    eps, t = batch.draws.noise((1, 8, 8)), batch.draws.time()
    eps_cls = batch.draws.class_noise(Z)
    for loss in (
        repa.Loss(alignment_weight=0.7, label_dropout=0.0),
        reg.Loss(class_weight=0.2, alignment_weight=0.7, label_dropout=0.0),
    ):
        network, with_class = network_for(loss), said_of(loss).uses_class_token
        token = (noised(batch.class_features, eps_cls, t),) if with_class else ()
        output = network(noised(batch.images, eps, t), t, batch.labels, *token, align=True)
        velocity = (output.velocity - (eps - batch.images)).square().mean()
        alignments = []
        for i in range(8):
            targets = list(batch.patch_targets[i])
            if with_class:
                targets.insert(0, batch.class_features[i])
            cosines = [
                F.cosine_similarity(target, token, dim=0)
                for target, token in zip(targets, output.projection[i], strict=True)
            ]
            alignments.append(-sum(cosines) / len(cosines))
        alignment = sum(alignments) / 8
        expected = velocity + 0.7 * alignment
        terms = loss(network, batch)
        if with_class:
            error = output.class_velocity - (eps_cls - batch.class_features)
            expected = expected + 0.2 * error.square().mean()
            torch.testing.assert_close(terms.terms["class"], error.square().mean())
        torch.testing.assert_close(terms.terms["velocity"], velocity)
        torch.testing.assert_close(terms.terms["alignment"], alignment)
        torch.testing.assert_close(terms.total, expected)


def test_the_exact_velocity_of_a_gaussian_reaches_the_exact_minimum():
    """Data N(0, c^2): E|v - v*|^2 is the posterior variance of v, integrated over t."""
    c, size = 0.6, 4000

    def exact(x, t, labels, drop=None):
        t = t.reshape(-1, 1, 1, 1)
        return x * (t - (1 - t) * c**2) / ((1 - t) ** 2 * c**2 + t**2)

    images = c * torch.randn(size, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, None, Draws(0, torch.arange(size)))
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    covariance, variance = t - (1 - t) * c**2, (1 - t) ** 2 * c**2 + t**2
    minimum = torch.trapezoid(1 + c**2 - covariance**2 / variance, t)
    assert abs(sit.Loss()(exact, batch).total / minimum - 1) < 0.01


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_total_is_the_weighted_sum_and_every_term_is_differentiable(loss):
    network, batch = network_for(loss), batch_of()
    result = loss(network, batch)
    weights = {
        "velocity": 1.0,
        "alignment": getattr(loss, "alignment_weight", None),
        "class": getattr(loss, "class_weight", None),
    }
    assert set(result.terms) == {name for name, weight in weights.items() if weight}
    assert tuple(result.terms) == said_of(loss).terms
    expected = sum(weights[name] * value for name, value in result.terms.items())
    torch.testing.assert_close(result.total, expected)
    for value in result.terms.values():
        assert value.shape == ()
        grads = torch.autograd.grad(
            value, network.patch_embedding.weight, retain_graph=True, materialize_grads=True
        )
        assert grads[0].abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_every_trained_weight_receives_a_gradient(loss):
    network = network_for(loss)
    _, found = gradients(network, loss, batch_of(32))
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert set(found) == trained
    assert all(g.abs().max() > 0 for g in found.values())


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_shares_of_a_batch_average_to_the_whole_batchs_loss_and_gradient(loss):
    """What data-parallel workers and gradient accumulation rely on."""
    network, batch = network_for(loss), batch_of(8)
    whole, expected = gradients(network, loss, batch)
    parts = [gradients(network, loss, batch[i : i + 2]) for i in range(0, 8, 2)]
    for name, value in whole.terms.items():
        mean = sum(terms.terms[name] for terms, _ in parts) / 4
        torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-12)
    for name, value in expected.items():
        mean = sum(found[name] for _, found in parts) / 4
        torch.testing.assert_close(mean, value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_the_loss_is_a_pure_function_of_its_batch(loss):
    network = network_for(loss)
    first = loss(network, batch_of(step=5)).total
    torch.manual_seed(3)
    assert torch.equal(loss(network, batch_of(step=5)).total, first)
    assert not torch.equal(loss(network, batch_of(step=6)).total, first)


@pytest.mark.parametrize("loss_type", [sit.Loss, repa.Loss, reg.Loss, maskalign.Loss])
def test_label_dropout_trains_the_null_class(loss_type):
    batch = batch_of(32)
    network = network_for(loss_type())
    null = Batch(batch.images, None, batch.draws, batch.patch_targets, batch.class_features)
    always, never = loss_type(label_dropout=1.0), loss_type(label_dropout=0.0)
    torch.testing.assert_close(always(network, batch).total, never(network, null).total)
    assert not torch.allclose(always(network, batch).total, never(network, batch).total)
    network.zero_grad()
    loss_type(label_dropout=0.5)(network, batch).total.backward()
    dropped = batch.draws.drop(0.5)
    seen = network.label_embedding.weight.grad.abs().sum(1) > 0
    present = set(batch.labels[~dropped].tolist()) | {10}
    assert set(seen.nonzero().flatten().tolist()) == present


@pytest.mark.parametrize("loss_type", [sit.Loss, repa.Loss, reg.Loss, maskalign.Loss])
def test_time_density_reaches_the_draws(loss_type):
    class Fixed:
        def inverse_cdf(self, u):
            return torch.full_like(u, 0.25)

    class Spy(torch.nn.Module):
        def forward(self, x, t, *args, **kwargs):
            raise InterruptedError(t)

    with pytest.raises(InterruptedError) as caught:
        loss_type(time_density=Fixed())(Spy(), batch_of())
    assert (caught.value.args[0] == 0.25).all()


def test_autocast_leaves_the_alignment_in_float32():
    """Loss and gradient are those of cosines in float64: products in bfloat16 are off by 1e-3."""
    io = tensors("reg/loss.safetensors")
    targets = F.normalize(io["teacher"], dim=-1)
    projection = tensors("reg/io.safetensors")["projection"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment_loss(projection, targets)
    (gradient,) = torch.autograd.grad(found, projection)
    exact = projection.detach().double().requires_grad_()
    expected = -torch.cosine_similarity(exact, targets.double(), dim=-1).mean()
    (slope,) = torch.autograd.grad(expected, exact)
    assert abs(found.item() - expected.item()) < 1e-7
    assert (gradient - slope).norm() < 1e-6 * slope.norm()


def test_patch_targets_have_unit_length_and_keep_their_place():
    features = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    targets = patch_targets(features, (3, 4))
    torch.testing.assert_close(targets.norm(dim=-1), torch.ones(2, 12))
    torch.testing.assert_close(targets * features.norm(dim=-1, keepdim=True), features)


def test_another_teacher_grid_is_interpolated_only_on_request():
    row = torch.arange(8.0).reshape(8, 1, 1).expand(8, 4, 2)
    features = torch.cat([row, torch.ones(8, 4, 1)], dim=2).reshape(1, 32, 3)
    with pytest.raises(ValueError, match="8x4 does not match"):
        patch_targets(features, (4, 4), teacher_grid=(8, 4))
    with pytest.raises(ValueError, match="teacher features have shape"):
        patch_targets(features, (4, 4))
    targets = patch_targets(features, (4, 4), teacher_grid=(8, 4), interpolate=True)
    assert targets.shape == (1, 16, 3)
    heights = (targets[..., 0] / targets[..., 2]).reshape(4, 4)
    # A linear ramp, sampled at the centres of pairs of rows, away from the border.
    torch.testing.assert_close(heights[1:3], torch.tensor([2.5, 4.5])[:, None].expand(2, 4))


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_what_fits_is_accepted(loss):
    check_fit(said_of(loss), network_for(loss), batch_of())


@pytest.mark.parametrize(
    ("loss", "options", "change", "message"),
    [
        (sit.Loss(), {}, {"labels": torch.full((8,), 10)}, "labels run from 10 to 10"),
        (sit.Loss(), {}, {"labels": torch.full((8,), -1)}, "labels run from -1"),
        (sit.Loss(), {"num_classes": 0}, {}, "num_classes = 0"),
        (sit.Loss(), {"channels": 3}, {}, "channels"),
        (sit.Loss(), {"class_token_dim": Z}, {}, "set it to 0"),
        (reg.Loss(), {"class_token_dim": 0}, {}, "needs a class token"),
        (reg.Loss(), {"class_token_dim": 5}, {}, "class_features are 6 wide"),
        (reg.Loss(), {}, {"class_features": None}, "needs class_features"),
        (repa.Loss(), {"teacher_dim": 5}, {}, "teacher_dim"),
        (repa.Loss(), {"teacher_dim": 0}, {}, "teacher_dim"),
        (repa.Loss(), {"patch_size": 4}, {}, "the network's grid is 2x2"),
        (repa.Loss(), {}, {"patch_targets": None}, "needs patch_targets"),
        (maskalign.Loss(), {}, {"patch_targets": 2 * torch.ones(8, 16, Z)}, "unit length"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(loss, options, change, message):
    batch = batch_of()
    fields = ("images", "labels", "draws", "patch_targets", "class_features")
    batch = Batch(**{**{name: getattr(batch, name) for name in fields}, **change})
    with pytest.raises(ValueError, match=message):
        check_fit(said_of(loss), network_for(loss, **options), batch)


def test_a_loss_without_what_it_needs_says_so():
    batch = batch_of()
    bare = Batch(batch.images, batch.labels, batch.draws)
    with pytest.raises(ValueError, match="patch_targets"):
        repa.Loss()(network_for(repa.Loss()), bare)
    with pytest.raises(ValueError, match="alignment targets have shape"):
        repa.Loss()(network_for(repa.Loss(), teacher_dim=5), batch)
    with pytest.raises(ValueError, match="class token"):
        reg.Loss()(network_for(repa.Loss()), batch)


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        (sit.Loss, {"label_dropout": 1.5}),
        (repa.Loss, {"alignment_weight": -1}),
        (repa.Loss, {"alignment_weight": float("inf")}),
        (reg.Loss, {"class_weight": float("inf")}),
        (repa.Loss, {"label_dropout": -0.1}),
        (reg.Loss, {"class_weight": float("nan")}),
        (maskalign.Loss, {"mask_ratio": 1.0}),
        (maskalign.Loss, {"mask_ratio": -0.1}),
    ],
)
def test_impossible_settings_are_refused(loss_type, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loss_type(**options)
