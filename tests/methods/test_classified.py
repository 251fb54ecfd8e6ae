"""The labels' cross-entropy, against its sum written out."""

import pytest
import torch

from stages.methods.classified import Loss
from stages.methods.draws import Draws
from stages.methods.losses import Batch
from stages.methods.training_views import Views
from stages.methods.views import STRENGTHS


def test_the_loss_is_the_mean_of_the_labels_log_probabilities():
    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([2, 0, 1, 2])
    still = Loss(Views(strength=STRENGTHS["none"], noise=0.0))
    matrix = torch.randn(4, 3)
    found = still(lambda x: x.flatten(1) @ matrix, Batch(images, labels, Draws(0, torch.arange(4))))
    logits = images.flatten(1) @ matrix
    expected = -sum(
        (row[label] - row.exp().sum().log()).item()
        for row, label in zip(logits, labels, strict=True)
    )
    assert found.total.item() == pytest.approx(expected / 4, rel=1e-5)
    assert found.terms["class"] is found.total


def test_it_looks_at_one_view():
    seen = []
    images = torch.rand(3, 1, 4, 4)
    draws = Draws(1, torch.arange(3), step=5)
    loss = Loss()
    loss(
        lambda x: seen.append(x) or torch.zeros(3, 2), Batch(images, torch.tensor([0, 1, 1]), draws)
    )
    assert len(seen) == 1
    assert torch.equal(seen[0], loss.views(images, draws, 0))
