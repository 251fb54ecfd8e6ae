import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from stages.methods import grids, lipschitz, solvers, stein, table
from stages.methods.path import T_START
from stages.methods.solvers import multistep
from stages.methods.solvers.trajectories import trajectory
from tests import oracle

NAMES = sorted(table.PLAIN_SOLVERS)
TWICE = ("heun", "dpm2")  # whose output is made of two of the denoiser's
IN_DIFFUSERS = ("euler", "heun", "dpmpp2m", "dpmpp3m", "unipc")


def gaussian(dimension: int = 4) -> oracle.Gaussian:
    factor = oracle.noise((dimension, dimension), 1)
    covariance = factor @ factor.T / dimension + 0.1 * torch.eye(dimension)
    return oracle.Gaussian(oracle.noise((dimension,), 2), covariance)


# ------------------------------------------------------------------ grids


def test_edm_grid_is_evenly_spaced_in_its_root():
    levels = grids.edm(8, 80, 0.02, 7)
    roots = levels[:-1] ** (1 / 7)
    assert levels[0] == 80
    assert float(levels[-2]) == pytest.approx(0.02)
    assert levels[-1] == 0
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(7))


def test_log_snr_and_uniform_time_grids_are_even_in_their_own_variable():
    ratios = grids.log_snr(6, 50, 0.1)[:-1].log().diff()
    assert torch.allclose(ratios, ratios[0].expand(5))
    levels = grids.uniform_t(5)
    times = levels / (1 + levels)
    assert torch.allclose(times.diff(), torch.full((5,), -T_START / 5, dtype=torch.float64))
    assert float(levels[0]) == pytest.approx(999)


def test_any_time_grid_gives_levels_that_start_short_of_infinity():
    levels = grids.from_times(torch.tensor([1.0, 0.75, 0.5, 0.0]))
    assert levels.tolist() == pytest.approx([999, 3, 1, 0])


def test_a_grid_with_several_times_before_the_start_says_what_to_change():
    with pytest.raises(ValueError, match=r"3 of the grid's 5 times .* t=0\.999.*NFE.*shift"):
        grids.from_times(torch.tensor([1.0, 0.9995, 0.999, 0.5, 0.0], dtype=torch.float64))
    close = torch.tensor([1.0, 0.9989, 0.0], dtype=torch.float64)
    assert grids.from_times(close)[0] == pytest.approx(999)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 2.0, 0.0], "do not descend at index 1"),
        ([2.0, 1.0, 1.0, 0.0], "do not descend at index 2"),
        ([2.0, 1.0, 0.1], "last level must be 0"),
        ([2.0, float("nan"), 0.0], "NaN"),
        ([float("inf"), 1.0, 0.0], "infinity"),
        ([0.0], "at least two"),
        ([[2.0, 0.0]], "1-D"),
        ([2.0, 1e-310, 0.0], "holds 1e-310, whose ratios .* 1e-100 or more"),
        ("edm", "other things than numbers"),
        (None, "other things than numbers"),
        ([1.0, [2.0]], "other things than numbers"),
    ],
)
def test_bad_levels_are_refused_in_one_sentence(levels, message):
    with pytest.raises(ValueError, match=message):
        solvers.solve(lambda y, s: y, torch.zeros(2, 3), levels)


