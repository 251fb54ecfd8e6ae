"""SteinDiff's Theorem 4.8: what a gamma can take away of a step's error, against brute force."""

import math

import pytest
import torch

from stages.methods import grids, stein, strata
from stages.methods.rectified import rectified
from stages.methods.solvers import named
from tests import oracle


def blocks_of(data, levels, solver, count=4, size=500):
    """Products of blocks, and the steps that they are of, block by block."""
    products, steps = [], []
    for k in range(count):
        clean = data.sample(size, torch.Generator().manual_seed(k))

        def eps(k=k):
            return torch.Generator().manual_seed(50 + k)

        products.append(stein.residual_products(data.denoiser, clean, levels, solver, eps()))
        path = stein.straight_path(data.denoiser, clean, levels, named(solver), eps())
        steps.append((clean, path))
    return torch.stack(products), torch.full((count,), float(size)), steps


@pytest.mark.parametrize("target", ["matched", "literal"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp2m", "heun"])
def test_it_is_the_least_error_of_any_gamma(target, solver):
    levels = grids.edm(4, 20, 0.1)
    products, counts, steps = blocks_of(oracle.bench_mixture(0, 8), levels, solver)
    found = rectified(products, counts, levels, target)
    for k in range(4):
        r = (levels[k + 1] / levels[k]).item()
        u, e = [], []
        for clean, path in steps:
            step = path[k]
            aim = clean if target == "literal" else r * step.state + (1 - r) * clean
            u.append(step.state - step.proposal)
            e.append(step.proposal - aim)
        u, e = torch.cat(u), torch.cat(e)
        added = torch.linspace(-3, 3, 6001, dtype=torch.float64)
        squares = [e.square().sum(1).mean(), 2 * (u * e).sum(1).mean(), u.square().sum(1).mean()]
        least = (squares[0] + added * squares[1] + added.square() * squares[2]).min()
        assert found.plain[k].item() == pytest.approx(squares[0].item())
        assert found.predicted[k].item() == pytest.approx(least.item(), rel=1e-4)
    assert (found.measured >= found.predicted * (1 - 1e-9)).all()
    torch.testing.assert_close(found.measured, found.predicted, rtol=0.02, atol=0)


def test_a_perfect_ddim_step_has_nothing_to_gain_when_the_target_is_matched():
    """D - x0 is orthogonal to y, so that rho is 0 but on the last step; the literal target, which
    leaves the noise level, can gain."""
    levels = grids.edm(5, 20, 0.1)
    products, counts, _ = blocks_of(oracle.bench_mixture(1, 8), levels, "euler")
    matched, literal = (rectified(products, counts, levels, t) for t in ("matched", "literal"))
    assert (matched.rho < 0.01).all()
    assert (literal.rho[:-1] > 0.5).any()
    assert matched.rho[-1].item() == pytest.approx(literal.rho[-1].item())


def test_it_falls_as_steps_shrink_where_the_target_is_matched():
    """The corollary for DPM-Solver++ 2M, of the error of all steps together; of the literal target
    the share grows to all of it, since T comes to y and x0 stays away."""
    shares = {"matched": [], "literal": []}
    for num_levels in (4, 8, 16, 32):
        levels = grids.edm(num_levels, 20, 0.1)
        products, counts, _ = blocks_of(oracle.bench_mixture(0, 8), levels, "dpmpp2m", 2, 250)
        for target, of in shares.items():
            of.append(rectified(products, counts, levels, target).share)
    assert sorted(shares["matched"], reverse=True) == shares["matched"]
    assert shares["matched"][-1] < 0.1 * shares["matched"][0]
    assert sorted(shares["literal"]) == shares["literal"]
    assert shares["literal"][-1] > 0.95


def test_one_block_leaves_nothing_to_measure_on():
    levels = grids.edm(3, 20, 0.1)
    products, counts, _ = blocks_of(oracle.bench_mixture(0, 4), levels, "euler", 1, 50)
    found = rectified(products, counts, levels, "matched")
    assert found.measured is None
    assert set(found.rows()) == {"rho", "plain", "predicted"}
    with pytest.raises(ValueError, match="target is 'both'"):
        rectified(products, counts, levels, "both")


def test_what_images_contribute_gives_the_spread_over_other_images():
    """Of the log of what is left over the plain error, and of the share that can be gained."""
    levels, data = grids.edm(3, 20, 0.1), oracle.bench_mixture(0, 4)
    values, errors = [], []
    for k in range(120):
        clean = data.sample(100, torch.Generator().manual_seed(k))
        eps = torch.Generator().manual_seed(1000 + k)
        each = stein.products_of_each(data.denoiser, clean, levels, "heun", eps)
        found = rectified(each, torch.ones(100, dtype=torch.float64), levels, "matched")
        assert found.influence.sum(1).abs().max() < 1e-9
        plain, predicted, measured = (
            column.sum().item() for column in (found.plain, found.predicted, found.measured)
        )
        of_plain, of_predicted, of_measured = found.influence.numpy()
        share = 1 - predicted / plain
        of_share = predicted * of_plain / plain**2 - of_predicted / plain
        values.append((math.log(measured / plain), math.log(share)))
        psi = (of_measured / measured - of_plain / plain, of_share / share)
        errors.append([strata.standard_error(one) for one in psi])
    spread = torch.tensor(values).std(0)
    mean = torch.tensor(errors).mean(0)
    torch.testing.assert_close(mean, spread.to(mean), rtol=0.25, atol=0)


def test_groups_of_images_contribute_what_their_images_do():
    levels, data = grids.edm(3, 20, 0.1), oracle.bench_mixture(0, 4)
    clean = data.sample(10, torch.Generator().manual_seed(0))
    each = stein.products_of_each(
        data.denoiser, clean, levels, "euler", torch.Generator().manual_seed(1)
    )
    ones = torch.ones(10, dtype=torch.float64)
    single = rectified(each, ones, levels, "matched")
    parts = [part.sum(0) for part in each.split(4)]
    counts = torch.tensor([4.0, 4.0, 2.0], dtype=torch.float64)
    grouped = rectified(torch.stack(parts), counts, levels, "matched")
    torch.testing.assert_close(grouped.predicted, single.predicted)
    for row in (0, 1):  # plain and predicted
        sums = torch.stack([part.sum() for part in single.influence[row].split(4)])
        torch.testing.assert_close(grouped.influence[row], sums * 3 / 10)
