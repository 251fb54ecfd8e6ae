import math
from dataclasses import replace

import pytest
import torch

from stages.methods import grids, solvers, stein, table
from stages.methods.path import Packing
from stages.methods.solvers.divergence import mean_inner, output_and_divergence
from stages.methods.solvers.trajectories import Evaluation, Step, trajectory
from tests import oracle

LEVELS = torch.tensor([1.5, 0.667, 0.25, 0.0], dtype=torch.float64)
NUM_SAMPLES = {2: 200_000, 16: 20_000, 64: 10_000}
UNCLIPPED = stein.SteinCorrection("matched", (-10.0, 10.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ExactDivergence:
    """Records outputs with the oracle's own divergence; corrects nothing."""

    def __init__(self, data):
        self.data = data

    def begin(self, solver, levels, probes):
        return self

    def evaluate(self, output, y, level):
        return Evaluation(y, level, output(y), float(self.data.divergence(y, level).mean()))

    def gamma(self, step):
        return 1.0


def straight(data, solver, num_samples, rectifier=None, levels=LEVELS):
    clean = data.sample(num_samples, generator(1))
    steps = stein.straight_path(
        data.denoiser, clean, levels, solvers.named(solver), generator(2), rectifier
    )
    return clean, steps


def matched_gamma(step: Step, clean: torch.Tensor) -> float:
    u = step.state - step.proposal
    inner = mean_inner(u, step.state - clean)
    return (1 - step.ratio) * inner / mean_inner(u, u)


def with_history_held_constant(step: Step) -> float:
    """The biased form: s^2 E[div u] of the current output alone."""
    u = step.state - step.proposal
    phi, dimension = 1 - step.ratio, step.state.shape[1]
    divergence = phi * dimension - step.weights[0] * step.outputs[0].divergence
    return phi * step.level**2 * divergence / mean_inner(u, u)


# ------------------------------------------------------------------ Stein's identity


@pytest.mark.parametrize("dimension", [2, 16, 64])
def test_the_identity_gives_the_exact_inner_product_on_the_straight_path(dimension):
    data = oracle.bench_mixture(0, dimension)
    clean, steps = straight(data, "dpmpp2m", NUM_SAMPLES[dimension], ExactDivergence(data))
    for step in steps:
        assert UNCLIPPED.gamma(step) == pytest.approx(matched_gamma(step, clean), abs=0.02)
    biased, exact = with_history_held_constant(steps[1]), matched_gamma(steps[1], clean)
    assert abs(biased - exact) > 0.04  # differentiating with the history held constant is wrong


def test_the_identity_holds_for_longer_histories():
    data, levels = oracle.bench_mixture(0, 16), torch.tensor([3.0, 1.5, 0.667, 0.25, 0.0])
    clean, steps = straight(data, "dpmpp3m", 20_000, ExactDivergence(data), levels)
    assert len(steps[2].weights) == 3
    for step in steps:
        assert UNCLIPPED.gamma(step) == pytest.approx(matched_gamma(step, clean), abs=0.02)


@pytest.mark.parametrize("solver", ["heun", "dpmpp2m", "fitted"])
def test_hutchinsons_probes_serve_the_identity_for_every_kind_of_solver(solver):
    data = oracle.bench_mixture(0, 16)
    if solver == "fitted":
        solver = solvers.fit(data.denoiser, 1.5 * oracle.noise((256, 16), 0), LEVELS, 3, 4)
    begun = UNCLIPPED.begin(solvers.named(solver), LEVELS.tolist(), generator(3))
    clean, steps = straight(data, solver, 8_000, begun)
    for step in steps:
        assert UNCLIPPED.gamma(step) == pytest.approx(matched_gamma(step, clean), abs=0.03)


def test_hutchinsons_estimate_is_the_exact_divergence():
    data = oracle.bench_mixture(0, 16)
    y = data.sample(4000, generator()) + 0.5 * oracle.noise((4000, 16), 1)

    def output(point):
        return data.denoiser(point, 0.5)

    value, estimate = output_and_divergence(output, y, generator(), num_probes=4)
    assert torch.equal(value, data.denoiser(y, 0.5))
    assert not value.requires_grad
    assert estimate == pytest.approx(float(data.divergence(y, 0.5).mean()), rel=0.01)


def test_the_divergence_does_not_depend_on_how_a_state_lies_in_memory():
    matrix = oracle.noise((12, 12), 1)

    def output(point):
        return (point.flatten(1) @ matrix).view_as(point)

    y = oracle.noise((4, 3, 2, 2), 0)
    strided = y.contiguous(memory_format=torch.channels_last)
    expected = output_and_divergence(output, y, generator())[1]
    assert expected != 0
    assert output_and_divergence(output, strided, generator())[1] == pytest.approx(expected)


def test_a_divergence_shares_the_primal_pass():
    calls = []

    def output(point):
        calls.append(point)
        return point**2

    y = oracle.noise((8, 3), 0)
    _, divergence = output_and_divergence(output, y, generator(), num_probes=3)
    assert len(calls) == 1
    assert divergence == pytest.approx(float(2 * y.sum() / 8))  # a diagonal Jacobian is exact


def test_partial_divergence_counts_the_chosen_coordinates_only():
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    y = oracle.noise((4, 2, 2), 0)
    for coordinates, expected in ((3, 7), (slice(1, 3), 6), (None, 15)):
        _, divergence = output_and_divergence(
            lambda point: point * scales.reshape(2, 2), y, generator(), coordinates
        )
        assert divergence == pytest.approx(expected)


def test_a_denoiser_without_derivative_is_named():
    with pytest.raises(ValueError, match="cannot be differentiated"):
        solvers.solve(
            lambda y, s: y.detach(), torch.ones(2, 3), LEVELS, correction=stein.online(0.0, 1.0)
        )


# ------------------------------------------------------------------ calibration


def test_a_perfect_denoiser_with_ddim_needs_no_correction():
    data = oracle.bench_mixture(0)
    levels = grids.edm(8, 80, 0.02)
    clean = data.sample(30_000, generator())
    gammas = stein.calibrate(data.denoiser, clean, levels, "euler")
    assert gammas.shape == (8,)
    assert (gammas[:-1] - 1).abs().max() < 0.01
    literal = stein.calibrate(data.denoiser, clean, levels, "euler", "literal", (0, 1e9))
    r = levels[1:] / levels[:-1]
    assert torch.allclose(literal[:-1] * (1 - r[:-1]), torch.ones(7).double(), atol=0.01)
    assert float(literal[-1]) == pytest.approx(float(gammas[-1]))


def test_calibration_takes_the_exact_inner_product_of_every_step():
    data = oracle.bench_mixture(0)
    clean, steps = straight(data, "heun", 500)
    gammas = stein.calibrate(
        data.denoiser, clean, LEVELS, "heun", clip=(-9, 9), generator=generator(2)
    )
    assert gammas.tolist() == pytest.approx([matched_gamma(step, clean) for step in steps])


def test_default_clips_are_the_solvers():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    clean = data.sample(500, generator())
    gammas = stein.calibrate(data.denoiser, clean, levels, "dpmpp2m")
    free = stein.calibrate(data.denoiser, clean, levels, "dpmpp2m", clip=(-9, 9))
    assert float(free.min()) < 0.5
    assert torch.equal(gammas, free.clamp(0.5, 1.5))
    heun, free = (
        stein.calibrate(data.denoiser, clean, grids.edm(3, 80, 0.02), "heun", clip=clip)
        for clip in (None, (-9, 9))
    )
    assert float(free.max()) > 1.5
    assert torch.equal(heun, free.clamp(0.2, 3))


def test_products_of_shards_add_up_to_one_calibration():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    clean = data.sample(1000, generator())
    shards = [
        stein.residual_products(data.denoiser, part, levels, "dpmpp2m", generator(seed))
        for seed, part in enumerate(clean.split(500))
    ]
    gammas = stein.gammas_from_products(sum(shards), levels, "dpmpp2m", clip=(-9, 9))
    each = [stein.gammas_from_products(p, levels, "dpmpp2m", clip=(-9, 9)) for p in shards]
    low, high = torch.stack(each).amin(0), torch.stack(each).amax(0)
    assert ((low <= gammas) & (gammas <= high)).all()
    whole = stein.calibrate(data.denoiser, clean, levels, "dpmpp2m", clip=(-9, 9))
    assert torch.allclose(gammas[:-2], whole[:-2], atol=0.05)


def test_the_models_own_samples_calibrate_as_well_as_data():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    own = solvers.solve(
        data.denoiser, 80 * oracle.noise((2000, 16), 0), grids.edm(60, 80, 0.02), "unipc"
    )
    from_own = stein.calibrate(data.denoiser, own, levels)
    from_data = stein.calibrate(data.denoiser, data.sample(2000, generator()), levels)
    assert torch.allclose(from_own, from_data, atol=0.05)


@pytest.mark.parametrize(("solver", "num_levels"), [("dpmpp2m", 5), ("heun", 3), ("unipc", 5)])
def test_calibrated_steps_come_nearer_to_the_data(solver, num_levels):
    data, levels = oracle.bench_mixture(0), grids.edm(num_levels, 80, 0.02)
    gammas = stein.calibrate(data.denoiser, data.sample(1000, generator()), levels, solver)
    correction = stein.calibrated(gammas, levels, solver)
    y, truth = 80 * oracle.noise((1000, 16), 0), data.sample(1000, generator(1))
    plain = solvers.solve(data.denoiser, y, levels, solver)
    corrected = solvers.solve(data.denoiser, y, levels, solver, correction)
    assert oracle.sliced_wasserstein(corrected, truth) < 0.75 * oracle.sliced_wasserstein(
        plain, truth
    )


def test_gammas_of_one_are_the_plain_solver():
    data, levels, y = oracle.bench_mixture(0), grids.edm(5, 80, 0.02), oracle.noise((10, 16), 0)
    for solver in table.PLAIN_SOLVERS:
        ones = stein.calibrated(torch.ones(5))
        plain = solvers.solve(data.denoiser, 80 * y, levels, solver)
        assert torch.equal(solvers.solve(data.denoiser, 80 * y, levels, solver, ones), plain)


def test_unipcs_gamma_moves_the_predicted_state_before_the_corrector_reads_it():
    data, levels, y = oracle.bench_mixture(0), grids.edm(4, 80, 0.02), oracle.noise((10, 16), 0)
    gammas = torch.tensor([1.0, 0.7, 1.0, 1.0])
    unipc = solvers.named("unipc")
    plain = list(trajectory(data.denoiser, 80 * y, levels, unipc))
    steps = list(trajectory(data.denoiser, 80 * y, levels, unipc, stein.calibrated(gammas)))
    first = steps[1].step
    assert torch.allclose(steps[1].state, first.state - 0.7 * (first.state - first.proposal))
    assert torch.equal(steps[2].step.outputs[0].point, steps[1].state)
    # The redone step has its own coefficients; only the output at the moved state has changed.
    weights = unipc.corrector(levels.tolist(), 2)
    change = steps[2].step.outputs[0].output - plain[2].step.outputs[0].output
    assert torch.allclose(steps[2].step.state - plain[2].step.state, weights[0] * change)


def test_a_calibration_made_for_something_else_is_refused():
    levels, y = grids.edm(4, 80, 0.02), torch.ones(2, 3)
    correction = stein.calibrated(torch.ones(4), levels, "dpmpp2m")
    assert solvers.solve(lambda y, s: y, y, levels, "dpmpp2m", correction).shape == y.shape
    with pytest.raises(ValueError, match="4 entries for a grid of 5"):
        solvers.solve(lambda y, s: y, y, grids.edm(5, 80, 0.02), "dpmpp2m", correction)
    with pytest.raises(ValueError, match="made for another grid"):
        solvers.solve(lambda y, s: y, y, grids.edm(4, 80, 0.03), "dpmpp2m", correction)
    with pytest.raises(ValueError, match="'dpmpp2m', not 'heun'"):
        solvers.solve(lambda y, s: y, y, levels, "heun", correction)
    with pytest.raises(ValueError, match="finite"):
        stein.calibrated(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="target is 'exact'"):
        stein.calibrate(lambda y, s: y, y, levels, target="exact")


def test_calibration_names_the_step_of_a_nan():
    with pytest.raises(FloatingPointError, match=r"step 2 of 3, level s=0\.667"):
        stein.calibrate(
            lambda y, s: y * float("nan") if s < 1 else 0.5 * y, torch.ones(4, 2), LEVELS
        )


def test_fitted_gammas_bring_a_step_as_near_as_it_gets_to_the_fine_solution():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    gammas = stein.fit_gammas(data.denoiser, 80 * oracle.noise((256, 16), 0), levels)
    assert gammas[-1] == 1
    y = 80 * oracle.noise((500, 16), 1)
    truth = solvers.solve(data.denoiser, y, grids.edm(100, 80, 0.02), "heun")
    plain = solvers.solve(data.denoiser, y, levels)
    corrected = solvers.solve(data.denoiser, y, levels, correction=stein.calibrated(gammas))
    assert oracle.rms(corrected - truth) < 0.9 * oracle.rms(plain - truth)


# ------------------------------------------------------------------ online and literal


def test_online_needs_no_correction_for_ddim_and_helps_2m():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    training = data.sample(4000, generator())
    mean = training.mean(0)
    variance = float((training - mean).square().sum(1).mean())
    correction = stein.online(mean, variance)
    y, truth = 80 * oracle.noise((1000, 16), 0), data.sample(1000, generator(1))
    steps = list(
        trajectory(
            data.denoiser, y, levels, solvers.named("euler"), correction, generator=generator()
        )
    )
    assert max(abs(advance.gamma - 1) for advance in steps[:3]) < 0.05
    assert steps[-1].gamma == 1  # far below the data's own spread: left alone
    plain = solvers.solve(data.denoiser, y, levels)
    corrected = solvers.solve(data.denoiser, y, levels, "dpmpp2m", correction, generator())
    assert oracle.sliced_wasserstein(corrected, truth) < 0.8 * oracle.sliced_wasserstein(
        plain, truth
    )


def test_online_reads_the_states_own_noise_level():
    data = oracle.bench_mixture(0)
    clean = data.sample(8000, generator())
    mean = clean.mean(0)
    variance = float((clean - mean).square().sum(1).mean())
    correction = stein.online(mean, variance)
    y = clean + 2.6 * oracle.noise((8000, 16), 1)
    assert correction.effective_level(y, 2.0) == pytest.approx(2.6, rel=0.01)
    assert correction.effective_level(y, 1.0) == pytest.approx(2.0)  # clamped to 4 s^2
    assert correction.effective_level(y, 10.0) == pytest.approx(5.0)  # clamped to s^2 / 4


def test_online_uses_each_outputs_own_noise_level():
    """States half noisier than their nominal level: only the true level makes the identity."""
    data = oracle.bench_mixture(0)
    training = data.sample(100_000, generator(5))
    mean = training.mean(0)
    correction = stein.online(mean, float((training - mean).square().sum(1).mean()), num_probes=4)

    class Misnamed:
        begun = correction.begin(solvers.named("dpmpp2m"), LEVELS.tolist(), generator(3))

        def evaluate(self, output, y, level):
            return self.begun.evaluate(output, y, level / 1.5)

    clean, steps = straight(data, "dpmpp2m", 20_000, Misnamed())
    for step in steps[:2]:
        nominal = replace(step, level=step.level / 1.5, next_level=step.next_level / 1.5)
        exact = mean_inner(step.state - step.proposal, step.state - clean)
        assert correction.inner(nominal) == pytest.approx(exact, rel=0.01)


def test_online_keeps_gamma_in_its_clip_and_repeats_itself():
    data, levels, y = oracle.bench_mixture(0), grids.edm(6, 80, 0.02), oracle.noise((64, 16), 0)
    correction = stein.online(0.3, 30.0, clip=(0.9, 1.1))
    runs = [
        list(trajectory(data.denoiser, 80 * y, levels, solvers.named("heun"), correction, probes))
        for probes in (generator(stein.DEFAULT_SEED), None, generator(1))
    ]
    assert all(0.9 <= advance.gamma <= 1.1 for advance in runs[0])
    assert torch.equal(runs[0][-1].state, runs[1][-1].state)
    assert not torch.equal(runs[0][-1].state, runs[2][-1].state)


def test_the_literal_gamma_leaves_the_noise_level_and_diverges():
    data, levels = oracle.bench_mixture(0), grids.edm(5, 80, 0.02)
    y, truth = 80 * oracle.noise((500, 16), 0), data.sample(500, generator(1))
    steps = list(trajectory(data.denoiser, y, levels, solvers.named("dpmpp2m"), stein.literal(0.0)))
    first = steps[0].step
    assert steps[0].gamma == pytest.approx(1 / (1 - first.ratio), rel=0.02)
    assert oracle.sliced_wasserstein(steps[-1].state, truth) > 10
    floored = trajectory(data.denoiser, y, levels, solvers.named("dpmpp2m"), stein.literal(0.97))
    assert min(advance.gamma for advance in floored) >= 0.97


def test_a_step_that_does_not_move_is_left_alone():
    y = oracle.noise((4, 3), 0)
    correction = stein.online(0.0, 1.0)
    assert torch.allclose(solvers.solve(lambda y, s: 1.0 * y, y, LEVELS, "euler", correction), y)
    assert stein.calibrate(lambda y, s: y, y, LEVELS, "euler").tolist() == [1, 1, 1]
    assert stein.fit_gammas(lambda y, s: y, y, LEVELS, "euler", 2).tolist() == [1, 1, 1]


def test_bad_settings_of_online_are_named():
    with pytest.raises(ValueError, match="variance is 0"):
        stein.online(0.0, 0.0)
    with pytest.raises(ValueError, match="clip is"):
        stein.online(0.0, 1.0, clip=(1.1, 1.2))


# ------------------------------------------------------------------ a class token beside the image


def joint_gaussian() -> tuple[oracle.Gaussian, Packing]:
    """An image of 4 coordinates and a correlated, much smaller token of 3."""
    factor = oracle.noise((7, 7), 1)
    scale = torch.tensor([1.0] * 4 + [0.2] * 3, dtype=torch.float64)
    covariance = (factor @ factor.T / 7 + 0.1 * torch.eye(7)) * scale[:, None] * scale
    return oracle.Gaussian(oracle.noise((7,), 2), covariance), Packing((1, 2, 2))


def test_the_partial_identity_is_exact_on_the_images_coordinates():
    data, packing = joint_gaussian()
    where = packing.image_coordinates
    correction = stein.SteinCorrection("matched", (-10.0, 10.0), None, 8, where)
    begun = correction.begin(solvers.named("dpmpp2m"), LEVELS.tolist(), generator(3))
    clean, steps = straight(data, "dpmpp2m", 60_000, begun)
    for step in steps[:-1]:
        u = step.state - step.proposal
        exact = (1 - step.ratio) * mean_inner(u, step.state - clean, where)
        exact /= mean_inner(u, u, where)
        assert correction.gamma(step) == pytest.approx(exact, abs=0.02)
    assert abs(exact - matched_gamma(step, clean)) > 0.02  # the token would have changed it


def test_calibration_reads_the_image_and_moves_both_parts():
    data, packing = joint_gaussian()
    clean = data.sample(2000, generator())
    gammas = stein.calibrate(
        data.denoiser, clean, LEVELS, "dpmpp2m", clip=(-9, 9), coordinates=packing.image_coordinates
    )
    whole = stein.calibrate(data.denoiser, clean, LEVELS, "dpmpp2m", clip=(-9, 9))
    assert not torch.allclose(gammas, whole, atol=0.02)
    y = 1.5 * oracle.noise((5, 7), 0)
    steps = trajectory(data.denoiser, y, LEVELS, solvers.named("dpmpp2m"), stein.calibrated(gammas))
    for advance in steps:
        u = advance.step.state - advance.step.proposal
        assert torch.allclose(advance.state, advance.step.state - advance.gamma * u)


# ------------------------------------------------------------------ what is refused


def broken_between_levels(y, s):
    """Finite at the grid's levels, not between them."""
    return y / 2 if min(abs(s - level) for level in (1.5, 0.667, 0.25)) < 1e-9 else y * math.nan


def rooted(y, s):
    """Finite everywhere; below level 0.5 its derivative is NaN."""
    moved = 0.5 + 0 * y
    return moved + (y * 0).sqrt() if s < 0.5 else moved


def test_a_fine_solution_that_is_not_a_number_is_named_with_its_step():
    y = 1.5 * oracle.noise((8, 3), 0)
    for make in (stein.fit_gammas, solvers.fit, solvers.fit_heun):
        more = {} if make is solvers.fit_heun else {"substeps": 4}
        with pytest.raises(FloatingPointError, match="at step 1 of 3, level s="):
            make(broken_between_levels, y, LEVELS, **more)


@pytest.mark.parametrize("correction", [stein.literal(0.0), stein.online(0.0, 0.01)])
def test_a_derivative_that_is_not_a_number_is_named_with_its_step(correction):
    y = oracle.noise((4, 3), 0)
    with pytest.raises(FloatingPointError, match=r"gamma is .* at step 3 of 3, level s=0\.25"):
        solvers.solve(rooted, y, LEVELS, "euler", correction)


def test_empty_batches_are_refused():
    none = torch.zeros(0, 3, dtype=torch.float64)
    for call in (
        lambda: stein.calibrate(lambda y, s: y / 2, none, LEVELS),
        lambda: stein.fit_gammas(lambda y, s: y / 2, none, LEVELS, substeps=2),
        lambda: solvers.fit(lambda y, s: y / 2, none, LEVELS, substeps=2),
        lambda: solvers.fit_heun(lambda y, s: y / 2, none, LEVELS, substeps=2),
        lambda: solvers.solve(lambda y, s: y / 2, none, LEVELS, correction=stein.literal()),
    ):
        with pytest.raises(ValueError, match=r"holds no (samples|states)"):
            call()


@pytest.mark.parametrize("clip", [(2, 1), (1.2, 1.5), (0.2, 0.9), (math.nan, 2)])
def test_a_calibrations_clip_is_around_one(clip):
    def never(y, s):
        raise AssertionError("work was done before the clip was refused")

    with pytest.raises(ValueError, match=r"clip is .* around 1"):
        stein.calibrate(never, torch.ones(2, 3), LEVELS, clip=clip)
    with pytest.raises(ValueError, match="target is 'nearest'"):
        stein.calibrate(never, torch.ones(2, 3), LEVELS, target="nearest")


def test_bad_arguments_of_corrections_are_named():
    for variance in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"variance is {variance}"):
            stein.online(0.0, variance)
    with pytest.raises(ValueError, match="mean holds NaN"):
        stein.online(torch.tensor([0.0, math.nan]), 1.0)
    with pytest.raises(ValueError, match="gamma_min is nan"):
        stein.literal(math.nan)
    for make in (lambda n: stein.online(0.0, 1.0, num_probes=n), lambda n: stein.literal(0.0, n)):
        with pytest.raises(ValueError, match="num_probes is 0"):
            make(0)
    with pytest.raises(ValueError, match="num_probes is 0"):
        output_and_divergence(lambda y: y, torch.ones(2, 3), generator(), num_probes=0)


@pytest.mark.parametrize("correction", [stein.literal(0.0), stein.online(0.0, 1.0)])
def test_estimates_on_the_running_batch_do_not_go_around_the_look_ahead_corrector(correction):
    y = oracle.noise((4, 3), 0)
    with pytest.raises(ValueError, match="solver 'unipc' looks ahead"):
        solvers.solve(lambda y, s: y / 2, y, LEVELS, "unipc", correction)
