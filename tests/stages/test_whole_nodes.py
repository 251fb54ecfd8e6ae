"""Trajectories, the solver fitted to them, gammas around it, and samples, as stages."""

import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from stages.methods import drawn_at, grids, solvers
from stages.papers.stein import calibrate, follow, trajectory
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.settings.networks import NetworkSettings
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests, make
from tests.stages.test_stein_nodes import exact_model, gaussian_velocity

FINE = trajectory.TrajectorySettings(teacher_states=20, teacher_steps=12, block_size=8)
FOLLOW = follow.FollowSettings(nfe=3, block_size=8, tries=12)
SAMPLES = sample.SampleSettings(solver="whole", nfe=3, num_samples=24, block_size=8)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory, model):
    return make(tmp_path_factory.mktemp("fine"), trajectory.STAGE, FINE, model=model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, trajectories):
    folder = tmp_path_factory.mktemp("whole")
    return make(folder, follow.STAGE, FOLLOW, model=model, trajectories=trajectories)


def test_trajectories_are_the_models_own_and_shards_do_not_matter(tmp_path, model, trajectories):
    of = trajectories.load()
    assert of.levels[0].item() == pytest.approx(grids.S_START)
    assert len(of.states) == 13
    problem, _ = sampling_problem.problem(model, FINE, None)
    indices = torch.arange(20)
    noise = problem.noise(0, indices, drawn_at.FITTING_NOISE)
    torch.testing.assert_close(of.states[0] / of.levels[0], noise, rtol=1e-6, atol=1e-6)
    denoiser = problem.denoiser(problem.labels(indices))
    end = solvers.solve(denoiser, of.states[0], of.levels, "heun")
    torch.testing.assert_close(of.states[-1], end, rtol=1e-3, atol=1e-3)
    cut = make(tmp_path / "cut", trajectory.STAGE, FINE.revised(teacher_shard=8), model=model)
    assert digests(cut.path) == digests(trajectories.path)
    # Heun's steps cannot start at noise itself; the fitted solver starts where its teacher does.
    later = make(tmp_path / "t1", trajectory.STAGE, FINE.revised(t_start=1), model=model)
    assert digests(later.path) == digests(trajectories.path)


def test_samples_follow_the_trajectories(tmp_path, model, trajectories, whole):
    """On the noise that it was fitted to, the stage's solver is as near as it says, and nearer than
    DPM-Solver++ 2M."""
    of, facts = trajectories.load(), whole.description
    assert facts["grid"] == "own levels"
    problem, _ = sampling_problem.problem(model, FOLLOW, None)
    denoiser = problem.denoiser(problem.labels(torch.arange(20)))
    levels = whole.levels
    end = solvers.solve(denoiser, of.states[0], levels, whole.solver())
    rms = (end - of.states[-1]).square().mean().sqrt().item()
    assert rms == pytest.approx(facts["rms"], rel=1e-4)
    plain = solvers.solve(denoiser, of.states[0], grids.uniform_t(3), "dpmpp2m")
    assert rms < 0.8 * (plain - of.states[-1]).square().mean().sqrt().item()
    made = make(tmp_path, sample.STAGE, SAMPLES, model=model, schedule=whole)
    z = problem.noise(0, torch.arange(8))
    first = solvers.solve(
        problem.denoiser(problem.labels(torch.arange(8))), levels[0] * z, levels, whole.solver()
    )
    np.testing.assert_allclose(made.load().images[:8], first, rtol=1e-5, atol=1e-5)
    assert made.description["grid"] == "own levels"


def test_gammas_around_it(tmp_path, model, few, whole):
    settings = calibrate.CalibrationSettings(solver="whole", nfe=3, num_images=20, block_size=8)
    around = make(
        tmp_path / "gammas", calibrate.STAGE, settings, model=model, data=few, weights=whole
    )
    gammas = around.load()
    assert gammas.shape == (3,)
    assert torch.equal(around.solver().coefficients, whole.load())
    assert torch.equal(around.levels, whole.levels)
    corrected = SAMPLES.revised(correction="calibrated")
    made = make(tmp_path / "samples", sample.STAGE, corrected, model=model, schedule=around)
    assert made.steps["gamma"] == pytest.approx(gammas.tolist())
    with pytest.raises(StageError, match="holds weights of solver 'whole' and no gammas"):
        make(tmp_path / "no", sample.STAGE, corrected, model=model, schedule=whole)


