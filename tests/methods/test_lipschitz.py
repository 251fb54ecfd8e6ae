import pytest
import torch

from stages.methods import grids, lipschitz, solvers
from stages.methods.path import VelocityDenoiser
from stages.methods.solvers.trajectories import combine, trajectory
from stages.nets.sit import SiT
from tests import oracle


def exact_norms(denoiser, y, levels, solver):
    """Largest singular values from whole Jacobians, history held constant: (num_steps, B).

    Every step is made again from its point, with earlier states and outputs held, and must come out
    as the loop made it.
    """
    solver, grid = solvers.named(solver), grids.check(levels).tolist()
    norms, previous = [], None
    for advance in trajectory(denoiser, y, levels, solver):
        step = advance.step
        point = step.outputs[0].point.clone().requires_grad_()
        output = solver.evaluate(denoiser, point, grid, step.index)
        start, outputs = point, [output, *(past.output for past in step.outputs[1:])]
        if redo := solver.corrector(grid, step.index):
            start = combine(grid[step.index] / grid[step.index - 1], previous, redo, outputs)
            assert torch.allclose(start, step.state)
        previous = step.state
        proposal = combine(step.ratio, start, step.weights, outputs)
        assert torch.allclose(proposal, step.proposal)
        proposal = proposal.flatten(1)
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


def test_unipcs_norms_are_those_of_the_map_that_moves_its_samples():
    """On Gaussian data D is linear, so that moving the output of one evaluation by J_D v moves the
    state after that step by J v."""
    levels, y = grids.edm(5, 80, 0.02), 80 * oracle.noise((3, 1), 0)
    scales = torch.tensor([[0.2], [1.0], [3.0]], dtype=torch.float64)

    def denoiser(y, s):
        return scales**2 / (scales**2 + s**2) * y

    def states(moved=-1):
        """After every step, the evaluation of one step made at a point moved by 1."""
        calls, seen = [], []

        def given(y, s):
            calls.append(s)
            return denoiser(y + (len(calls) - 1 == moved), s)

        for advance in trajectory(given, y, levels, solvers.named("unipc")):
            seen.append(advance.state)
        return seen

    norms = lipschitz.step_norms(denoiser, y, levels, "unipc", 1)
    plain = states()
    for k in range(1, 5):  # of the first step, which has no corrector, the state itself moves too
        slopes = (states(moved=k)[k] - plain[k]).abs()
        assert norms.maximum[k].item() == pytest.approx(slopes.max().item(), rel=1e-6)
        assert norms.mean[k].item() == pytest.approx(slopes.mean().item(), rel=1e-6)


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
