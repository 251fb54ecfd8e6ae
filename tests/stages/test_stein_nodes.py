"""Calibrations, fitted solvers, corrections, contractivity and given checkpoints as stages."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline import plan as planning
from pipeline.errors import StageError, UsageError
from pipeline.graph import Graph
from stages import shards
from stages.artifacts.network import checkpoint_name
from stages.catalog import CATALOG, RECIPES
from stages.methods import drawn_at, grids, solvers, stein, table
from stages.methods import lipschitz as lipschitz_method
from stages.papers.stein import calibrate, lipschitz
from stages.papers.stein.recipe import goes_with
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.scoring import evaluate
from stages.settings.solvers import runnable
from stages.training import checkpoint
from tests.networks.test_recipes import edm
from tests.stages.context import context, digests, make, sealed

SAMPLES = sample.SampleSettings(nfe=3, num_samples=24, block_size=8)
CALIBRATION = calibrate.CalibrationSettings(nfe=3, num_images=20, block_size=8)
FITTED = calibrate.CalibrationSettings(
    solver="fitted", target="trajectory", nfe=3, num_states=12, substeps=3, block_size=8
)


@pytest.fixture(scope="module")
def schedule(tmp_path_factory, model, few):
    folder = tmp_path_factory.mktemp("schedule")
    return make(folder, calibrate.STAGE, CALIBRATION, model=model, data=few)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, model):
    return make(tmp_path_factory.mktemp("fitted"), calibrate.STAGE, FITTED, model=model)


def exact_model(folder, velocity, monkeypatch, **config):
    """A trained network's artifact whose network is replaced by a function."""
    facts = {"network": "sit", "config": config, "method": "sit", "steps": [1]}
    facts |= {"shape": [1, 8, 8], "num_classes": 10}
    at = context(folder, checkpoint.CheckpointSettings(path="none"))
    (at.path / "checkpoints").mkdir()
    (at.path / "model.json").write_text(json.dumps(facts))
    (at.path / checkpoint_name(1)).write_bytes(b"weights")
    monkeypatch.setattr(sampling_problem, "warm_network", lambda *which: velocity)
    return sealed(at, checkpoint.STAGE, calibrate.Result())


def gaussian_velocity(x, t, labels=None, std=0.5):
    """The exact velocity for data N(0, std^2 I)."""
    t = t[:, None, None, None]
    gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
    return (x - gain * x) / t


# ---------------------------------------------------------------- schedules


def test_a_calibration_is_the_mathematics_on_the_models_images(model, few, schedule):
    loaded, data = model.load(), few.load()
    problem = sampling_problem.Problem(loaded.network(), loaded, CALIBRATION)
    total = 0
    order = torch.randperm(96, generator=sampling_problem.stream(0, "choice", 0))[:20].sort().values
    for first in (0, 8, 16):
        which = order[first : first + 8]
        total = total + stein.residual_products(
            problem.denoiser(data.train.labels[which]),
            data.train[which].double(),
            grids.uniform_t(3),
            "dpmpp2m",
            sampling_problem.stream(0, "calibration", first),
        )
    expected = stein.gammas_from_products(total, grids.uniform_t(3), "dpmpp2m")
    torch.testing.assert_close(schedule.load(), expected, rtol=1e-12, atol=0)
    assert schedule.description["model"] == model.manifest.files[checkpoint_name(18)]["sha256"]


def test_the_size_of_tasks_does_not_change_a_calibration(tmp_path, model, few, schedule):
    assert CALIBRATION.block_size == 8
    assert shards.shards(20, 8, CALIBRATION.shard_size) == [(0, 20)]
    for size, tasks in ((1, 3), (16, 2)):
        assert len(shards.shards(20, 8, size)) == tasks
        parted = CALIBRATION.revised(shard_size=size)
        other = make(tmp_path / str(size), calibrate.STAGE, parted, model=model, data=few)
        assert torch.equal(other.load(), schedule.load())


