"""Means and covariances read in parts: those of whole tensors, whatever the parts are."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.methods import frechet, gaussians, influence
from stages.methods.gaussians import Dealt, Moments, Rows
from stages.methods.jackknife import complements, deal


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(gaussians, "ROWS", 7)


def test_rows_of_several_arrays_are_those_of_one(few_rows):
    parts = [normal(20, 3), normal(11, 3, seed=1), normal(5, 3, seed=2)]
    whole, rows = torch.cat(parts), Rows(parts)
    which = torch.randperm(36, generator=torch.Generator().manual_seed(0))[:25]
    some = rows.only(which)
    assert (rows.shape, some.shape, len(some)) == ((36, 3), (25, 3), 25)
    assert torch.equal(rows[which], whole[which])
    assert torch.equal(rows[17:33], whole[17:33])
    assert torch.equal(some.only(torch.arange(4, 9))[1:3], whole[which[5:7]])
    assert torch.equal(torch.cat(list(gaussians.parts_of(some))), whole[which])


@pytest.mark.parametrize("n", [40, 12, 9])
def test_gaussians_without_a_block_are_those_of_the_rest(few_rows, n):
    """Also where the whole fills its dimensions and the rest does not, and where neither does."""
    x, labels = normal(n, 10) + 5, torch.arange(n) % 3
    dealt = Dealt(Rows([x[:5], x[5:]]), 4, torch.Generator().manual_seed(3), labels)
    blocks = deal(n, 4, torch.Generator().manual_seed(3), labels)
    assert dealt.sizes == tuple(map(len, blocks))
    for without, kept in [(None, torch.arange(n)), *enumerate(complements(blocks))]:
        found, rest = dealt.gaussian(without), x[kept]
        torch.testing.assert_close(found.mean, rest.mean(0))
        torch.testing.assert_close(found.factor @ found.factor.T, torch.cov(rest.T))
        assert found.trace == pytest.approx(torch.cov(rest.T).trace().item())
    moments = Moments.of(x)
    torch.testing.assert_close(moments.covariance, torch.cov(x.T))
    torch.testing.assert_close(dealt.moments().covariance, torch.cov(x.T))


def test_known_moments_and_factors_give_the_same_influence(few_rows):
    x, y = normal(60, 5), 1.2 * normal(80, 5, seed=1) + 0.1
    reference = Moments.of(y)
    distance, psi = influence.Principal.of(x).distance_to(reference)
    given = influence.Principal.of(x, Moments.of(x))
    gaussian = frechet.reference_gaussian(reference.mean, reference.covariance)
    for other in (reference, gaussian):
        value, found = given.distance_to(other)
        assert value == pytest.approx(distance, rel=1e-12)
        torch.testing.assert_close(found, psi, rtol=1e-10, atol=1e-10)
    assert distance == pytest.approx(frechet.distance_from_features(x, y), rel=1e-12)


def test_a_floor_of_mapped_rows_is_that_of_a_tensor(tmp_path, few_rows):
    x = normal(120, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    expected = frechet.real_floor(x, 40, 50, repeats=3)
    assert frechet.real_floor(Rows([mapped[:70], mapped[70:]]), 40, 50, repeats=3) == expected


SCORED = """
import sys, numpy as np, torch
from stages.methods import balls, frechet, gaussians, quality
from stages.methods.influence import Principal
from tests.bench.scoring import Peak
torch.set_num_threads(1)
gaussians.ROWS, balls.BLOCK, balls.COLUMNS = 1000, 250, 1000
x, y = (torch.from_numpy(np.load(f, mmap_mode="c")) for f in sys.argv[1:])
frechet.from_features(x[:300], y[:300])  # what libraries take once
with Peak() as peak:
    first, second = (frechet.dealt(z, torch.Generator().manual_seed(0)) for z in (x, y))
    _, psi = Principal.of(x, first.moments()).distance_to(second.moments())
    frechet.extrapolated(first, second, psi)
    quality.precision_recall(x[:4000], y[:4000])
print(peak.mib)
"""


def test_memory_is_that_of_a_block_whatever_the_number_of_images(tmp_path):
    """Sets as float64 would take 94 MiB, a matrix of distances 122, all at once 180; blocks and
    what the allocator keeps of them take 17 to 63."""
    files = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    for seed, file in enumerate(files):
        np.save(file, normal(24_000, 256, seed=seed).float().numpy())
    run = [sys.executable, "-c", SCORED, *files]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 90
