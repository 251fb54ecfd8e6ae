"""The solver fitted to a whole trajectory: exact where it can be, and far nearer than 2M."""

import math

import pytest
import torch

from stages.methods import grids, solvers
from stages.methods.solvers.whole import Teacher, WholeMultistep, _starts, fit_whole, teacher
from tests import oracle

S_MAX = 80.0


def gaussian(stds):
    covariance = torch.diag(torch.tensor(stds, dtype=torch.float64) ** 2)
    return oracle.Gaussian(torch.zeros(len(stds), dtype=torch.float64), covariance)


def test_one_step_is_exact_for_data_of_one_variance():
    """There D is a multiple of y, and so is the flow: b = (flow - r) / D solves it."""
    data, noise = gaussian([0.5] * 4), oracle.noise((64, 4), 0)
    made = fit_whole(data.denoiser, noise, 1, S_MAX, of=None)
    fresh = S_MAX * oracle.noise((32, 4), 1)
    end = solvers.solve(data.denoiser, fresh, made.levels, made)
    torch.testing.assert_close(end, data.flow(fresh, S_MAX, 0.0), rtol=2e-3, atol=1e-4)
    assert made.levels.tolist() == [S_MAX, 0.0]


def test_the_teacher_is_the_models_flow_at_and_between_its_levels():
    data, noise = gaussian([0.3, 0.7]), oracle.noise((16, 2), 0)
    of = teacher(data.denoiser, noise, S_MAX, steps=400)
    for level in (20.0, 1.0, 0.31, 0.05):
        exact = data.flow(S_MAX * noise, S_MAX, level)
        torch.testing.assert_close(of.at(level), exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(of.at(0.0), of.states[-1])
    torch.testing.assert_close(of.at(S_MAX), of.states[0])


def test_states_between_levels_are_linear_in_t():
    """x_t = alpha y, alpha = 1 / (1 + s): at t = .75 half way between those at .5 and 1 - 1e-9."""
    levels = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)  # t = .75, .5, 0
    states = tuple(torch.full((1, 1), v, dtype=torch.float64) for v in (8.0, 2.0, 1.0))
    between = 0.625 / 0.375  # t = .625: alpha y = (8 / 4 + 2 / 2) / 2 = 1.5
    assert Teacher(levels, states).at(between).item() == pytest.approx(1.5 / 0.375)


@pytest.mark.parametrize(
    ("dimension", "num_levels", "most"), [(16, 3, 0.3), (16, 5, 0.3), (64, 5, 0.35)]
)
def test_it_is_nearer_to_the_truth_than_2m(dimension, num_levels, most):
    mixture = oracle.bench_mixture(0, dimension)
    noise, z = oracle.noise((512, dimension), 1), oracle.noise((2000, dimension), 2)
    truth = mixture.sample(2000, torch.Generator().manual_seed(3))
    made = fit_whole(mixture.denoiser, noise, num_levels, S_MAX)
    levels = grids.edm(num_levels, S_MAX, 0.02)

    def distance(grid, solver):
        end = solvers.solve(mixture.denoiser, S_MAX * z, grid, solver)
        return oracle.sliced_wasserstein(end, truth)

    plain, own = distance(levels, "dpmpp2m"), distance(made.levels, made)
    assert own <= most * plain
    # Its own levels are the larger part of it.
    assert own < distance(levels, fit_whole(mixture.denoiser, noise, num_levels, S_MAX, levels))


def test_the_error_that_it_tells_is_that_of_fresh_noise():
    mixture = oracle.bench_mixture(0, 16)
    made = fit_whole(mixture.denoiser, oracle.noise((512, 16), 1), 5, S_MAX)
    of = teacher(mixture.denoiser, oracle.noise((512, 16), 9), S_MAX)
    end = solvers.solve(mixture.denoiser, of.states[0], made.levels, made)
    fresh = (end - of.states[-1]).square().mean().sqrt().item()
    assert 0.5 * made.rms < fresh < 2 * made.rms


def test_noise_that_was_scaled_before_is_refused():
    mixture = oracle.bench_mixture(0, 4)
    with pytest.raises(ValueError, match=r"noise has a root mean square of 10.*; give z of var"):
        fit_whole(mixture.denoiser, 10 * oracle.noise((64, 4), 1), 3, S_MAX)