def test_ddim_with_a_perfect_denoiser_needs_no_correction(tmp_path, monkeypatch):
    model = exact_model(tmp_path, gaussian_velocity, monkeypatch)
    at = context(tmp_path / "data", sample.SampleSettings())
    data = 0.5 * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    np.save(at.path / "samples.npy", data.numpy())
    np.save(at.path / "labels.npy", np.zeros(4000, np.int64))
    (at.path / "samples.json").write_text(json.dumps({"num_samples": 4000}))
    clean = sealed(at, sample.STAGE, calibrate.Result())
    settings = CALIBRATION.revised(
        solver="euler", nfe=5, num_images=4000, source="samples", block_size=4000
    )
    found = make(tmp_path / "euler", calibrate.STAGE, settings, model=model, samples=clean)
    assert (found.load() - 1).abs().max() < 0.01
    multistep = make(
        tmp_path / "2m",
        calibrate.STAGE,
        settings.revised(solver="dpmpp2m"),
        model=model,
        samples=clean,
    )
    assert (multistep.load() - 1).abs().max() > 0.05


def test_gammas_are_a_curve_over_the_solvers_steps(tmp_path, model, few, schedule):
    result = calibrate.run(context(tmp_path, CALIBRATION, model=model, data=few))
    gammas = schedule.load().tolist()
    assert result.curves == [("gamma", k + 1, gamma) for k, gamma in enumerate(gammas)]
    assert result.abscissa == "solver_step"
    assert result.metrics == {"gamma_min": min(gammas), "gamma_max": max(gammas)}


def test_a_calibration_depends_on_its_seed_alone(tmp_path, model, few, schedule):
    again = make(tmp_path / "again", calibrate.STAGE, CALIBRATION, model=model, data=few)
    assert digests(again.path) == digests(schedule.path)
    other = make(
        tmp_path / "seed", calibrate.STAGE, CALIBRATION.revised(seed=1), model=model, data=few
    )
    assert not torch.equal(other.load(), schedule.load())


def test_own_samples_serve_in_the_place_of_data(tmp_path, model, few, schedule):
    settings = SAMPLES.revised(nfe=20)
    own = make(tmp_path / "samples", sample.STAGE, settings, model=model)
    found = make(
        tmp_path / "own",
        calibrate.STAGE,
        CALIBRATION.revised(source="samples"),
        model=model,
        samples=own,
    )
    assert found.name == "calibrated on own samples"
    assert schedule.name == "calibrated"
    # An untrained network's samples are none of the data, so only the order of size agrees.
    assert ((found.load() >= 0.5) & (found.load() <= 1.5)).all()


def test_the_calibrated_sampler_steps_with_the_stored_gammas(tmp_path, model, schedule):
    settings = SAMPLES.revised(correction="calibrated")
    found = make(tmp_path, sample.STAGE, settings, model=model, schedule=schedule)
    loaded = model.load()
    problem = sampling_problem.Problem(loaded.network(), loaded, settings)
    indices = torch.arange(8)
    expected = solvers.solve(
        problem.denoiser(problem.labels(indices)),
        999 * problem.noise(0, indices),
        grids.uniform_t(3),
        "dpmpp2m",
        stein.calibrated(schedule.load()),
    )
    torch.testing.assert_close(found.load().images[:8], expected.float(), rtol=0, atol=1e-6)
    assert found.steps["gamma"] == schedule.load().tolist()
    assert found.description["correction"] == "calibrated"
    plain = make(tmp_path / "plain", sample.STAGE, SAMPLES, model=model)
    assert not torch.equal(plain.load().images, found.load().images)
    assert plain.steps["gamma"] == [1.0, 1.0, 1.0]


def test_the_fitted_solver_is_the_one_that_the_mathematics_fits(tmp_path, model, fitted):
    loaded = model.load()
    problem = sampling_problem.Problem(loaded.network(), loaded, FITTED)
    indices, levels = torch.arange(12), grids.uniform_t(3)
    state = 999 * problem.noise(0, indices, drawn_at.FITTING_NOISE)
    made = solvers.fit(problem.denoiser(problem.labels(indices)), state, levels, 4, 3)
    torch.testing.assert_close(fitted.load(), made.coefficients, rtol=1e-9, atol=1e-12)
    settings = SAMPLES.revised(solver="fitted")
    found = make(tmp_path, sample.STAGE, settings, model=model, schedule=fitted)
    indices = torch.arange(8)
    y = 999 * problem.noise(0, indices)
    expected = solvers.solve(problem.denoiser(problem.labels(indices)), y, levels, made).float()
    torch.testing.assert_close(found.load().images[:8], expected, rtol=0, atol=1e-5)
    sampled, fitted_on = problem.noise(0, indices), problem.noise(0, indices, -2)
    assert (sampled - fitted_on).abs().mean() > 0.5  # never scored on what it was fitted to


