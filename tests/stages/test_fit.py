"""Wavelet scores as nodes: exact numbers, shards that do not matter, risks, samples, bad input."""

import json

import numpy as np
import pytest
import pywt
import torch

from pipeline import config
from pipeline.artifact import open_artifact
from pipeline.errors import StageError, UsageError
from stages.artifacts import data as artifacts_data
from stages.catalog import CATALOG, RECIPES
from stages.data import prepare
from stages.methods import table
from stages.methods.wavelet import WaveletStatistics, baselines, model, neighbours
from stages.methods.wavelet.basis import WaveletBasis
from stages.methods.wavelet.model import WaveletModel
from stages.methods.wavelet.ridge import choose_principal, choose_ridge
from stages.papers.wavelet import draw, fit, risk
from stages.papers.wavelet.risk import RiskSettings
from stages.training import train
from tests.methods.wavelet_data import collect_folds, monte_carlo_risk, standardised_digits
from tests.stages.context import context, digests, make, sealed

SETTINGS = fit.FitSettings(family="local", degree=2)
RISKS = {"sigmas": (0.5, 1.0, 2.0)}
PUBLISHED = {  # methods.md, section 5: 16x16 digits, db2, 2 levels, ridge 1e-2
    "independent": (0.077585, 0.162656, 0.288060),
    "local": (0.059525, 0.133469, 0.254654),
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, few):
    return make(tmp_path_factory.mktemp("fit"), fit.STAGE, SETTINGS, data=few)


@pytest.fixture(scope="module")
def digits16(tmp_path_factory) -> artifacts_data.Data:
    """The standardised digits of methods.md, brought into [-1, 1]."""
    folder = tmp_path_factory.mktemp("digits16")
    parts = [part.float() / 4 for part in standardised_digits()]
    arrays = {}
    for name, part in zip(("train", "test"), parts, strict=True):
        arrays |= {f"x_{name}": part[:, 0].numpy(), f"y_{name}": np.zeros(len(part), int)}
    np.savez(folder / "digits.npz", **arrays)
    settings = prepare.PrepareSettings(dataset="npz", path=str(folder / "digits.npz"), latent=True)
    return make(folder / "made", prepare.STAGE, settings)


def risks(folder, data, denoiser="score", inputs=(), **changes):
    settings = RiskSettings(denoiser=denoiser, **RISKS | changes)
    return make(folder, risk.STAGE, settings, data=data, **dict(inputs)).load()


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_risks_of_digits_to_five_decimals(tmp_path, digits16, family):
    settings = fit.FitSettings(family=family, degree=1)
    score = make(tmp_path / "fit", fit.STAGE, settings, data=digits16)
    found = risks(tmp_path / "risk", digits16, inputs={"score": score})
    assert found.exact
    np.testing.assert_allclose(found.mse, PUBLISHED[family], rtol=0, atol=5e-6)


# --- fit ----------------------------------------------------------------------------------------


def test_it_loads_back_as_the_statistics_collected_in_one_go(few, fitted):
    data = few.load()
    direct = WaveletStatistics.collect(data.train[:], "local", 2)
    loaded = open_artifact(fitted.path).load()
    assert torch.equal(loaded.moments, direct.moments)
    y = data.test[:5].double()
    denoiser = open_artifact(fitted.path).denoiser()
    assert torch.equal(denoiser(y, 0.3), direct.at(0.3, 1e-2).denoise(y))
    levels = torch.tensor([0.3, 0.3, 0.6, 0.6, 0.3])
    mixed = denoiser(y, levels)
    torch.testing.assert_close(mixed[2:4], denoiser(y[2:4], levels[2].item()))
    torch.testing.assert_close(mixed[:2], denoiser(y[:2], levels[0].item()))


def test_the_denoiser_refuses_levels_that_cannot_be(few, fitted):
    denoiser, y = fitted.denoiser(), few.load().test[:3].double()
    for level in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma must be above 0 and finite"):
            denoiser(y, level)
        with pytest.raises(ValueError, match="sigma must be above 0 and finite"):
            denoiser.ridge(level)
    for levels in ([0.3, 0.6], [0.3] * 4):
        with pytest.raises(ValueError, match="noise levels were given for 3 images"):
            denoiser(y, torch.tensor(levels))