def test_bad_grid_settings_are_refused():
    for num_levels in (0, 2.5):
        with pytest.raises(ValueError, match=f"num_levels is {num_levels}"):
            grids.edm(num_levels)
    for rho in (0, -3, float("inf")):
        with pytest.raises(ValueError, match=f"rho is {rho}"):
            grids.edm(5, rho=rho)
    with pytest.raises(ValueError, match="s_min"):
        grids.log_snr(5, 1.0, 2.0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        grids.from_times(torch.tensor([1.5, 0.0]))


# ------------------------------------------------------------------ evaluations


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_evaluations_are_the_true_number_of_denoiser_calls(name, num_levels):
    calls = []

    def denoiser(y, s):
        calls.append(s)
        return 0.5 * y

    levels = grids.edm(num_levels, 80, 0.02)
    solvers.solve(denoiser, torch.ones(1, 2), levels, name)
    assert len(calls) == solvers.evaluations(name, num_levels)
    assert solvers.levels_for_evaluations(name, len(calls)) == num_levels
    assert min(calls) > 0


def test_an_impossible_number_of_evaluations_names_the_nearest():
    with pytest.raises(ValueError, match=r"cannot make 6 evaluations.*5 and 7"):
        solvers.levels_for_evaluations("heun", 6)
    with pytest.raises(ValueError, match=r"cannot make 0 evaluations.*1$"):
        solvers.levels_for_evaluations("dpmpp2m", 0)
    with pytest.raises(ValueError, match="num_levels is 0"):
        solvers.evaluations("heun", 0)


def test_an_unknown_solver_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'dpmpp2m'"):
        solvers.solve(lambda y, s: y, torch.zeros(1, 1), grids.edm(3), "dpmpp_2m")


# ------------------------------------------------------------------ the steps


def test_what_is_no_solver_or_correction_is_named():
    y, levels = torch.zeros(2, 3), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"solver is NoneType; give a name \(euler, .* fit_whole"):
        solvers.solve(lambda y, s: y, y, levels, None)
    with pytest.raises(ValueError, match=r"correction is Tensor; .* as calibrated\(gammas\) is"):
        solvers.solve(lambda y, s: y, y, levels, correction=torch.ones(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_affine_in_state_and_outputs_and_keeps_constants(name):
    solver, levels = solvers.named(name), grids.edm(7, 80, 0.02).tolist()
    for k in range(7):
        weights = solver.weights(levels, k)
        assert len(weights) <= solver.memory
        assert sum(weights) == pytest.approx(1 - levels[k + 1] / levels[k])
        redo = solver.corrector(levels, k)
        if redo is not None:
            assert sum(redo) == pytest.approx(1 - levels[k] / levels[k - 1])
            assert len(redo) <= solver.memory


@pytest.mark.parametrize("name", NAMES)
def test_data_at_one_point_are_reached_in_any_number_of_steps(name):
    point = oracle.noise((3,), 4)
    y = point + 80 * oracle.noise((5, 3), 0)
    end = solvers.solve(lambda y, s: point.expand_as(y), y, grids.edm(4, 80, 0.02), name)
    assert torch.allclose(end, point.expand_as(y), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_terms_make_up_every_step(name):
    data = gaussian()
    y = 80 * oracle.noise((3, 4), 0)
    levels = grids.edm(6, 80, 0.02)
    for advance in trajectory(data.denoiser, y, levels, solvers.named(name)):
        step = advance.step
        total = step.ratio * step.state
        for weight, past in zip(step.weights, step.outputs, strict=False):
            total = total + weight * past.output
        assert torch.allclose(total, advance.state, atol=1e-12)
        if name not in TWICE:
            newest = step.outputs[0]
            assert torch.equal(newest.output, data.denoiser(newest.point, newest.level))
    end = solvers.solve(data.denoiser, y, levels, name)
    assert torch.equal(advance.state, end)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("euler", 0.85, 1.25),
        ("heun", 1.8, 2.5),
        ("dpmpp2m", 1.8, 2.4),
        ("dpmpp3m", 1.9, 3.0),
        ("unipc", 2.6, 3.5),
        ("deis", 3.8, 4.2),
        ("ipndm", 1.8, 2.4),
        ("dpm2", 1.8, 2.4),
        (solvers.LookAhead(solvers.Multistep("euler", 1), "unic1"), 1.8, 2.4),
    ],
)
def test_orders_of_convergence_on_the_exact_gaussian_flow(name, lowest, highest):
    """Uniform log-SNR, short of s=0, where every solver's last step is of first order.

    From a level so high that the low-order start-up of the multistep solvers costs nothing.
    """
    data = gaussian()
    y = 1000 * oracle.noise((64, 4), 0)
    errors = []
    for num_levels in (81, 161):
        levels = grids.log_snr(num_levels, 1000, 0.05)
        *_, before, _ = trajectory(data.denoiser, y, levels, solvers.named(name))
        state = before.state
        redo = solvers.named(name).corrector(levels.tolist(), num_levels - 1)
        if redo is not None:  # the state a look-ahead solver stands for is the redone one
            *_, last = trajectory(data.denoiser, y, levels, solvers.named(name))
            state = last.step.state
        errors.append(oracle.rms(state - data.flow(y, 1000, 0.05)))
    order = math.log2(errors[0] / errors[1])
    assert lowest < order < highest


@pytest.fixture(scope="module")
def mixture_flow():
    """The exact mixture, states of it at level 80, and their flow to .1."""
    mixture, y = oracle.bench_mixture(0), 80 * oracle.noise((16, 16), 0)
    return mixture, y, oracle.runge_kutta(mixture.denoiser, y, 80, 0.1)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("euler", 0.9, 1.3),
        ("heun", 1.8, 2.2),
        ("dpmpp2m", 1.7, 2.2),
        ("dpmpp3m", 1.9, 3.0),
        ("unipc", 2.6, 3.2),
        ("deis", 3.7, 4.5),
        ("ipndm", 1.8, 2.3),
        ("dpm2", 1.8, 2.2),
    ],
)
def test_orders_of_convergence_on_the_exact_mixture(mixture_flow, name, lowest, highest):
    """Uniform log-SNR, short of s=0, against 2,000 Runge-Kutta steps."""
    mixture, y, end = mixture_flow
    errors = []
    for num_levels in (81, 161):
        levels = grids.log_snr(num_levels, 80, 0.1)
        *_, before, last = trajectory(mixture.denoiser, y, levels, solvers.named(name))
        redone = solvers.named(name).corrector(levels.tolist(), num_levels - 1) is not None
        errors.append(oracle.rms((last.step.state if redone else before.state) - end))
    assert lowest < math.log2(errors[0] / errors[1]) < highest