def test_a_fitted_heun_and_gammas_on_trajectories(tmp_path, model):
    heun = FITTED.revised(solver="fitted-heun", nfe=5, grid="edm")
    weights = make(tmp_path / "heun", calibrate.STAGE, heun, model=model)
    assert weights.load().shape == (3, 2)
    settings = SAMPLES.revised(solver="fitted-heun", nfe=5, grid="edm")
    make(tmp_path / "samples", sample.STAGE, settings, model=model, schedule=weights)
    gammas = make(
        tmp_path / "gammas", calibrate.STAGE, FITTED.revised(solver="dpmpp2m"), model=model
    )
    assert gammas.load()[-1] == 1
    assert gammas.name == "calibrated on trajectories"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"solver": "euler"}, "made for solver 'dpmpp2m', not for 'euler'; calibrate again"),
        ({"grid": "edm"}, r"another grid \(uniform_t, 3 evaluations\), not .* \(edm, 3"),
        ({"nfe": 4}, r"another grid \(uniform_t, 3 evaluations\), not .* \(uniform_t, 4"),
        ({"step": 7}, "made for another model"),
        ({"guidance": 2.0}, "made with guidance 1.0, not 2.0"),
        ({"guidance_interval": (0.0, 0.5)}, "made with guidance_interval"),
        ({"guidance_channels": 1}, "made with guidance_channels None, not 1"),
        ({"guidance_token": 0.0}, "made with guidance_token None, not 0.0"),
    ],
)
def test_a_schedule_is_refused_elsewhere(tmp_path, model, schedule, changes, words):
    settings = SAMPLES.revised(**{"correction": "calibrated"} | changes)
    with pytest.raises(StageError, match=words) as refused:
        make(tmp_path, sample.STAGE, settings, model=model, schedule=schedule)
    assert "\n" not in str(refused.value)


def test_fitted_weights_are_refused_elsewhere(tmp_path, model, fitted):
    for changes in ({"nfe": 4}, {"step": 7}, {"grid": "edm"}):
        with pytest.raises(StageError, match="the schedule was made for another"):
            make(
                tmp_path,
                sample.STAGE,
                SAMPLES.revised(**{"solver": "fitted"} | changes),
                model=model,
                schedule=fitted,
            )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_images": 97}, "num_images=97 is above the 96 images of the data"),
        ({"step": 8}, "no checkpoint of step 8"),
    ],
)
def test_what_a_calibration_cannot_do_is_said(tmp_path, model, few, changes, words):
    with pytest.raises(StageError, match=words):
        make(tmp_path, calibrate.STAGE, CALIBRATION.revised(**changes), model=model, data=few)


def test_contradictions_of_calibrations():
    with pytest.raises(ValueError, match=r"target=matched and solver=fitted .*trajectory"):
        calibrate.CalibrationSettings(solver="fitted")
    with pytest.raises(ValueError, match="target=trajectory and source=samples"):
        calibrate.CalibrationSettings(target="trajectory", source="samples")
    with pytest.raises(ValueError, match=r"target=trajectory and clip=.*leave clip unset"):
        calibrate.CalibrationSettings(target="trajectory", clip=(0.5, 1.5))
    with pytest.raises(ValueError, match="solver=fitted is fitted"):
        lipschitz.LipschitzSettings(solver="fitted")


# ---------------------------------------------------------------- corrections on the batch


@pytest.mark.parametrize("correction", ["online", "literal"])
def test_estimates_on_the_batch_are_those_of_a_block(tmp_path, model, few, correction):
    settings = SAMPLES.revised(correction=correction)
    found = make(tmp_path, sample.STAGE, settings, model=model, data=few)
    loaded, data = model.load(), few.load()
    problem = sampling_problem.Problem(loaded.network(), loaded, settings)
    made = stein.online(data.mu, data.V) if correction == "online" else stein.literal(0.0)
    for first in (0, 16):
        indices = torch.arange(first, first + 8)
        expected = solvers.solve(
            problem.denoiser(problem.labels(indices)),
            999 * problem.noise(0, indices),
            grids.uniform_t(3),
            "dpmpp2m",
            made,
            sampling_problem.stream(0, "probes", first),
        ).float()
        block = found.load().images[first : first + 8]
        torch.testing.assert_close(block, expected, rtol=0, atol=1e-5)
    for changes in ({"batch_size": 24}, {"batch_size": 1, "shard_size": 8}):
        other = make(
            tmp_path / str(changes["batch_size"]),
            sample.STAGE,
            settings.revised(**changes),
            model=model,
            data=few,
        )
        assert digests(other.path) == digests(found.path)