def test_what_does_not_belong_together_is_refused(tmp_path, model, trajectories, whole):
    settings = FOLLOW.revised(guidance=2)
    with pytest.raises(StageError, match=r"trajectories were made with guidance 1\.0, not 2\.0"):
        make(tmp_path / "a", follow.STAGE, settings, model=model, trajectories=trajectories)
    with pytest.raises(StageError, match=r"made for another grid \(own levels, 3 evaluations\)"):
        make(tmp_path / "b", sample.STAGE, SAMPLES.revised(nfe=4), model=model, schedule=whole)
    with pytest.raises(ValueError, match="grid=edm and solver=whole contradict each other"):
        SAMPLES.revised(grid="edm")
    with pytest.raises(ValueError, match="its weights come from the stage follow"):
        calibrate.CalibrationSettings(solver="whole", target="trajectory")


def test_guided_solvers_are_fitted_to_guided_trajectories(tmp_path, model):
    fine = FINE.revised(guidance=2, teacher_states=8)
    trajectories = make(tmp_path / "fine", trajectory.STAGE, fine, model=model)
    settings = FOLLOW.revised(guidance=2)
    made = make(tmp_path / "fit", follow.STAGE, settings, model=model, trajectories=trajectories)
    guided = SAMPLES.revised(guidance=2, num_samples=8)
    make(tmp_path / "samples", sample.STAGE, guided, model=model, schedule=made)
    with pytest.raises(StageError, match="the schedule was made with guidance 2"):
        make(tmp_path / "no", sample.STAGE, SAMPLES, model=model, schedule=made)


def test_a_class_token_beside_the_image_is_carried_and_not_fitted(tmp_path, monkeypatch):
    """The token has the same weights as the image, and no part in what they are fitted to."""

    def network(image, t, labels=None, class_token=None):
        token = class_token[:, :, None, None]
        v = gaussian_velocity(image, t) * (1 + class_token.mean(1)[:, None, None, None] / 10)
        return v, gaussian_velocity(token, t)[:, :, 0, 0]

    model = exact_model(tmp_path, network, monkeypatch, class_token_dim=6)
    fine = make(tmp_path / "fine", trajectory.STAGE, FINE, model=model)
    assert fine.load().states[0].shape == (20, 64 + 6)
    fit = make(tmp_path / "fit", follow.STAGE, FOLLOW, model=model, trajectories=fine)
    of = fine.load()
    problem, _ = sampling_problem.problem(model, FOLLOW, None)
    denoiser = problem.denoiser(problem.labels(torch.arange(20)))
    end = solvers.solve(denoiser, of.states[0], fit.levels, fit.solver())
    left = (end - of.states[-1])[:, :64].square().mean().sqrt().item()
    assert left == pytest.approx(fit.description["rms"], rel=1e-3)
    made = make(tmp_path / "samples", sample.STAGE, SAMPLES, model=model, schedule=fit)
    assert made.load().images.shape == (24, 1, 8, 8)


def test_an_edm_network_starts_where_its_grid_does(tmp_path, few):
    network = NetworkSettings(kind="unet", width=8, multipliers=(1, 2), blocks=1)
    settings = TINY.revised(method="edm", network=network, steps=4, checkpoint_steps=())
    unet = trained_in(context(tmp_path / "unet", settings, data=few))
    fine = FINE.revised(grid="edm", s_max=40, teacher_states=8)
    trajectories = make(tmp_path / "fine", trajectory.STAGE, fine, model=unet)
    inputs = {"model": unet, "trajectories": trajectories}
    fit = make(tmp_path / "fit", follow.STAGE, FOLLOW.revised(tries=2), **inputs)
    assert fit.levels[0].item() == pytest.approx(40)
    made = make(
        tmp_path / "samples", sample.STAGE, SAMPLES.revised(num_samples=8), model=unet, schedule=fit
    )
    assert made.steps["level"][0] == pytest.approx(40)