def test_ipndm_has_order_four_where_steps_are_equal():
    data, y, errors = gaussian(), 10 * oracle.noise((64, 4), 0), []
    for num_levels in (160, 320):
        levels = torch.cat([torch.linspace(10, 1, num_levels).double(), torch.zeros(1)])
        *_, before, _ = trajectory(data.denoiser, y, levels, solvers.named("ipndm"))
        errors.append(oracle.rms(before.state - data.flow(y, 10.0, 1.0)))
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.2


@pytest.mark.parametrize("name", ["deis", "ipndm"])
def test_extrapolating_solvers_are_their_formula_in_the_noise(name):
    """Written out with stored noises, as they are published, on a grid of uneven steps."""
    mixture, levels = oracle.bench_mixture(0), grids.edm(9, 80, 0.02)
    y = start = 80 * oracle.noise((8, 16), 0)
    grid, noises = levels.tolist(), []
    for k in range(9):
        s, s_next = grid[k], grid[k + 1]
        noises.insert(0, (y - mixture.denoiser(y, s)) / s)
        if s_next == 0:
            y = y + (s_next - s) * noises[0]
            break
        used = noises[:4]
        if name == "ipndm":
            weights = {
                1: [1],
                2: [1.5, -0.5],
                3: [23 / 12, -4 / 3, 5 / 12],
                4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
            }[len(used)]
            y = y + (s_next - s) * sum(w * e for w, e in zip(weights, used, strict=True))
            continue
        # The polynomial in t by its coefficients, its powers integrated in closed form: t = 1 - w
        # with w = 1 / (1 + s).
        w = [1 / (1 + grid[k - j]) for j in range(len(used))]
        powers = np.linalg.inv(np.vander(w, increasing=True))
        a, b = 1 / (1 + s), 1 / (1 + s_next)
        integrals = [s_next - s, math.log(a / b), a - b, (a * a - b * b) / 2][: len(used)]
        y = y + sum(float(c) * e for c, e in zip(integrals @ powers, used, strict=True))
    ours = solvers.solve(mixture.denoiser, start, levels, name)
    assert torch.allclose(ours, y, rtol=1e-6, atol=1e-6)


def test_dpm_solver_2_is_its_formula_in_the_noise():
    mixture, levels = oracle.bench_mixture(0), grids.log_snr(6, 80, 0.02)
    y = start = 80 * oracle.noise((8, 16), 0)
    for s, s_next in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        first = (y - mixture.denoiser(y, s)) / s
        if s_next == 0:
            y = y - s * first
            break
        h = math.log(s / s_next)
        middle = s * math.exp(-h / 2)
        # alpha = 1: u = y - sigma_m (e^(h/2) - 1) eps, and the same over the whole step.
        u = y - middle * math.expm1(h / 2) * first
        y = y - s_next * math.expm1(h) * (u - mixture.denoiser(u, middle)) / middle
    ours = solvers.solve(mixture.denoiser, start, levels, "dpm2")
    assert torch.allclose(ours, y, rtol=1e-9, atol=1e-9)


def test_end_points_of_many_steps_agree_with_the_exact_flow():
    data = gaussian()
    y = 80 * oracle.noise((64, 4), 0)
    exact = data.flow(y, 80, 0.0)
    for name, bound in (("euler", 0.1), ("heun", 4e-3), ("dpmpp2m", 4e-3), ("unipc", 4e-3)):
        end = solvers.solve(data.denoiser, y, grids.edm(100, 80, 0.002), name)
        assert oracle.rms(end - exact) < bound