def test_look_ahead_around_2m_is_unipc(tmp_path, model):
    settings = SAMPLES.revised(solver="dpmpp2m", correction="lookahead", nfe=5)
    ahead = make(tmp_path / "ahead", sample.STAGE, settings, model=model)
    unipc = make(
        tmp_path / "unipc", sample.STAGE, SAMPLES.revised(solver="unipc", nfe=5), model=model
    )
    assert torch.equal(ahead.load().images, unipc.load().images)
    third = make(tmp_path / "3m", sample.STAGE, settings.revised(solver="dpmpp3m"), model=model)
    assert not torch.equal(third.load().images, unipc.load().images)


# ---------------------------------------------------------------- class tokens


def test_a_class_token_moves_beside_the_image(tmp_path, monkeypatch):
    """Exact for N(0, 1/4) images and N(0, 4) tokens: each part ends on its own solution."""
    seen = []

    def network(image, t, labels=None, class_token=None):
        seen.append(class_token.std().item() / t[0].item())
        token = class_token[:, :, None, None]
        return gaussian_velocity(image, t), gaussian_velocity(token, t, std=2.0).flatten(1)

    model = exact_model(tmp_path, network, monkeypatch, class_token_dim=6)
    settings = SAMPLES.revised(nfe=100, num_samples=64, block_size=64)
    found = make(tmp_path / "samples", sample.STAGE, settings, model=model)
    problem = sampling_problem.Problem(network, model.load(), settings)
    z = problem.noise(0, torch.arange(64))
    assert z.shape == (64, 64 + 6)
    assert problem.coordinates == 64
    expected = 0.5 * z[:, :64].reshape(64, 1, 8, 8)
    assert (found.load().images - expected).square().mean().sqrt() < 0.02
    assert seen[0] == pytest.approx(1, abs=0.1)
    with pytest.raises(StageError, match=r"clean class tokens.*target=trajectory"):
        make(tmp_path / "no", calibrate.STAGE, CALIBRATION, model=model, data=None)
    gammas = FITTED.revised(solver="dpmpp2m", num_states=32)
    schedule = make(tmp_path / "gammas", calibrate.STAGE, gammas, model=model)
    corrected = SAMPLES.revised(correction="calibrated")
    make(tmp_path / "corrected", sample.STAGE, corrected, model=model, schedule=schedule)


def test_a_calibration_packs_images_with_their_clean_class_tokens(
    tmp_path, monkeypatch, few, teacher
):
    """The mathematics on packed states, restricted to the image's coordinates."""
    width = teacher.description["width"]

    def network(image, t, labels=None, class_token=None):
        token = class_token[:, :, None, None]
        # The image's velocity reads the token, so that what the token is matters.
        v = gaussian_velocity(image, t) * (1 + class_token.mean(1)[:, None, None, None] / 10)
        return v, gaussian_velocity(token, t, std=2.0).flatten(1)

    model = exact_model(tmp_path, network, monkeypatch, class_token_dim=width)
    inputs = {"model": model, "data": few, "teacher": teacher}
    schedule = make(tmp_path / "tokens", calibrate.STAGE, CALIBRATION, **inputs)
    problem, total = sampling_problem.Problem(network, model.load(), CALIBRATION), 0
    order = torch.randperm(96, generator=sampling_problem.stream(0, "choice", 0))[:20].sort().values
    for first in (0, 8, 16):
        which = order[first : first + 8]
        tokens = torch.from_numpy(np.array(teacher.load().class_tokens[which], np.float32))
        total = total + stein.residual_products(
            problem.denoiser(few.load().train.labels[which]),
            torch.cat([few.load().train[which].flatten(1), tokens], 1).double(),
            grids.uniform_t(3),
            "dpmpp2m",
            sampling_problem.stream(0, "calibration", first),
            64,
        )
    expected = stein.gammas_from_products(total, grids.uniform_t(3), "dpmpp2m")
    torch.testing.assert_close(schedule.load(), expected, rtol=1e-12, atol=0)
    assert 0.5 < expected.min() < expected.max() < 1.5
    corrected = SAMPLES.revised(correction="calibrated")
    make(tmp_path / "samples", sample.STAGE, corrected, model=model, schedule=schedule)


