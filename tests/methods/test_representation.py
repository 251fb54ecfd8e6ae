"""Alignment, uniformity, RankMe and the probe against closed forms and scikit-learn."""

import math

import pytest
import torch

from stages.methods.representation import (
    RIDGES,
    _ridge_weights,
    alignment,
    probe_accuracy,
    rankme,
    uniformity,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_alignment_of_known_angles():
    angles = torch.tensor([[0.0, 0.5], [1.0, 2.0]], dtype=torch.float64)
    features = 3 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    expected = ((2 - 2 * math.cos(0.5)) + (2 - 2 * math.cos(1.0))) / 2
    assert alignment(features) == pytest.approx(expected)
    assert alignment(randn(5, 1, 3).expand(5, 4, 3)) == 0
    assert alignment(randn(2000, 2, 50)) == pytest.approx(2, abs=0.01)


def test_uniformity_of_known_angles_and_of_the_sphere():
    opposite = torch.tensor([[[2.0, 0.0]], [[-1.0, 0.0]]]).expand(2, 3, 2)
    assert uniformity(opposite) == pytest.approx(-8)
    assert uniformity(torch.ones(5, 2, 3)) == pytest.approx(0)
    # On the sphere in 3-D, u = |a - b|^2 is uniform on [0, 4]: mean exp(-2 u) = (1 - e^-8) / 8.
    assert uniformity(randn(1500, 2, 3)) == pytest.approx(
        math.log((1 - math.exp(-8)) / 8), abs=0.01
    )


def test_uniformity_pairs_different_images_only():
    features = randn(40, 1, 3).expand(40, 5, 3)
    assert uniformity(features) == pytest.approx(uniformity(features[:, :1]))


def test_rankme_counts_equal_directions():
    basis = torch.linalg.qr(randn(50, 8)).Q
    assert rankme(basis) == pytest.approx(8)
    assert rankme(basis[:, :3] @ randn(3, 3)) < 3
    assert rankme(torch.ones(20, 4, 6)) == pytest.approx(1)
    values = torch.tensor([3.0, 1.0]).double()
    share = values / values.sum()
    expected = math.exp(-(share * share.log()).sum())
    assert rankme(basis[:, :2] * values) == pytest.approx(expected)


def test_probe_equals_ridge_regression_of_scikit_learn():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    features = randn(300, 12) * torch.linspace(0.1, 5, 12)
    labels = (features[:, :4] / torch.linspace(0.1, 5, 12)[:4] + randn(300, 4, seed=1)).argmax(1)
    train, test = features[:200].numpy(), features[200:].numpy()
    # The two scale by standard deviations that differ by sqrt(n / (n - 1)).
    scaler = StandardScaler().fit(train)
    scaler.scale_ *= math.sqrt(200 / 199)
    for ridge in (1e-3, 1.0):
        model = RidgeClassifier(alpha=ridge * 200).fit(scaler.transform(train), labels[:200])
        expected = model.score(scaler.transform(test), labels[200:])
        found = probe_accuracy(features[:200], labels[:200], features[200:], labels[200:], ridge)
        assert found == pytest.approx(expected)


def test_probe_chooses_the_ridge_by_leaving_one_out():
    """Against fits that each leave one row out, with the intercept as an unpenalised column."""
    features, noise = randn(40, 30), randn(40, seed=1)
    targets = (features[:, 0] + 0.5 * noise > 0).long()
    centred = (features - features.mean(0)) / features.std(0)
    design = torch.cat([centred, torch.ones(40, 1)], dim=1)
    onehot = torch.nn.functional.one_hot(targets, 2).double()
    penalised = torch.diag(torch.cat([torch.ones(30), torch.zeros(1)])).double()
    accuracies = {}
    for ridge in RIDGES:
        correct = []
        for left_out in range(40):
            rest = torch.arange(40) != left_out
            gram = design[rest].T @ design[rest] + 40 * ridge * penalised
            weights = torch.linalg.solve(gram, design[rest].T @ onehot[rest])
            correct.append((design[left_out] @ weights).argmax() == targets[left_out])
        accuracies[ridge] = sum(correct)
    best = max(RIDGES, key=lambda ridge: (accuracies[ridge], ridge))
    assert len(set(accuracies.values())) > 2, "the choice must matter here"
    chosen = _ridge_weights(centred, onehot, targets, None)
    torch.testing.assert_close(chosen, _ridge_weights(centred, onehot, targets, best))


def test_probe_separates_what_is_separable_and_only_that():
    labels = torch.arange(600) % 3
    features = torch.nn.functional.one_hot(labels, 3).double() + 0.1 * randn(600, 3)
    assert probe_accuracy(features[:400], labels[:400], features[400:], labels[400:]) == 1
    chance = probe_accuracy(randn(400, 3), labels[:400], randn(200, 3, seed=1), labels[400:])
    assert chance == pytest.approx(1 / 3, abs=0.12)


def test_probe_takes_any_labels_and_dead_features():
    labels = torch.tensor([7, -3]).repeat(50)
    features = torch.stack([labels.double() + randn(100), torch.ones(100)], dim=1)
    assert probe_accuracy(features[:80], labels[:80], features[80:], labels[80:]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment(randn(5, 1, 3)), "at least two views"),
        (lambda: alignment(torch.zeros(5, 2, 3)), "has no direction"),
        (lambda: uniformity(randn(1, 5, 3)), "give at least two"),
        (lambda: uniformity(randn(5, 3)), r"give \(n, views, d\)"),
        (lambda: rankme(torch.zeros(5, 3)), "all zero"),
        (lambda: rankme(torch.full((5, 3), torch.nan)), "not finite"),
        (
            lambda: probe_accuracy(randn(5, 3), torch.zeros(5), randn(5, 3), torch.zeros(5)),
            "one class",
        ),
        (
            lambda: probe_accuracy(randn(5, 3), torch.zeros(4), randn(5, 3), torch.zeros(5)),
            "train_labels have shape",
        ),
        (
            lambda: probe_accuracy(randn(5, 3), torch.arange(5), randn(5, 2), torch.zeros(5)),
            "3 columns, test_features 2",
        ),
        (
            lambda: probe_accuracy(randn(5, 3), torch.arange(5), randn(5, 3), torch.arange(5), -1),
            "ridge is -1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