def test_shards_are_merged_in_order_and_exactly(tmp_path, few, fitted):
    settings = SETTINGS.revised(shard_size=20)
    sharded = [make(tmp_path / n, fit.STAGE, settings, data=few) for n in ("one", "two")]
    assert digests(sharded[0].path) == digests(sharded[1].path)
    found, whole = sharded[0].load(), fitted.load()
    assert found.count == whole.count == 96
    torch.testing.assert_close(found.moments, whole.moments, rtol=1e-11, atol=1e-9)
    # One shard in flight at a time gives the same bytes as all at once.
    one = settings.model().statistics_bytes((1, 8, 8))
    least = settings.model().predict_bytes((1, 8, 8), 3) + one
    tight = settings.revised(max_gib=least / 2**30)
    assert tight.check_memory((1, 8, 8), 5) == 1
    assert settings.check_memory((1, 8, 8), 5) > 5
    again = make(tmp_path / "tight", fit.STAGE, tight, data=few)
    assert digests(again.path) == digests(sharded[0].path)


@pytest.mark.parametrize("shard_size", [4096, 7])
def test_the_ridge_is_the_one_that_folds_choose(tmp_path, few, shard_size):
    settings = SETTINGS.revised(
        ridge=None, ridge_sigmas=(0.1, 1.0), num_folds=4, shard_size=shard_size
    )
    made = make(tmp_path, fit.STAGE, settings, data=few)
    data = few.load()
    folds = collect_folds(data.train[:], settings.model(), 4)
    std, found = data.std, dict(made.description["ridges"])
    for sigma in (0.1, 1.0):
        choice = choose_ridge(folds, sigma * std, settings.ridges)
        assert found[sigma * std] == choice.ridge
    denoiser = made.denoiser()
    assert denoiser.ridge(0.3 * std) == found[0.1 * std]  # nearest in log sigma
    assert denoiser.ridge(0.35 * std) == found[1.0 * std]
    assert len(set(found.values())) == 2
    assert made.description["name"] == "local-d2-folds"


@pytest.fixture(scope="module")
def principal(tmp_path_factory, few):
    """Components, degree and ridges by folds, from shards."""
    settings = SETTINGS.revised(
        family="principal",
        degree=3,
        ridge=None,
        ridge_sigmas=(0.1, 1.0),
        num_folds=3,
        components_tried=(2, 5),
        couple_channels=True,  # of the other families
        shard_size=20,
    )
    return make(tmp_path_factory.mktemp("principal"), fit.STAGE, settings, data=few)


def test_folds_choose_the_principal_family_s_size_and_ridges(few, principal):
    data = few.load()
    std, images = data.std, data.train[:]
    folds = collect_folds(images, WaveletModel("principal", 3, components=5), 3)
    ridges = principal.settings["ridges"]
    choice = choose_principal(folds, (0.1 * std, std), ridges, (2, 5), (1, 2, 3))
    facts, loaded = principal.description, principal.load()
    assert (facts["components"], facts["degree"]) == (choice.components, choice.degree)
    assert [ridge for _, ridge in facts["ridges"]] == list(choice.ridges)
    assert facts["name"] == "principal-d3-folds"
    direct = WaveletStatistics.collect(
        images, "principal", choice.degree, components=choice.components
    )
    y = data.test[:5].double()
    expected = direct.at(std, choice.ridges[1]).denoise(y)
    torch.testing.assert_close(principal.denoiser()(y, std), expected, rtol=0, atol=1e-9)
    assert loaded.count == 96


def test_its_risk_is_exact_and_its_maps_are_of_the_bands(tmp_path, few, principal):
    found = risks(tmp_path, few, inputs={"score": principal})
    data = few.load()
    at = principal.denoiser().at(found.sigmas[0] * data.std)
    expected = at.risk(data.test[:]) / data.std**2
    assert found.exact
    assert found.mse[0] == pytest.approx(expected, rel=1e-6)
    assert (found.family, found.folds, found.responses) == ("principal", True, {})
    assert found.maps.shape == (len(found.sigmas), 1, 8, 8)
    assert found.maps.mean((1, 2, 3)).tolist() == pytest.approx(list(found.mse), rel=0.2)
    assert found.filters.shape == found.maps.shape