def test_class_tokens_of_others_are_refused(tmp_path, monkeypatch, few, data, teacher):
    width = teacher.description["width"]
    model = exact_model(tmp_path, gaussian_velocity, monkeypatch, class_token_dim=width)
    other = exact_model(tmp_path / "w", gaussian_velocity, monkeypatch, class_token_dim=width + 1)
    own = CALIBRATION.revised(source="samples")
    for settings, inputs, words in (
        (CALIBRATION, {"model": model, "data": few}, "clean class tokens.*input 'teacher'"),
        (CALIBRATION, {"model": model, "data": data, "teacher": teacher}, "of 96 images of"),
        (CALIBRATION, {"model": other, "data": few, "teacher": teacher}, f"width {width}, the"),
        (own, {"model": model, "samples": None}, "source=samples has no clean class tokens"),
    ):
        with pytest.raises(StageError, match=words) as refused:
            make(tmp_path / words[:8], calibrate.STAGE, settings, **inputs)
        assert "\n" not in str(refused.value)


def test_recipes_calibrate_networks_with_class_tokens_on_the_teachers():
    for method, inputs in (("reg", {"model", "data", "teacher"}), ("repa", {"model", "data"})):
        bench = config.resolve(CATALOG, "smoke", [f"train.method={method}"]).settings
        for recipe in ("stein", "full"):
            nodes = {node.name: node for node in RECIPES[recipe](bench)}
            Graph(list(nodes.values()), CATALOG.exclude_sources)
            assert set(nodes[f"calibrate/{method}-dpmpp2m-nfe3"].inputs) == inputs
            followed = {"model", "trajectories"}
            assert set(nodes[f"follow/{method}-whole-nfe3"].inputs) == followed
            if recipe == "stein":
                assert set(nodes[f"calibrate/{method}-fitted-nfe3"].inputs) == {"model"}
                around = nodes[f"calibrate/{method}-whole-nfe3"].inputs
                assert set(around) == inputs | {"weights"}
    for override in ("train.method=reg", "train.method=maskalign"):
        bench = config.resolve(CATALOG, "smoke", [override, "stein.source=samples"]).settings
        with pytest.raises(UsageError, match=r"stein\.source=samples and train.method="):
            RECIPES["stein"](bench)


# ---------------------------------------------------------------- NaN


def test_nan_is_named_with_step_and_level(tmp_path, monkeypatch):
    def network(x, t, labels=None):
        return torch.where(t[0] < 0.5, torch.nan, gaussian_velocity(x, t))

    model = exact_model(tmp_path, network, monkeypatch)
    words = r"NaN or infinity at step 3 of 3, level s=0\.499"
    with pytest.raises(StageError, match=words):
        make(tmp_path / "a", sample.STAGE, SAMPLES, model=model)
    with pytest.raises(StageError, match="NaN or infinity at step 2 of 3"):
        make(tmp_path / "b", calibrate.STAGE, FITTED, model=model)
    settings = lipschitz.LipschitzSettings(nfe=3, num_trajectories=2, iterations=1)
    with pytest.raises(StageError, match=words):
        make(tmp_path / "c", lipschitz.STAGE, settings, model=model)


# ---------------------------------------------------------------- contractivity


def test_lipschitz_of_a_linear_network_is_exact(tmp_path, monkeypatch):
    model = exact_model(tmp_path, gaussian_velocity, monkeypatch)
    settings = lipschitz.LipschitzSettings(
        solver="euler", nfe=4, num_trajectories=5, states_together=2, iterations=3
    )
    at = context(tmp_path / "found", settings, model=model)
    result = lipschitz.run(at)
    found = sealed(at, lipschitz.STAGE, result)
    levels = grids.uniform_t(4)
    r, s = levels[1:] / levels[:-1], levels[:-1]
    exact = r + (1 - r) * 0.25 / (0.25 + s**2)
    rows = found.load()
    for name in ("mean", "maximum"):
        values = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(values, exact, rtol=1e-4, atol=1e-7)
    assert [row.step for row in rows] == [1, 2, 3, 4]
    assert rows[0].t == pytest.approx(0.999)
    assert {metric for metric, _, _ in result.curves} == {"lipschitz_mean", "lipschitz_max"}
    largest = [(k, value) for metric, k, value in result.curves if metric == "lipschitz_max"]
    assert largest == [(row.step, row.maximum) for row in rows]
    assert found.metrics["lipschitz_max"] == max(row.maximum for row in rows)