def test_the_look_ahead_corrector_around_2m_is_unipc():
    data, y, levels = gaussian(), 80 * oracle.noise((3, 4), 0), grids.edm(6, 80, 0.02)
    around = solvers.LookAhead(solvers.Multistep("dpmpp2m", 2), "dpmpp2m-lookahead")
    unipc = solvers.solve(data.denoiser, y, levels, "unipc")
    assert torch.equal(solvers.solve(data.denoiser, y, levels, around), unipc)
    assert not torch.allclose(solvers.solve(data.denoiser, y, levels, "dpmpp2m"), unipc)


def test_the_states_type_is_kept():
    y = torch.ones(2, 3)
    for name in NAMES:
        assert solvers.solve(lambda y, s: 0.5 * y, y, grids.uniform_t(3), name).dtype == y.dtype


# ------------------------------------------------------------------ errors from the denoiser


@pytest.mark.parametrize("name", NAMES)
def test_nan_from_the_denoiser_names_step_and_level(name):
    levels = torch.tensor([10.0, 2.0, 0.5, 0.0])

    def denoiser(y, s):
        return y * float("nan") if s == 0.5 else 0.5 * y

    step = 2 if name == "heun" else 3
    with pytest.raises(FloatingPointError, match=rf"step {step} of 3, level s=0\.5$"):
        solvers.solve(denoiser, torch.ones(2, 3), levels, name)


def test_a_denoiser_that_changes_its_state_is_refused():
    for call in (solvers.solve, solvers.fit, solvers.fit_heun):
        with pytest.raises(ValueError, match="denoiser changed the state that it was given"):
            call(lambda y, s: y.mul_(0.5), torch.ones(4, 3), grids.edm(3))
    with torch.inference_mode():  # such tensors do not tell
        made = solvers.solve(lambda y, s: y * 0.5, torch.ones(4, 3), grids.edm(3))
    assert torch.isfinite(made).all()


def test_a_wrong_output_shape_is_named():
    with pytest.raises(ValueError, match=r"shape \(2, 1\) for a state of shape \(2, 3\)"):
        solvers.solve(lambda y, s: y[:, :1], torch.ones(2, 3), grids.edm(3))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda clean: (clean, None), "returned tuple; it must return one torch tensor"),
        (lambda clean: {"sample": clean}, "returned dict"),
        (lambda clean: clean.numpy(), "returned ndarray"),
        (lambda clean: None, "returned NoneType"),
        (lambda clean: float(clean.mean()), "returned float"),
        (lambda clean: clean.mean(), r"shape \(\) for a state"),
        (lambda clean: clean[None], r"shape \(1, 2, 3\)"),
        (lambda clean: clean.to(torch.complex64), "complex64 .* real numbers"),
        (lambda clean: clean > 0, "bool .* real numbers"),
        (lambda clean: clean.to("meta"), "on meta .* the state's device"),
    ],
)
def test_what_is_no_tensor_like_the_state_is_named(wrap, message):
    def denoiser(y, s):
        return wrap(0.5 * y)

    y, levels = torch.ones(2, 3), grids.edm(3)
    for call in (solvers.solve, solvers.fit, solvers.fit_heun, lipschitz.step_norms):
        with pytest.raises(ValueError, match=message):
            call(denoiser, y, levels)
    with pytest.raises(ValueError, match=message):
        stein.calibrate(denoiser, y, levels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("name", NAMES)
def test_a_denoisers_own_type_leaves_the_states_as_it_is(name, dtype):
    y, levels = 80 * oracle.noise((3, 4), 0).float(), grids.edm(5, 80)
    end = solvers.solve(lambda y, s: torch.round(y / (1 + s**2)).to(dtype), y, levels, name)
    same = solvers.solve(lambda y, s: torch.round(y / (1 + s**2)), y, levels, name)
    assert end.dtype == torch.float32
    assert torch.allclose(end, same, atol=0.05)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones((2, 3)), r"is ndarray; give a torch tensor"),
        ([[1.0]], "is list"),
        (torch.ones(2, 3, dtype=torch.int64), r"is torch.int64 of shape \(2, 3\); .*floating"),
        (torch.tensor(1.0), r"is torch.float32 of shape \(\)"),
        (torch.full((2, 3), math.inf), "holds NaN or infinity"),
    ],
)
def test_what_are_no_states_is_named(y, message):
    levels = grids.edm(3)
    for call in (solvers.solve, solvers.fit, lipschitz.step_norms):
        with pytest.raises(ValueError, match=f"^y {message}"):
            call(lambda y, s: 0.5 * y, y, levels)
    with pytest.raises(ValueError, match=f"clean {message}"):
        stein.calibrate(lambda y, s: 0.5 * y, y, levels)
    with pytest.raises(ValueError, match=f"noise {message}"):
        solvers.fit_whole(lambda y, s: 0.5 * y, y, 3, 80.0)
    with pytest.raises(ValueError, match="denoiser is str; give a function"):
        solvers.solve("network", torch.ones(2, 3), levels)


