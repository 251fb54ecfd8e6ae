"""Balls to the k-th neighbour: counted in blocks as from whole matrices of distances."""

import pytest
import torch

from stages.methods import balls
from stages.methods.balls import Balls, Nearest

METRICS = ("precision", "recall", "density", "coverage")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squares(x, y):
    return (x[:, None] - y[None]).square().sum(2)


def directly(samples, reference, k, closed):
    """All four from whole matrices; who lies in whose ball, (n, m)."""
    between = squares(samples, reference)
    ours, theirs = (
        squares(x, x).fill_diagonal_(torch.inf).kthvalue(k, dim=1).values
        for x in (samples, reference)
    )
    inside = between <= theirs if closed else between < theirs
    holds = between <= ours[:, None] if closed else between < ours[:, None]
    return {
        "precision": inside.any(1).double().mean().item(),
        "recall": holds.any(0).double().mean().item(),
        "density": inside.sum().item() / (k * len(samples)),
        "coverage": inside.any(0).double().mean().item(),
    }


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(balls, "BLOCK", 7)
    monkeypatch.setattr(balls, "COLUMNS", 11)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("n", "m", "k"), [(40, 50, 3), (50, 23, 5), (8, 30, 7)])
def test_blocks_count_what_whole_matrices_do(small_blocks, n, m, k, closed):
    samples, reference = normal(n, 3), 0.3 + normal(m, 3, seed=1)
    found = Balls.of(samples, reference, k, closed)
    expected = directly(samples, reference, k, closed)
    for metric in METRICS:
        assert getattr(found, metric)()[0] == pytest.approx(expected[metric], abs=1e-15), metric
    # The reference's balls may be known, and whole sets be one block.
    reach = Nearest.of(reference, k).reach
    again = Balls.of(samples.float().double(), reference, k, closed, reach)
    for name in ("around", "inside", "reached"):
        assert torch.equal(getattr(again, name), getattr(found, name))


def test_nearest_are_those_of_the_whole_matrix(small_blocks):
    x = normal(40, 3)
    found = Nearest.of(x, 4)
    whole = squares(x, x).fill_diagonal_(torch.inf).topk(5, largest=False)
    torch.testing.assert_close(found.squares, whole.values, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.index, whole.indices)


@pytest.mark.parametrize("metric", METRICS)
def test_values_are_leave_one_out_differences(small_blocks, metric):
    samples, reference, k = normal(40, 2), normal(50, 2, seed=1), 3

    def value(samples):
        return directly(samples, reference, k, closed=False)[metric]

    found, psi = getattr(Balls.of(samples, reference, k), metric)()
    without = [value(torch.cat([samples[:i], samples[i + 1 :]])) for i in range(len(samples))]
    expected = (len(samples) - 1) * (found - torch.tensor(without, dtype=torch.float64))
    torch.testing.assert_close(psi, expected - expected.mean(), rtol=1e-9, atol=1e-9)
    assert psi.abs().max() > 0