def test_lipschitz_joins_blocks_of_states(tmp_path, model):
    settings = lipschitz.LipschitzSettings(
        nfe=3, num_trajectories=5, states_together=2, iterations=2
    )
    found = make(tmp_path, lipschitz.STAGE, settings, model=model).load()
    loaded = model.load()
    problem = sampling_problem.Problem(loaded.network(), loaded, settings)
    means, maxima = [], []
    for first, last in ((0, 2), (2, 4), (4, 5)):
        indices = torch.arange(first, last)
        part = lipschitz_method.step_norms(
            problem.denoiser(problem.labels(indices)),
            999 * problem.noise(0, indices),
            grids.uniform_t(3),
            "dpmpp2m",
            2,
            sampling_problem.stream(0, "lipschitz", first),
        )
        means.append(part.mean * (last - first) / 5)
        maxima.append(part.maximum)
    assert [row.mean for row in found] == pytest.approx(sum(means).tolist())
    assert [row.maximum for row in found] == pytest.approx(torch.stack(maxima).amax(0).tolist())


# ---------------------------------------------------------------- given checkpoints


@pytest.fixture
def given(tmp_path, model):
    shutil.copytree(model.path, tmp_path / "given", ignore=shutil.ignore_patterns("manifest*"))
    return tmp_path / "given"


def test_a_given_checkpoint_stands_for_a_training(tmp_path, given, model, few):
    settings = checkpoint.CheckpointSettings(path=str(given))
    found = make(tmp_path / "found", checkpoint.STAGE, settings, data=few)
    ours = make(tmp_path / "ours", sample.STAGE, SAMPLES, model=found)
    theirs = make(tmp_path / "theirs", sample.STAGE, SAMPLES, model=model)
    assert digests(ours.path) == digests(theirs.path)
    assert settings.keyed() == {}
    assert {p.name for p in checkpoint.sources_of(settings)} == {
        "model.json",
        "step-000007.safetensors",
        "step-000014.safetensors",
        "step-000018.safetensors",
    }


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, given, few):
    settings = checkpoint.CheckpointSettings(path=str(given))
    facts = json.loads((given / "model.json").read_text())

    def refused(words, **changes):
        changed = {k: v for k, v in (facts | changes).items() if v is not None}
        (given / "model.json").write_text(json.dumps(changed))
        with pytest.raises(StageError, match=words):
            make(tmp_path / "found", checkpoint.STAGE, settings, data=few)
        shutil.rmtree(tmp_path / "found")

    refused(r"shape \[1, 9, 9\], the data set \[1, 8, 8\]", shape=[1, 9, 9])
    refused("lacks 'steps'", steps=None)
    refused("the network 'sitt', unknown", network="sitt")
    refused("lists step .99., whose weights", steps=[99])
    wide = facts["config"] | {"width": 32}
    refused(r"not hold the weights .*\(size mismatch for \w+.*, and \d+ more\); mend", config=wide)
    (given / "model.json").write_text("{")
    with pytest.raises(StageError, match="is not JSON"):
        make(tmp_path / "found", checkpoint.STAGE, settings, data=few)
    with pytest.raises(UsageError, match=r"holds neither model\.json"):
        checkpoint.sources_of(checkpoint.CheckpointSettings(path=str(tmp_path)))


# ---------------------------------------------------------------- graphs


def graph(recipe, *overrides, preset="smoke") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def test_runnable_nfes_and_pairs():
    assert runnable("heun", (3, 5, 6, 8, 10, 20)) == (3, 5, 7, 9, 19)
    assert runnable("euler", (20, 3, 3)) == (3, 20)
    pairs = {(s, c) for s in table.PLAIN_SOLVERS for c in table.CORRECTIONS if goes_with(s, c)}
    assert ("heun", "lookahead") not in pairs
    assert ("unipc", "online") not in pairs
    for solver, correction in pairs:
        sample.SampleSettings(solver=solver, correction=correction, nfe=5)
    assert len(pairs) == 8 * 2 + 7 * 2 + 2
    noisy = {(s, c) for s in table.NOISY_SOLVERS for c in table.CORRECTIONS if goes_with(s, c)}
    assert noisy == {("ancestral", "none"), ("churn", "none")}