# ------------------------------------------------------------------ tiny levels


@pytest.mark.parametrize("s_min", [1e-6, 1e-9, 1e-12, 1e-20, 1e-60])
@pytest.mark.parametrize("name", NAMES)
def test_at_tiny_levels_single_precision_says_what_double_says(name, s_min):
    y, levels = 80 * oracle.noise((64, 16), 0), grids.edm(20, 80, 1e-3).tolist()
    levels[-1:] = [s_min, 0.0]
    single, double = (
        solvers.solve(lambda y, s: y / (1 + s**2), y.to(dtype), levels, name)
        for dtype in (torch.float32, torch.float64)
    )
    assert double.std() > 0.5
    assert oracle.rms(single - double) < 0.05 * double.std()


def test_heuns_step_to_a_tiny_level_keeps_the_samples():
    y = oracle.noise((64, 16), 0)
    for s_min, dtype in ((1e-20, torch.float64), (1e-12, torch.float32)):
        levels = grids.edm(6, s_max=80.0, s_min=s_min)
        ends = solvers.solve(lambda y, s: y / (1 + s**2), levels[0] * y.to(dtype), levels, "heun")
        assert ends.std() == pytest.approx(1.9, abs=0.05)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_phi_is_the_same_on_both_sides_of_its_series(order):
    for z in (-0.99, -1.01, -3.0, -1e-3, -1e-12, 0.5, 2.0):
        exact = sum(Fraction(z) ** m / math.factorial(m + order) for m in range(40))
        assert multistep.phi(order, z) == pytest.approx(float(exact), rel=1e-12)


def test_near_equal_levels_leave_the_weights_what_they_are():
    """Equal steps in the logarithm have the same weights, as a share of the step, at any size."""
    for h in (1e-3, 1e-6, 1e-9):
        levels = [math.exp(-h * k) for k in range(5)]
        step = -math.expm1(-h)
        third = [w / step for w in multistep.dpmpp_3m(levels, 3)]
        assert third == pytest.approx([11 / 6, -7 / 6, 1 / 3], abs=h + 1e-6)
        look = [w / step for w in multistep.unic(levels, 3, 2)]
        assert look == pytest.approx([5 / 12, 2 / 3, -1 / 12], abs=h + 1e-6)


# ------------------------------------------------------------------ an independent library


def diffusers_solver(name: str):
    diffusers = pytest.importorskip("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if name == "heun":
        return diffusers.HeunDiscreteScheduler(
            prediction_type="sample", timestep_spacing="linspace"
        )
    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **flow)
    order = {"euler": 1, "dpmpp2m": 2, "dpmpp3m": 3}[name]
    return diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="dpmsolver++", **flow
    )


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_end_points_agree_with_diffusers(name):
    """Median over samples of the distance, the schedulers computing in float32."""
    mixture = oracle.bench_mixture(0)
    num_levels = 20
    levels = grids.log_snr(num_levels, 80, 0.02)
    z = oracle.noise((200, 16), 0)
    scheduler = diffusers_solver(name)
    scheduler.set_timesteps(num_levels)
    scheduler.set_begin_index(0)
    times = levels / (1 + levels)
    if name == "heun":  # EDM coordinates; inner levels occur twice
        twice = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.sigmas = twice.float()
        x = (levels[0] * z).float()
        for s, t in zip(twice[:-1].tolist(), scheduler.timesteps, strict=True):
            clean = mixture.denoiser(x.double(), s)
            x = scheduler.step(clean.float(), t, x).prev_sample
    else:
        scheduler.sigmas = times.float()
        x = (times[0] * z).float()
        for t, step_time in zip(times[:-1].tolist(), scheduler.timesteps, strict=True):
            clean = mixture.denoiser(x.double() / (1 - t), t / (1 - t))
            v = (x.double() - clean) / t
            x = scheduler.step(v.float(), step_time, x).prev_sample
    ours = solvers.solve(mixture.denoiser, levels[0] * z, levels, name)
    distance = (ours - x.double()).square().mean(1).sqrt()
    assert float(distance.median()) < 1e-3