def test_evaluations_are_counted_and_the_same_generator_gives_the_same_levels():
    mixture, calls = oracle.bench_mixture(0, 16), []

    def counted(y, s):
        calls.append(s)
        return mixture.denoiser(y, s)

    noise = oracle.noise((64, 16), 1)
    of = teacher(counted, noise, S_MAX, steps=50)
    assert len(calls) == 99
    calls.clear()
    made = fit_whole(counted, noise, 4, S_MAX, tries=20, of=of)
    assert len(calls) <= 4 * 20 + 4 * 30  # the last round goes on to its end
    calls.clear()
    solvers.solve(counted, S_MAX * noise, made.levels, made)
    assert len(calls) == made.evaluations(4) == 4
    again = fit_whole(mixture.denoiser, noise, 4, S_MAX, tries=20, of=of)
    assert torch.equal(made.levels, again.levels)
    assert torch.equal(made.coefficients, again.coefficients)


def test_a_generator_adds_starts_and_the_best_start_is_taken():
    assert len(_starts(4, S_MAX, None)) == 6
    starts = _starts(4, S_MAX, torch.Generator().manual_seed(0))
    assert len(starts) == 12
    for start in starts:
        grids.check(torch.tensor(start))
    assert _starts(1, S_MAX, torch.Generator()) == [[S_MAX, 0.0]]


def test_weights_levels_and_what_is_told_end_where_no_change_helps():
    """At the end every derivative is orthogonal to what is missing, so that small changes of
    anything lose."""
    mixture, noise = oracle.bench_mixture(0, 4), oracle.noise((128, 4), 1)
    of = teacher(mixture.denoiser, noise, S_MAX)
    made = fit_whole(mixture.denoiser, noise, 3, S_MAX, tries=2000, of=of)

    def error(levels=made.levels, told=made.told, coefficients=made.coefficients):
        solver = WholeMultistep(levels, coefficients, told=told)
        end = solvers.solve(mixture.denoiser, of.states[0], levels, solver)
        return (end - of.states[-1]).square().mean().sqrt().item()

    least = error()
    assert least == pytest.approx(made.rms, rel=1e-5)
    for sign in (0.9, 1.1):
        for k in (1, 2):
            scale = torch.ones(4, dtype=torch.float64)
            scale[k] = sign
            assert error(levels=made.levels * scale) > least
            assert error(told=made.told * scale[:3]) > least
        assert error(coefficients=made.coefficients * sign) > least


def test_only_the_chosen_coordinates_count():
    """Beside an image, numbers that follow it without end are carried and not fitted."""
    mixture, noise = oracle.bench_mixture(0, 4), oracle.noise((64, 4), 1)

    def beside(y, s):
        image = mixture.denoiser(y[:, :4], s)
        return torch.cat([image, 100 * torch.sin(y[:, 4:])], dim=1)

    wide = torch.cat([noise, oracle.noise((64, 3), 2)], dim=1)
    made = fit_whole(beside, wide, 3, S_MAX, coordinates=4)
    alone = fit_whole(mixture.denoiser, noise, 3, S_MAX)
    torch.testing.assert_close(made.coefficients, alone.coefficients)
    torch.testing.assert_close(made.told, alone.told)


def test_images_and_a_flow_models_start():
    mixture = oracle.bench_mixture(0, 16)

    def images(y, s):
        return mixture.denoiser(y.flatten(1), s).reshape(y.shape)

    noise = oracle.noise((64, 1, 4, 4), 1)
    made = fit_whole(images, noise, 3, grids.S_START, tries=30)
    assert made.levels[0].item() == grids.S_START
    assert made.rms < 0.5
    assert made.rms == float(f"{made.rms:.9g}"), "no last bits, which differ from call to call"
    assert made.coefficients.shape == (3, 4)


def test_what_does_not_fit_is_refused():
    data, noise = gaussian([0.5, 0.5]), oracle.noise((8, 2), 0)
    made = fit_whole(data.denoiser, noise, 3, S_MAX, tries=5)
    with pytest.raises(ValueError, match="'whole' was made for another grid"):
        solvers.solve(data.denoiser, S_MAX * noise, grids.edm(3, S_MAX), made)
    with pytest.raises(ValueError, match="levels are 4 from 80; give num_levels=3"):
        fit_whole(data.denoiser, noise, 3, S_MAX, grids.edm(4, S_MAX))
    with pytest.raises(ValueError, match="tries is 0"):
        fit_whole(data.denoiser, noise, 3, S_MAX, tries=0)
    with pytest.raises(ValueError, match="noise holds no states"):
        fit_whole(data.denoiser, noise[:0], 3, S_MAX)
    with pytest.raises(ValueError, match="s_max is inf"):
        fit_whole(data.denoiser, noise, 3, math.inf)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        fit_whole(lambda y, s: y * math.nan, noise, 3, S_MAX)
