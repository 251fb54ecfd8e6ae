"""Scores from features on a pretended GPU: no devices mixed, the numbers of the CPU."""

import pytest
import torch

from stages.methods import balls, frechet, gaussians, memorization, quality, suite
from stages.methods.gaussians import Rows
from stages.methods.influence import Principal
from tests.pretend_gpu import DEVICE, running

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(n, 6, generator=GENERATOR) for n in (90, 70))
MANIFOLDS = ("precision", "recall", "density", "coverage")


def distance(x, y, device):
    first, second = (
        frechet.dealt(z, torch.Generator().manual_seed(0), device=device) for z in (x, y)
    )
    principal = Principal.of(x, first.moments(), device)
    value, psi = principal.distance_to(second.moments())
    found = frechet.extrapolated(first, second, psi)
    return value, psi, found.distance, found.infinity


def published(device):
    found = suite.distance(X, frechet.reference_gaussian(*suite.moments(Y)), device)
    return found.value, found.psi


def kernel(device):
    found = quality.kernel_distance(X, Y, device=device)
    return found.value, found.psi


def manifolds(device):
    found = quality.precision_recall(X, Y, 5, device=device)
    scores = [getattr(found, name) for name in MANIFOLDS]
    return [part for score in scores for part in (score.value, score.psi)]


def adm(device):
    scores = suite.precision_recall(X, Y, device=device)
    return [part for score in scores for part in (score.value, score.psi)]


class Stored:
    """Images that are read on the CPU, by indices of it."""

    shape = tuple(Y.shape)

    def __len__(self):
        return len(Y)

    def __getitem__(self, which):
        assert isinstance(which, slice) or which.device.type == "cpu"
        return Y[which]


def nearest(device):
    found = memorization.nearest(X if device is None else X.to(device), Stored(), 3)
    return found.indices.cpu(), found.distances.cpu()


SCORES = {
    "distance": lambda device: distance(X, Y, device),
    "distance of few": lambda device: distance(X[:7], Y[:7], device),
    "floor": lambda device: [frechet.real_floor(Rows([X, Y]), 60, 70, 2, device=device)],
    "published": published,
    "kernel": kernel,
    "manifolds": manifolds,
    "adm": adm,
    "nearest": nearest,
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_the_cpu(name, monkeypatch):
    monkeypatch.setattr(balls, "BLOCK", 30)
    monkeypatch.setattr(balls, "COLUMNS", 40)
    monkeypatch.setattr(gaussians, "ROWS", 25)
    expected = SCORES[name](None)
    with running():
        found = SCORES[name](DEVICE)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(one), torch.as_tensor(other), rtol=1e-9, atol=1e-9
        )


def test_blocks_of_distances_are_counted_without_a_wait(monkeypatch):
    """What is waited for is the end, and not a block."""
    waits = []
    for block in (90, 10):
        monkeypatch.setattr(balls, "BLOCK", block)
        with running() as gpu:
            x, y = X.to(DEVICE), Y.to(DEVICE)
            gpu.waits.clear()
            balls.Balls.of(x, y, 3)
        waits.append(sum(gpu.waits.values()))
    assert waits[0] == waits[1]