# ------------------------------------------------------------------ fitted solvers


def test_a_fitted_solver_is_exact_where_one_coefficient_suffices():
    """For centred isotropic Gaussian data the exact flow is a multiple of state and output."""
    zero, identity = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    data = oracle.Gaussian(zero, 0.3 * identity)
    levels = grids.edm(4, 80, 0.02)
    fitted = solvers.fit(data.denoiser, 80 * oracle.noise((32, 3), 0), levels, 1, substeps=64)
    y = 80 * oracle.noise((16, 3), 1)
    exact = data.denoiser(data.flow(y, 80, 0.02), 0.02)  # the last step is D
    assert torch.allclose(solvers.solve(data.denoiser, y, levels, fitted), exact, atol=1e-3)
    plain = solvers.solve(data.denoiser, y, levels, "dpmpp2m")
    assert not torch.allclose(plain, exact, atol=1e-2)


def test_no_other_coefficients_of_a_step_come_nearer_to_the_fine_solution():
    data = oracle.bench_mixture(0)
    levels, y = grids.edm(5, 80, 0.02), 80 * oracle.noise((256, 16), 0)
    fitted = solvers.fit(data.denoiser, y, levels)
    assert fitted.coefficients.shape == (5, 4)
    assert fitted.coefficients[-1].tolist() == [1, 0, 0, 0]
    for advance in list(trajectory(data.denoiser, y, levels, fitted))[:-1]:
        step = advance.step
        fine = torch.cat(
            [
                grids.log_snr(65, step.level, step.next_level)[:-1],
                torch.tensor([0.0], dtype=torch.float64),
            ]
        )
        *_, before, _ = trajectory(data.denoiser, step.state, fine, solvers.named("heun"))
        miss = before.state - advance.state
        for past in step.outputs:  # least squares: the miss is orthogonal to every output
            cosine = (miss * past.output).sum() / (miss.norm() * past.output.norm())
            assert abs(float(cosine)) < 0.02


def test_fitted_solvers_beat_the_plain_ones_on_the_bench_mixture():
    data = oracle.bench_mixture(0)
    noise, z = 80 * oracle.noise((256, 16), 0), 80 * oracle.noise((1000, 16), 1)
    truth = data.sample(1000, torch.Generator().manual_seed(2))

    def distance(levels, solver):
        return oracle.sliced_wasserstein(solvers.solve(data.denoiser, z, levels, solver), truth)

    levels = grids.edm(6, 80, 0.02)
    assert distance(levels, solvers.fit(data.denoiser, noise, levels)) < 0.75 * distance(
        levels, "dpmpp2m"
    )
    levels = grids.edm(5, 80, 0.02)
    assert distance(levels, solvers.fit_heun(data.denoiser, noise, levels)) < 0.5 * distance(
        levels, "heun"
    )


def test_a_fitted_solver_is_its_tensors_and_refuses_another_grid():
    data = gaussian()
    levels, y = grids.edm(5, 80, 0.02), 80 * oracle.noise((64, 4), 0)
    for made in (
        solvers.fit(data.denoiser, y, levels, memory=2, substeps=4),
        solvers.fit_heun(data.denoiser, y, levels, substeps=4),
    ):
        again = type(made)(made.levels.clone(), made.coefficients.clone())
        end = solvers.solve(data.denoiser, y, levels, made)
        assert torch.equal(solvers.solve(data.denoiser, y, levels, again), end)
        solvers.solve(data.denoiser, y, levels.float(), again)  # the same grid to rounding
        for other in (grids.edm(6, 80, 0.02), grids.edm(5, 80, 0.03)):
            with pytest.raises(ValueError, match="made for another grid"):
                solvers.solve(data.denoiser, y, other, made)


def test_a_fit_names_its_bad_arguments_and_the_step_of_a_nan():
    y, levels = torch.ones(4, 2), torch.tensor([10.0, 2.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="memory is 0"):
        solvers.fit(lambda y, s: y, y, levels, memory=0)
    with pytest.raises(ValueError, match="substeps is 0"):
        solvers.fit(lambda y, s: y, y, levels, substeps=0)
    with pytest.raises(FloatingPointError, match="step 2 of 3"):
        solvers.fit(lambda y, s: y * float("nan") if s < 1.9 else 0.5 * y, y, levels)
