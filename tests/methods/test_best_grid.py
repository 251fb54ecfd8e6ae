"""Grids compared by what they leave, and the best one."""

import math

import pytest
import torch

from stages.methods import grids, solvers
from stages.methods.solvers.best_grid import best_levels, change_of_rms, left_by
from stages.methods.solvers.whole import teacher
from tests import oracle

S_MAX = 80.0


@pytest.fixture(scope="module")
def problem():
    mixture = oracle.bench_mixture(0, 4)
    return mixture.denoiser, teacher(mixture.denoiser, oracle.noise((64, 4), 1), S_MAX)


def test_what_a_plain_solver_leaves(problem):
    denoiser, of = problem
    levels = grids.edm(3, S_MAX)
    end = solvers.solve(denoiser, of.states[0], levels, "dpmpp2m")
    left = left_by(denoiser, of, levels.tolist(), solver=solvers.named("dpmpp2m"))
    torch.testing.assert_close(left, end - of.states[-1])
    fitted = left_by(denoiser, of, levels.tolist())
    assert fitted.norm() < left.norm()


def test_no_grid_around_the_best_is_better(problem):
    denoiser, of = problem
    found = best_levels(denoiser, of, grids.uniform_t(3, S_MAX / (1 + S_MAX)).tolist())
    least = left_by(denoiser, of, found).norm().item()
    assert found[0] == pytest.approx(S_MAX)
    assert found[-1] == 0
    for k in (1, 2):
        for scale in (0.85, 1.2):
            near = [s * (scale if i == k else 1) for i, s in enumerate(found)]
            assert left_by(denoiser, of, near).norm().item() > least
    other = best_levels(denoiser, of, grids.edm(3, S_MAX, 0.05).tolist())
    assert left_by(denoiser, of, other).norm().item() < 1.3 * least


def test_a_grid_of_one_step_stays(problem):
    denoiser, of = problem
    assert best_levels(denoiser, of, (S_MAX, 0.0)) == (S_MAX, 0.0)


def test_the_error_of_a_ratio_is_its_spread_over_sets_of_states():
    generator = torch.Generator().manual_seed(0)

    def drawn():
        common = torch.randn(200, 5, generator=generator, dtype=torch.float64)
        own = torch.randn(200, 5, generator=generator, dtype=torch.float64)
        return common + 0.3 * own, 1.2 * common

    found = [change_of_rms(*drawn()) for _ in range(300)]
    logs = torch.tensor([log for log, _ in found])
    errors = torch.tensor([error for _, error in found])
    assert logs.mean().item() == pytest.approx(math.log(math.sqrt(1.09) / 1.2), abs=0.003)
    assert errors.mean().item() == pytest.approx(logs.std().item(), rel=0.15)