def test_the_first_images_only(tmp_path, few):
    made = make(tmp_path, fit.STAGE, SETTINGS.revised(num_images=30, degree=1), data=few)
    direct = WaveletStatistics.collect(few.load().train[:30], "local", 1)
    assert torch.equal(made.load().moments, direct.moments)


def test_names_are_those_of_the_mathematics_and_of_pywavelets():
    assert set(table.FAMILIES) == {*neighbours.FAMILIES, model.PRINCIPAL, model.RESIDUAL}
    assert set(table.WAVELETS) == set(pywt.wavelist(kind="discrete"))
    orthonormal = {w for w in table.WAVELETS if WaveletBasis(w, 2, 1, 16, 16).is_orthonormal}
    assert set(table.ORTHONORMAL_WAVELETS) == orthonormal


# --- risk ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(tmp_path_factory, few, fitted):
    return risks(tmp_path_factory.mktemp("exact"), few, inputs={"score": fitted})


def test_the_exact_risk_is_what_noise_gives(few, fitted, exact):
    data, std = few.load(), few.load().std
    generator = torch.Generator().manual_seed(0)
    for sigma, value in zip(exact.sigmas, exact.mse, strict=True):
        measured = monte_carlo_risk(
            fitted.denoiser(), data.test[:].double(), sigma * std, generator, num_draws=40
        )
        assert abs(measured.mean / std**2 - value) < 4 * measured.standard_error / std**2
    assert all(train < held for train, held in zip(exact.train_mse, exact.mse, strict=True))
    # One noise an image: their mean is the exact risk within its error.
    shared = exact.per_image
    assert shared.shape == (len(exact.sigmas), len(data.test))
    errors = shared.std(1) / len(data.test) ** 0.5
    assert ((shared.mean(1) - torch.tensor(exact.mse)).abs() < 3 * errors).all()


def test_bands_scales_and_maps_are_parts_of_the_risk(exact):
    assert list(exact.bands) == ["A2", "H2", "V2", "D2", "H1", "V1", "D1"]
    np.testing.assert_allclose(exact.maps.mean((1, 2, 3)), exact.mse, rtol=1e-12)
    weights = {"A2": 4, "2": 12, "1": 48}
    whole = sum(np.array(exact.scales()[name]) * n / 64 for name, n in weights.items())
    np.testing.assert_allclose(whole, exact.mse, rtol=1e-12)
    assert exact.bands["D1"][2] == pytest.approx(exact.maps[2, 0, 4:, 4:].mean().item())


def test_responses_are_in_units_of_the_standard_deviation(few, fitted, exact):
    std, score = few.load().std, fitted.denoiser().at(1.0 * few.load().std)
    statistics = fitted.load()
    response = exact.responses["H1"][1]
    band = {b.name: b for b in statistics.layout.basis.bands}["H1"]
    index = band.offset + 2 * band.width + 2
    w = statistics.mean.clone()
    w[index] = response.w[10] * std
    expected = score.coefficient_score(w[None])[0, index] * std
    assert response.score[10].item() == pytest.approx(expected.item(), rel=1e-9)
    slope = -1 / (score.tau[index].item() / std) ** 2
    change = (response.linear[-1] - response.linear[0]) / (response.w[-1] - response.w[0])
    assert change.item() == pytest.approx(slope, rel=1e-9)


