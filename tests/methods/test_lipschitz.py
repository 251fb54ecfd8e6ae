import pytest
import torch

from stages.methods import grids, lipschitz, solvers
from stages.methods.path import VelocityDenoiser
from stages.methods.solvers.trajectories import trajectory
from stages.nets.sit import SiT
from tests import oracle


def exact_norms(denoiser, y, levels, solver):
    """Largest singular values from whole Jacobians, history held constant: (num_steps, B)."""
    solver, grid = solvers.named(solver), grids.check(levels).tolist()
    norms = []
    for advance in trajectory(denoiser, y, levels, solver):
        step = advance.step
        point = step.outputs[0].point.clone().requires_grad_()
        output = solver.evaluate(denoiser, point, grid, step.index)
        proposal = (step.ratio * point + step.weights[0] * output).flatten(1)
        rows = [
            torch.autograd.grad(proposal[:, i].sum(), point, retain_graph=True)[0].flatten(1)
            for i in range(proposal.shape[1])
        ]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows, 1), 2))
    return torch.stack(norms)


@pytest.mark.parametrize("solver", ["dpmpp2m", "heun", "unipc"])
def test_norms_are_those_of_the_exact_jacobian_at_d_16(solver):
    data, y = oracle.bench_mixture(0), 80 * oracle.noise((24, 16), 0)
    levels = grids.edm(5, 80, 0.02)
    exact = exact_norms(data.denoiser, y, levels, solver)
    norms = lipschitz.step_norms(data.denoiser, y, levels, solver, 20)
    assert torch.allclose(norms.mean, exact.mean(1), rtol=0.02)
    norms = lipschitz.step_norms(data.denoiser, y, levels, solver, 40)
    assert torch.allclose(norms.maximum, exact.amax(1), rtol=0.02)
    assert (norms.maximum <= exact.amax(1) * (1 + 1e-9)).all()  # a lower bound


def test_more_iterations_never_lower_the_estimate():
    matrix = oracle.noise((6, 6), 0)
    norms = [
        float(
            lipschitz.largest_singular(
                lambda y: y @ matrix.T,
                oracle.noise((1, 6), 1),
                iterations,
                torch.Generator().manual_seed(2),
            )
        )
        for iterations in (1, 3, 10, 200)
    ]
    assert norms == sorted(norms)
    assert norms[-1] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))


def test_a_network_with_attention_is_measured():
    """Against the whole Jacobian of a small SiT with random output layers."""
    network = SiT(image_size=4, channels=1, patch_size=2, width=16, depth=1, num_heads=2)
    source = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=source)
    network.eval().requires_grad_(False)
    denoiser = VelocityDenoiser(network)
    y = torch.randn(3, 1, 4, 4, generator=source)
    levels = torch.tensor([1.0, 0.3, 0.0])
    norms = lipschitz.step_norms(denoiser, y, levels, "dpmpp2m", 60)
    exact = exact_norms(denoiser, y, levels, "dpmpp2m")
    assert torch.allclose(norms.mean, exact.mean(1), rtol=0.02)


def test_bad_iterations_are_named():
    with pytest.raises(ValueError, match="iterations is 0"):
        lipschitz.step_norms(lambda y, s: y, torch.ones(1, 2), grids.edm(3), iterations=0)


def test_a_derivative_that_is_not_a_number_is_named_with_its_step():
    def kinked(y, s):  # finite everywhere; at 0 the derivative of the root is infinite
        return y.clamp_min(0).sqrt() if s < 1 else torch.zeros_like(y)

    levels = torch.tensor([2.0, 0.5, 0.0])
    with pytest.raises(FloatingPointError, match=r"step 2 of 2, level s=0\.5"):
        lipschitz.step_norms(kinked, torch.zeros(3, 2), levels, "euler", 2)


def test_no_states_are_refused():
    with pytest.raises(ValueError, match="y holds no states"):
        lipschitz.step_norms(lambda y, s: y, torch.ones(0, 2), grids.edm(3))
