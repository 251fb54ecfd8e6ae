"""SimCLR: its loss against sums written out, its views by seed, step and sample."""

import math

import pytest
import torch

from stages.methods.draws import Draws
from stages.methods.losses import Batch
from stages.methods.simclr import Loss, nt_xent
from stages.methods.training_views import Views
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


def test_without_augmentation_a_view_is_its_image():
    images = torch.rand(3, 1, 8, 8)
    still = Loss(views=Views(strength=STRENGTHS["none"], noise=0.0))
    assert torch.equal(still.views(images, Draws(0, torch.arange(3)), 1), images)
    # Every image with itself, and orthogonal to the others.
    basis = torch.eye(3)
    found = still(lambda x: basis.repeat(2, 1), Batch(images, None, Draws(0, torch.arange(3))))
    expected = math.log(1 + 4 * math.exp(-1 / still.temperature))
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    assert found.terms["contrastive"] is found.total