def test_the_recipe_stein_has_all_solvers_corrections_and_seeds():
    nodes = graph("stein", preset="digits")
    curves = {n for n in nodes.nodes if n.startswith("evaluate/") and "seed" not in n}
    names = {name.removeprefix("evaluate/sit-") for name in curves}
    assert {"dpmpp3m-lookahead", "unipc-calibrated", "heun-literal", "fitted", "whole"} <= names
    assert {"deis", "ipndm", "dpm2", "ancestral", "churn"} <= names
    assert not nodes["evaluate/sit-churn"].slot("reference")  # its noise is not the reference's
    assert nodes["sample/sit-churn-nfe9"].settings.grid == "edm"
    assert len([n for n in nodes.nodes if n.startswith("evaluate/")]) == 3 * len(curves)
    seeds = nodes["evaluate/sit-unipc-calibrated-seed2"]
    assert seeds.slot("reference") == ("sample/sit-reference-seed2",)
    assert nodes[seeds.slot("samples")[0]].slot("schedule") == ("calibrate/sit-unipc-nfe3",)
    assert nodes["calibrate/sit-heun-nfe9"].settings.grid == "edm"
    assert {"lipschitz/sit-dpmpp2m-nfe6", "lipschitz/sit-dpmpp2m-nfe100"} <= set(nodes.nodes)


@pytest.mark.parametrize("method", ["reg", "given"])
def test_the_new_solvers_are_curves_with_class_tokens_guidance_and_edm_networks(method, tmp_path):
    new, scale = ("deis", "ipndm", "dpm2", "ancestral", "churn"), 1.0
    if method == "reg":
        own, scale = ["train.method=reg", "sample.guidance=1.5", "stein.target=trajectory"], 1.5
    else:
        network = f"networks.path={edm(tmp_path / 'network', 'edm/ddpmpp')}"
        own = [network, "networks.format=edm", "data.dataset=npz", "data.path=nowhere.npz"]
    nodes = graph("stein", *own, f"stein.solvers=[{', '.join(new)}]")
    for solver in new:
        samples = nodes[f"evaluate/{method}-{solver}"].slot("samples")
        assert len(samples) == 2
        for name in samples:
            settings = nodes[name].settings
            assert (settings.solver, settings.guidance) == (solver, scale)


def test_a_calibration_of_own_samples_reads_the_reference():
    nodes = graph("stein", "stein.source=samples")
    node = nodes["calibrate/sit-unipc-nfe3"]
    assert node.slot("samples") == ("sample/sit-reference",)
    assert node.slot("data") == ()


def test_a_guided_calibration_is_of_own_samples_where_nothing_else_is_said():
    """Gammas from data undo part of a guidance; what carries a class token has data alone."""

    def inputs(*overrides, method="sit"):
        nodes = graph("stein", "sample.guidance=1.5", f"train.method={method}", *overrides)
        node = nodes[f"calibrate/{method}-unipc-nfe3"]
        assert node.settings.source in {*node.inputs}
        return {*node.inputs} & {"data", "samples"}

    few = "stein.num_images=20"
    assert inputs(few) == {"samples"}
    assert inputs("stein.source=data") == {"data"}
    assert inputs(method="reg") == {"data"}
    assert set(graph("stein")["calibrate/sit-unipc-nfe3"].inputs) == {"model", "data"}
    with pytest.raises(UsageError, match=r"which a calibration with guidance reads;.*source=data"):
        inputs("stein.num_images=61")


def test_a_given_checkpoint_replaces_the_training(given):
    nodes = graph("stein", f"networks.path={given}")
    assert not [name for name in nodes.nodes if name.startswith("train/")]
    for name in ("sample/given-unipc-nfe3", "calibrate/given-unipc-nfe3"):
        assert nodes[name].slot("model") == ("checkpoint/given",)
    keys = nodes.keys
    moved = given.rename(given.with_name("moved"))
    assert graph("stein", f"networks.path={moved}").keys == keys
    other = shutil.copytree(moved, given.with_name("other"))
    (other / checkpoint_name(18)).write_bytes(b"other weights")
    assert graph("stein", f"networks.path={other}").keys["report"] != keys["report"]


def test_a_given_checkpoint_with_a_class_token_is_refused_before_any_work(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"config": {"class_token_dim": 32}}))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / checkpoint_name(1)).write_bytes(b"weights")
    overrides = [f"networks.path={tmp_path}"]
    with pytest.raises(UsageError, match=r"class token beside the image.*target=trajectory"):
        RECIPES["stein"](config.resolve(CATALOG, "smoke", overrides).settings)
    overrides.append("stein.target=trajectory")
    nodes = {
        n.name: n for n in RECIPES["stein"](config.resolve(CATALOG, "smoke", overrides).settings)
    }
    assert set(nodes["calibrate/given-dpmpp2m-nfe3"].inputs) == {"model"}