def test_baselines_at_the_same_sigma(tmp_path, few):
    data = few.load()
    x, std = data.test[:].double(), data.std
    found = {k: risks(tmp_path / k, few, k, num_draws=4) for k in risk.BASELINES}
    np.testing.assert_allclose(found["identity"].mse, [0.25, 1, 4], rtol=1e-12)
    mean = data.train[:].double().mean(0)
    np.testing.assert_allclose(found["mean"].mse, ((x - mean) ** 2).mean() / std**2, rtol=1e-9)
    wiener = baselines.FullWiener.fit(data.train[:])
    for i, sigma in enumerate((0.5, 1.0, 2.0)):
        assert found["wiener"].mse[i] == pytest.approx(wiener.risk(x, sigma * std) / std**2)
        # The maps are measured, the risk is exact; they agree.
        assert found["wiener"].maps[i].mean() == pytest.approx(found["wiener"].mse[i], rel=0.1)
    assert found["wiener"].standard_error == (None,) * 3
    measured = found["empirical-bayes"]
    assert measured.standard_error[0] > 0
    np.testing.assert_allclose(measured.per_image.mean(1), measured.mse, rtol=1e-12)
    # Whatever the denoiser, the noise is the same; doing nothing leaves it.
    noise = found["identity"].per_image
    torch.testing.assert_close(noise[2] / 4, noise[0] / 0.25, rtol=1e-9, atol=0)
    at_low = {name: value.mse[0] for name, value in found.items()}
    assert at_low["wiener"] < at_low["bayes-shrink"] < at_low["identity"]
    assert [found[k].filters is None for k in risk.BASELINES] == [True, True, False, False, True]


def test_filters_of_a_linear_denoiser_are_its_matrix(tmp_path, few):
    data = few.load()
    found = risks(tmp_path, few, "wiener")
    wiener, zero = baselines.FullWiener.fit(data.train[:]), torch.zeros(1, 1, 8, 8).double()
    for i, sigma in enumerate((0.5, 1.0, 2.0)):
        pixels = torch.eye(64).double().reshape(64, 1, 8, 8)
        answer = wiener(pixels, sigma * data.std) - wiener(zero, sigma * data.std)
        expected = answer[:, 0, 4, 4].reshape(1, 8, 8)
        torch.testing.assert_close(found.filters[i], expected, rtol=1e-9, atol=1e-12)


def test_all_share_the_noise_and_draws_average(tmp_path, few, model):
    def measured(name, **more):
        return risks(tmp_path / name, few, "empirical-bayes", **more)

    one, two = measured("one"), measured("two", batch_size=7)
    np.testing.assert_allclose(one.mse, two.mse, rtol=1e-12)
    assert measured("seed", seed=1).mse != one.mse
    more = measured("more", num_draws=9)
    assert more.mse != one.mse
    np.testing.assert_allclose(more.mse, one.mse, rtol=0.2)


def test_networks_with_and_without_labels(tmp_path, few, model):
    inputs = {"model": model}
    plain = risks(tmp_path / "plain", few, "network", inputs)
    told = risks(tmp_path / "told", few, "network", inputs, labelled=True, batch_size=11)
    assert (plain.name, told.name) == ("sit", "sit labelled")
    data, network = few.load(), model.load().network()
    x, s = data.test[:].double(), 1.0 * data.std
    bench = risk.ScoredDenoiser(RiskSettings(denoiser="identity"), None, x, data.test.labels, None)
    y, t = (x + s * bench.noise[0].double()) / (1 + s), s / (1 + s)
    for labels, found in ((None, plain), (data.test.labels, told)):
        v = network(y.float(), torch.full((len(y),), t).float(), labels=labels).double()
        error = ((y - t * v - x) ** 2).mean() / data.std**2
        assert found.mse[1] == pytest.approx(error.item(), rel=1e-5)
    early = risks(tmp_path / "early", few, "network", inputs, step=7)
    assert early.mse != plain.mse


def test_curves_over_sigma(tmp_path, few, fitted):
    at = context(tmp_path, RiskSettings(**RISKS), data=few, score=fitted)
    result = risk.run(at)
    made = sealed(at, risk.STAGE, result).load()
    assert result.abscissa == "sigma_1000"
    curves = {(name, step): value for name, step, value in result.curves}
    assert curves["denoising_mse", 500] == made.mse[0]
    assert curves["denoising_mse/D1", 2000] == made.bands["D1"][2]
    assert curves["denoising_mse_train", 1000] == made.train_mse[1]
    assert result.metrics["denoising_mse_sigma_2"] == made.mse[2]


# --- draw ---------------------------------------------------------------------------------------


