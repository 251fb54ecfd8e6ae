"""SimCLR: its loss against sums written out, its views by seed, step and sample."""

import math

import pytest
import torch

from stages.methods.draws import Draws
from stages.methods.losses import Batch
from stages.methods.simclr import Loss, nt_xent
from stages.methods.views import STRENGTHS


def test_the_loss_is_the_paper_s_sum():
    """Equation 1, term by term in Python."""
    torch.manual_seed(0)
    z = torch.randn(6, 4, dtype=torch.float64)
    temperature, total = 0.3, 0.0
    similarity = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1) / temperature
    for i in range(6):
        others = sum(math.exp(similarity[i, k]) for k in range(6) if k != i)
        total -= math.log(math.exp(similarity[i, (i + 3) % 6]) / others)
    assert nt_xent(z, temperature).item() == pytest.approx(total / 6, rel=1e-6)


def test_two_far_pairs_cost_what_they_must():
    """Views that agree, images that are opposite: log(1 + 2 exp(-2/T)) each."""
    z = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log1p(2 * math.exp(-4)), rel=1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_too_few_embeddings_are_refused(count):
    with pytest.raises(ValueError, match="at least two images"):
        nt_xent(torch.randn(count, 3), 0.2)


def test_views_depend_on_seed_step_and_sample_alone():
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    loss, draws = Loss(), Draws(3, torch.arange(5), step=7)
    first, second = (loss.view(images, draws, number) for number in (0, 1))
    assert not torch.allclose(first, second)
    some = loss.view(images[2:4], draws[2:4], 0)
    torch.testing.assert_close(some, first[2:4])
    assert not torch.allclose(loss.view(images, draws.at(8), 0), first)
    # Views of one step are none of the next one's.
    assert not torch.allclose(loss.view(images, draws.at(8), 0), second)


def test_without_augmentation_a_view_is_its_image():
    images = torch.rand(3, 1, 8, 8)
    still = Loss(strength=STRENGTHS["none"], noise=0.0)
    assert torch.equal(still.view(images, Draws(0, torch.arange(3)), 1), images)
    # Every image with itself, and orthogonal to the others.
    basis = torch.eye(3)
    found = still(lambda x: basis.repeat(2, 1), Batch(images, None, Draws(0, torch.arange(3))))
    expected = math.log(1 + 4 * math.exp(-1 / still.temperature))
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    assert found.terms["contrastive"] is found.total


def test_jitter_changes_grey_levels_and_nothing_else():
    """A view is an affine map of the image's levels, its sign changed in half of the views."""
    images = torch.rand(400, 1, 4, 4) * 2 - 1
    loss = Loss(strength=STRENGTHS["none"], noise=0.0, jitter=1.0)
    views = loss.view(images, Draws(0, torch.arange(400)), 0).flatten(1).double()
    levels = images.flatten(1).double()
    centred = levels - levels.mean(1, keepdim=True)
    factor = (centred * views).sum(1) / centred.square().sum(1)
    rest = views - levels.mean(1, keepdim=True) - factor[:, None] * centred
    torch.testing.assert_close(rest, rest.mean(1, keepdim=True).expand_as(rest), atol=1e-5, rtol=0)
    assert rest.mean(1).std().item() == pytest.approx(0.5, abs=0.06)
    assert factor.abs().log().std().item() == pytest.approx(0.7, abs=0.08)
    assert (factor < 0).double().mean().item() == pytest.approx(0.5, abs=0.08)
    less = Loss(strength=STRENGTHS["none"], noise=0.0, jitter=0.1)
    near = less.view(images, Draws(0, torch.arange(400)), 0).flatten(1).double()
    assert (
        ((near - levels) * centred).sum(1) / centred.square().sum(1) < -1
    ).double().mean() < 0.12
    with pytest.raises(ValueError, match="jitter"):
        Loss(jitter=1.5)