def test_too_few_own_samples_are_refused_before_any_work():
    overrides = ["stein.source=samples", "stein.num_images=61"]
    with pytest.raises(UsageError, match=r"num_images=61 is above sample\.sweep_samples=60"):
        RECIPES["stein"](config.resolve(CATALOG, "smoke", overrides).settings)


def test_settings_that_trajectories_do_not_read_are_in_no_node():
    bench = config.resolve(CATALOG, "smoke", ["stein.target=trajectory"]).settings
    nodes = [node for node in RECIPES["stein"](bench) if node.stage is calibrate.STAGE]
    assert {node.settings.num_images for node in nodes} == {500}  # the default, not the preset's


def test_keys_hold_the_modules_in_use_only():
    nodes = graph("stein")
    plain = nodes.identities["sample/sit-dpmpp2m-nfe3"].sources
    assert "stages.methods.stein" not in plain
    assert "stages.papers.stein.calibrate" not in plain
    assert "stages.methods.stein" in nodes.identities["sample/sit-dpmpp2m-online-nfe3"].sources
    calibrated = nodes.identities["sample/sit-dpmpp2m-calibrated-nfe3"]
    assert "stages.methods.stein" in calibrated.sources
    assert "schedule" in calibrated.inputs


def test_every_sample_cannot_be_corrected_at_once():
    with pytest.raises(UsageError, match=r"correction=online .* stein\.corrections"):
        graph("full", "sample.correction=online")


# ---------------------------------------------------------------- times


def test_times_stand_in_manifests_and_beside_the_scores(tmp_path, model):
    at = context(tmp_path, SAMPLES, model=model)
    result = sample.run(at)
    made = sealed(at, sample.STAGE, result)
    timings = made.manifest.timings
    assert 0 < timings["network_seconds"] < timings["sampling_seconds"]
    found = evaluate.times({"a": made}, "nfe")
    assert found == {
        f"{name}_milliseconds_per_sample": [(3, 1000 * timings[f"{name}_seconds"] / 24)]
        for name in ("sampling", "network")
    }
    again = make(tmp_path / "again", sample.STAGE, SAMPLES, model=model)
    assert digests(again.path) == digests(made.path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stein.nfes=[3,20000]", r"stein\.nfes\.1=20000: .* 10000"),
        ("stein.nfes=[0]", r"stein\.nfes\.0=0: "),
        ("stein.more_lipschitz_nfes=[20000]", r"stein\.more_lipschitz_nfes\.0=20000: "),
        ("sample.nfes=[20000]", r"sample\.nfes\.0=20000: "),
        ("stein.nfes=[3,20]", r"stein\.nfes reaches 20, not below sample\.reference_nfe=20"),
        ("stein.source=samples stein.target=trajectory", "leave source unset"),
        ("stein.clip=[0.5,1.5] stein.target=trajectory", "leave clip unset"),
        ("sample.solver_grids={dpmpp2m: logit_normal} sample.density.shift=1000", "lower nfe"),
    ],
)
def test_what_the_recipe_cannot_do_is_said_before_any_work(tmp_path, override, words):
    overrides = override.replace(": ", ":").split()
    overrides = [text.replace(":", ": ") for text in overrides]
    request = planning.Request("stein", "smoke", overrides)
    with pytest.raises(UsageError, match=words) as refused:
        planning.build(CATALOG, request)
    assert "\n" not in str(refused.value)


def test_what_is_named_twice_is_compared_once():
    for recipe, names in (
        ("stein", ("stein.solvers=[heun{}]", "stein.corrections=[none,calibrated{}]")),
        ("stein", ("stein.fitted=[fitted{}]", "stein.lipschitz_solvers=[heun{}]")),
        ("full", ("sample.solvers=[heun{}]", "stein.fitted=[fitted{}]")),
        ("csflow", ("csflow.baselines=[minsnr{}]", "csflow.fine_tuned=[p2{}]")),
    ):
        again = [re.sub(r"(\w+)\{}", r"\1,\1", name) for name in names]
        once = graph(recipe, *(name.format("") for name in names))
        assert set(graph(recipe, *again).nodes) == set(once.nodes)