def test_samples_of_a_gaussian_have_its_moments(tmp_path):
    """Degree 1 with all coefficients is exact for Gaussian data: samples have its covariance."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(16) * 0.1 + 0.05 * torch.randn(16, 16, generator=generator)
    train_images = (torch.randn(4000, 16, generator=generator) @ mixing).clamp(-1, 1)
    arrays = {"x_train": train_images.reshape(-1, 4, 4).numpy()}
    np.savez(tmp_path / "g.npz", **arrays, y_train=np.zeros(4000, int))
    settings = prepare.PrepareSettings(
        dataset="npz", path=str(tmp_path / "g.npz"), latent=True, held_out=1000
    )
    data = make(tmp_path / "data", prepare.STAGE, settings)
    score = make(
        tmp_path / "fit",
        fit.STAGE,
        fit.FitSettings(family="full", degree=1, ridge=0.0),
        data=data,
    )
    settings = draw.DrawSettings(nfe=40, num_samples=3000, block_size=1000, grid="edm")
    found = make(tmp_path / "draw", draw.STAGE, settings, score=score).load().images
    true = data.load().train[:]
    assert (found.mean(0) - true.mean(0)).abs().max() < 0.02
    ours, theirs = (torch.cov(x.flatten(1).double().T) for x in (found, true))
    assert (ours - theirs).norm() < 0.08 * theirs.norm()


def test_draws_do_not_depend_on_shards(tmp_path, fitted):
    settings = draw.DrawSettings(nfe=4, num_samples=10, block_size=4)
    one = make(tmp_path / "one", draw.STAGE, settings, score=fitted)
    two = make(tmp_path / "two", draw.STAGE, settings.revised(shard_size=3), score=fitted)
    assert digests(one.path) == digests(two.path)
    assert settings.keyed() == settings.revised(shard_size=3).keyed()
    assert one.description["method"] == "wavelet-local-d2"
    assert len(one.load().images) == 10


def test_a_solver_fitted_to_a_score_is_nearer_to_its_own_samples(tmp_path, fitted):
    settings = draw.DrawSettings(nfe=49, solver="heun", num_samples=24, block_size=24)
    fine = make(tmp_path / "fine", draw.STAGE, settings, score=fitted).load().images
    left = {}
    for solver in ("dpmpp2m", "whole"):
        few = settings.revised(nfe=3, solver=solver)
        made = make(tmp_path / solver, draw.STAGE, few, score=fitted)
        left[solver] = (made.load().images - fine).square().mean().sqrt().item()
    assert made.description["grid"] == "own levels"
    assert left["whole"] < 0.5 * left["dpmpp2m"]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("fit", {"wavelet": "bior2.2"}, "wavelet=bior2.2 is not orthonormal.*db2"),
        ("fit", {"wavelet": "db39"}, "unknown wavelet 'db39'; did you mean 'db"),
        (
            "fit",
            {"wavelet": "bior2.2", "allow_biorthogonal": True},
            "allow_biorthogonal=true and family=local",
        ),
        ("fit", {"family": "full", "degree": 2}, "family=full and degree=2"),
        ("fit", {"family": "locl"}, "unknown family 'locl'; did you mean 'local'"),
        ("fit", {"ridge_sigmas": (0.0, 1.0)}, "ridge_sigmas has 0; a noise level is above 0"),
        ("fit", {"ridges": (-1.0,)}, "a ridge is 0 or above"),
        ("risk", {"sigmas": (0.5, -1.0)}, "sigmas has -1; a noise level is above 0"),
        ("risk", {"sigmas": (1.0, 1.0)}, "must ascend by at least 0.001"),
        ("risk", {"map_wavelet": "bior2.2"}, "unknown orthonormal wavelet 'bior2.2'"),
        ("risk", {"labelled": True}, "labelled=True and denoiser=score"),
        ("draw", {"guidance": 2.0}, "a fitted score knows no classes"),
        ("draw", {"solver": "fitted"}, "solver=fitted is fitted to a trained network"),
    ],
)
def test_contradictions_are_refused_in_words(kind, changes, words):
    stages = {"fit": fit.FitSettings, "risk": RiskSettings, "draw": draw.DrawSettings}
    with pytest.raises(ValueError, match=words):
        stages[kind](**changes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["wavelet.models=[local]"], ["models has 'local'", "FAMILY-dDEGREE", "local-d2"]),
        (["wavelet.models=[full-d2]"], ["models has 'full-d2'", "family=full and degree=2"]),
        (["wavelet.fit.levels=4"], ["levels=4 does not fit images of 8 pixels", "at most 3", "16"]),
        (["data.size=12", "wavelet.fit.levels=3", "wavelet.risk.map_levels=2"], ["levels=3", "12"]),
        (["wavelet.risk.map_levels=4"], ["map_levels=4 does not fit images of 8 pixels"]),
        (["wavelet.risk.sigmas=[0]"], ["sigmas has 0"]),
        (["wavelet.fit.wavelet=dmey"], ["wavelet=dmey is not orthonormal"]),
        (
            ["wavelet.fit.wavelet=dmey", "wavelet.fit.allow_biorthogonal=true"],
            ["wavelet.models has 'independent-d1'", "set wavelet.models=[full-d1]"],
        ),
        (
            ["data.size=128", "wavelet.models=[local-d3]"],
            ["local-d3 on digits", "GiB", "fits instead", "degree=2", "wavelet.in_full=false"],
        ),
    ],
)
def test_what_is_known_before_work_is_refused_before_work(overrides, words):
    with pytest.raises(UsageError) as refused:
        RECIPES["full"](config.resolve(CATALOG, "digits", overrides).settings)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value).removeprefix("wavelet: ")


def test_only_the_lists_that_a_recipe_fits_must_go_with_the_basis():
    """What a message says to set is what works."""
    allowed = ["wavelet.fit.wavelet=dmey", "wavelet.fit.allow_biorthogonal=true"]

    def nodes(recipe, *overrides):
        settings = config.resolve(CATALOG, "digits", [*allowed, *overrides]).settings
        return {node.name for node in RECIPES[recipe](settings) if node.stage is fit.STAGE}

    assert nodes("full", "wavelet.models=[full-d1]") == {"fit/wavelet-full-d1"}
    assert not nodes("full", "wavelet.in_full=false")
    assert not nodes("icr")
    given = []
    for name in ("all_models", "drawn"):
        with pytest.raises(
            UsageError, match=rf"wavelet.{name} has .* set wavelet.{name}=\[full-d1"
        ):
            nodes("wavelet", *given)
        given.append(f"wavelet.{name}=[full-d1]")
    assert nodes("wavelet", "wavelet.with_photographs=false", *given) == {"fit/wavelet-full-d1"}


def test_what_only_the_data_tell_is_one_sentence(tmp_path, few, monkeypatch):
    with pytest.raises(StageError, match=r"not divisible by 2\*\*levels = 16"):
        make(tmp_path / "size", fit.STAGE, SETTINGS.revised(levels=4), data=few)
    monkeypatch.setattr(fit, "first_shard", None)  # the memory is predicted before any work
    for degree in (5, 7, 9):  # whose layout alone would take more than a machine has
        with pytest.raises(StageError, match=r"needs about .* fits instead: .*degree=4"):
            make(tmp_path / f"d{degree}", fit.STAGE, SETTINGS.revised(degree=degree), data=few)
    settings = SETTINGS.revised(ridge=None, num_folds=97)
    with pytest.raises(StageError, match="num_folds=97 is above the 96 training images"):
        make(tmp_path / "folds", fit.STAGE, settings, data=few)
    with pytest.raises(StageError, match="not divisible"):
        risks(tmp_path / "levels", few, "mean", map_levels=4)


def test_constant_images(tmp_path):
    np.savez(tmp_path / "c.npz", x_train=np.full((9, 8, 8), 0.5), y_train=np.zeros(9, int))
    settings = prepare.PrepareSettings(path=str(tmp_path / "c.npz"), range="signed")
    data = make(tmp_path / "data", prepare.STAGE, settings)
    with pytest.raises(StageError, match="do not vary"):
        make(tmp_path / "fit", fit.STAGE, SETTINGS, data=data)
    with pytest.raises(StageError, match="do not vary"):
        risks(tmp_path / "risk", data, "mean")


def test_a_network_with_a_class_token_is_refused(tmp_path, few, model):
    loaded = model.load()
    config_of = dict(loaded.config) | {"class_token_dim": 4}
    description = dict(model.description) | {"config": config_of, "method": "reg"}
    other = train.TrainedNetwork(tmp_path, model.manifest)
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(StageError, match="method reg denoises image and class token together"):
        risks(tmp_path / "risk", few, "network", {"model": other})
