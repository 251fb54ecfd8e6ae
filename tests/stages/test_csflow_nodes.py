"""Densities in training and sampling, continued trainings, the recipe csflow and its verdicts."""

import math

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config
from pipeline.errors import StageError, UsageError
from pipeline.graph import Graph, Node
from stages.artifacts import network as network_artifact
from stages.artifacts.scores import Row
from stages.artifacts.spectrum import PowerSpectrum
from stages.catalog import CATALOG, RECIPES
from stages.data import prepare, spectrum
from stages.methods import csflow, density, grids, solvers, table
from stages.methods.protocol import Protocol, Score
from stages.methods.sit import Loss
from stages.pages import pairs as pages_pairs
from stages.papers.csflow import claims, section
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.settings import densities
from stages.settings import solvers as solver_settings
from stages.settings.densities import DensityOptions, DensitySettings, Display
from stages.settings.losses.sit import SiTOptions
from stages.training import loop, train, worker
from tests.stages import losses
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests, make

MORE = TINY.revised(steps=9, checkpoint_steps=(4,), log_every=3, save_every=2)


def graph(*overrides, preset="digits", recipe="csflow") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


@pytest.fixture(scope="module")
def spectrum_of_few(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("spectrum")
    return make(folder, spectrum.STAGE, spectrum.SpectrumSettings(), data=few)


# --- densities as settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "logit_normal", "mean": 1.0}, density.LogitNormal(1.0)),
        ({"kind": "uniform", "shift": 3.0}, density.Shifted(density.Uniform(), 3.0)),
        ({"kind": "minsnr"}, density.Mixture(density.min_snr(), mix=0.4)),
        ({"kind": "p2", "mix": 1.0, "p2_k": 2.0}, density.p2(1.0, 2.0)),
        (
            {"kind": "minsnr", "mix": 0.7, "base": "logit_normal", "std": 2.0, "shift": 0.5},
            density.Shifted(
                density.Mixture(density.min_snr(), density.LogitNormal(0.0, 2.0), 0.7), 0.5
            ),
        ),
    ],
)
def test_settings_name_the_density(settings, expected):
    settings = DensitySettings(**settings)
    found = densities.time_density(settings, settings.kind, settings.base)
    t = torch.linspace(0.001, 0.999, 101)
    torch.testing.assert_close(found.pdf(t), expected.pdf(t))


def test_plain_uniform_is_none_and_names_no_source():
    settings = DensitySettings()
    assert densities.time_density(settings, "uniform") is None
    assert densities.sources(settings, "uniform") == []


def test_csflow_follows_the_display_and_the_longer_side():
    frequency, power = (0.1, 0.25, 0.45), (5.0, 1.0, 0.2)
    wide = PowerSpectrum(frequency, power, height=5, width=7, latent=False, num_images=1)
    screen = {"pixel_size": 0.0002, "distance": 0.6, "display_pixels": 100}
    settings = DensitySettings(kind="csflow", mix=0.7, display=Display(**screen))
    found = densities.time_density(settings, "csflow", spectrum=wide)
    weights = csflow.interval_weights(frequency, power, image_pixels=7, **screen)
    expected = csflow.time_density(weights, 0.7)
    assert torch.equal(found.grid(10), expected.grid(10))
    plain = densities.time_density(DensitySettings(kind="csflow", mix=0.7), "csflow", spectrum=wide)
    assert (plain.grid(10) - expected.grid(10)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "csflow", "mean": 1.0}, "mean=1.0 and kind=csflow .* only logit_normal reads it"),
        ({"kind": "uniform", "mix": 0.3}, "mix=0.3 and kind=uniform"),
        ({"kind": "p2", "display": {"display_pixels": 9}}, "display and kind=p2 .* csflow"),
        ({"kind": "minsnr", "mix": 1.0, "base": "logit_normal"}, "base=logit_normal and kind=min"),
        ({"kind": "logit_normal", "base": "logit_normal"}, "base=logit_normal and kind=logit"),
        ({"kind": "csflo"}, "unknown time density 'csflo'; did you mean 'csflow'"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DensitySettings(**settings)


def test_a_density_needs_its_spectrum():
    settings = train.TrainSettings(density=DensitySettings(kind="csflow"))
    nodes = [
        Node("prepare", prepare.STAGE, prepare.PrepareSettings()),
        Node("train/sit", train.STAGE, settings, {"data": "prepare"}),
    ]
    with pytest.raises(UsageError, match=r"train/sit: .* the input 'spectrum', .* Spectrum"):
        Graph(nodes)
    nodes[1] = Node("train/sit", train.STAGE, train.TrainSettings(start_step=7), nodes[1].inputs)
    with pytest.raises(UsageError, match=r"train/sit: .* need the input 'start'"):
        Graph(nodes)
    with pytest.raises(ValueError, match="connect the input 'spectrum'"):
        solver_settings.levels_of(sample.SampleSettings(grid="csflow"))


# --- sampling


@pytest.mark.parametrize("solver", table.PLAIN_SOLVERS)
@pytest.mark.parametrize("grid", table.DENSITY_GRIDS)
def test_every_density_is_a_grid_of_every_solver(spectrum_of_few, solver, grid):
    data, nfe = spectrum_of_few.load(), 7
    settings = sample.SampleSettings(solver=solver, nfe=nfe, grid=grid, density={"mix": 0.3})
    levels = solver_settings.levels_of(settings, data)
    assert solvers.evaluations(solver, len(levels) - 1) == nfe
    assert (levels[0].item(), levels[-1].item()) == (pytest.approx(999), 0)
    assert (levels.diff() < 0).all()
    if grid == "csflow":
        weights = csflow.interval_weights(data.frequency, data.power)
        expected = grids.from_times(csflow.time_grid(weights, len(levels) - 1, mix=0.3))
        assert torch.equal(levels, expected)


def test_samples_lie_on_the_grid_and_say_so(tmp_path, model, spectrum_of_few):
    settings = sample.SampleSettings(nfe=4, num_samples=12, block_size=8, grid="csflow")
    found = make(tmp_path, sample.STAGE, settings, model=model, spectrum=spectrum_of_few)
    assert found.description["grid"] == "csflow a=0.4"
    assert found.description["time_density"] == "uniform"
    levels = solver_settings.levels_of(settings, spectrum_of_few.load())
    assert found.steps["level"] == levels[:-1].tolist()
    times, network = [], model.load().network()

    def recorded(x, t, labels=None):
        times.append(t[0].item())
        return network(x, t, labels)

    problem = sampling_problem.Problem(recorded, model.load(), settings)
    plan = sample.plan_of(settings, model, spectrum_of_few)
    block, _ = sample.sample_block(problem, torch.arange(8), settings, plan)
    assert torch.equal(found.load().images[:8], block)
    assert times == pytest.approx((levels / (1 + levels))[:-1].tolist())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": "edm", "density": {"mix": 0.2}}, "mix=0.2 and grid=edm"),
        ({"grid": "minsnr", "density": {"p2_k": 2.0}}, "p2_k=2.0 and grid=minsnr .* only p2"),
    ],
)
def test_grids_refuse_what_they_do_not_read(settings, words):
    with pytest.raises(ValueError, match=words):
        sample.SampleSettings(**settings)


# --- training


def by_hand(few, settings, steps, loss, weights=None, before=0):
    """EMA weights after `steps` of the plain loop."""
    data = few.load()
    network = network_artifact.build_network(
        "sit", worker.network_config(settings, data), settings.seed
    )
    if weights is not None:
        network.load_state_dict(weights)
    how = loop.Optimization(
        settings.lr, settings.betas, 0.0, settings.warmup_steps, settings.clip, settings.ema
    )
    state = loop.TrainState(network, how)
    state.ema.num_updates = before
    batches = loop.Batches(data.train, data.train.labels, settings.batch_size, settings.seed)
    for _ in loop.train(state, loss, lambda k: batches(before + k), steps):
        pass
    return state.ema.network.state_dict()


def same(found, expected) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("kind", ["csflow", "minsnr", "logit_normal"])
def test_training_draws_t_from_the_density(tmp_path, few, spectrum_of_few, kind):
    settings = TINY.revised(steps=4, checkpoint_steps=(), density={"kind": kind})
    made = trained_in(context(tmp_path, settings, data=few, spectrum=spectrum_of_few))
    assert made.description["time_density"] == settings.density.name
    wanted = densities.time_density(settings.density, kind, spectrum=spectrum_of_few.load())
    found = load_file(made.path / "checkpoints/step-000004.safetensors")
    assert same(found, by_hand(few, settings, 4, Loss(0.1, wanted)))
    assert not same(found, by_hand(few, settings, 4, Loss(0.1)))


def test_a_training_goes_on_where_its_start_ended(tmp_path, few, model, spectrum_of_few):
    settings = MORE.revised(density={"kind": "csflow"})
    inputs = {"data": few, "start": model, "spectrum": spectrum_of_few}
    made = trained_in(context(tmp_path, settings, **inputs))
    assert made.description["steps_before"] == 18
    assert made.load().steps == (4, 9)
    start = load_file(model.path / "checkpoints/step-000018.safetensors")
    wanted = densities.time_density(settings.density, "csflow", spectrum=spectrum_of_few.load())
    expected = by_hand(few, settings, 9, Loss(0.1, wanted), start, before=18)
    assert same(made.load().network(9).state_dict(), expected)
    taken = sample.SampleSettings(nfe=2, num_samples=4, batch_size=4)
    facts = make(tmp_path / "s", sample.STAGE, taken, model=made).description
    assert facts["training_step"] == 27
    early = MORE.revised(start_step=7)
    again = trained_in(context(tmp_path / "early", early, data=few, start=model))
    assert again.description["steps_before"] == 7


@pytest.mark.parametrize("interruption", [20, 24])
def test_a_continued_training_resumes_exactly(tmp_path, few, model, monkeypatch, interruption):
    monkeypatch.setattr(SiTOptions, "mathematics", "tests.stages.losses:FailingLoss")
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": interruption, "nan": None})
    inputs = {"data": few, "start": model}
    with pytest.raises(losses.InterruptedTrainingError):
        trained_in(context(tmp_path / "cut", MORE, **inputs))
    losses.FAILS_AT["interrupt"] = None
    resumed = trained_in(context(tmp_path / "cut", MORE, **inputs))
    whole = trained_in(context(tmp_path / "whole", MORE, **inputs))
    assert digests(resumed.path) == digests(whole.path)


def test_another_network_cannot_go_on(tmp_path, few, model):
    wider = MORE.revised(network=TINY.network.model_dump() | {"width": 32})
    with pytest.raises(StageError, match=r"the training to continue has width 16 \(here 32\)"):
        trained_in(context(tmp_path, wider, data=few, start=model))
    with pytest.raises(StageError, match="no checkpoint of step 8"):
        trained_in(context(tmp_path, MORE.revised(start_step=8), data=few, start=model))


# --- recipes


def test_full_compares_csflow_s_grid_by_inference_only():
    few = ("sample.nfes=[5,10]", "combined.in_full=false")
    nodes = graph(*few, recipe="full")
    without = graph(*few, "csflow.in_full=false", recipe="full")
    added = set(nodes.nodes) - set(without.nodes)
    curve = {f"sample/sit-dpmpp2m-csflow-a0.4-nfe{nfe}" for nfe in (5, 10)}
    features = {name.replace("sample/", "features/") for name in curve}
    assert added == {"spectrum", "evaluate/sit-dpmpp2m-csflow-a0.4", *curve, *features}
    scores = nodes["evaluate/sit-dpmpp2m-csflow-a0.4"]
    assert scores.slot("reference") == ("sample/sit-reference",)
    assert set(scores.slot("samples")) == curve
    assert scores.tags["grid"] == "csflow a=0.4"
    assert "evaluate/sit-dpmpp2m-uniform_t" in graph("sample.solvers=[euler]", recipe="full").nodes


def test_the_recipe_shares_what_full_made():
    full, nodes = graph(recipe="full"), graph()
    for name in ("train/sit", "spectrum", "sample/sit-reference", "sample/sit-dpmpp2m-nfe5"):
        twin = name.replace("-nfe5", "-uniform_t-nfe5")
        assert full.keys[name] == nodes.keys[twin]
    name = "evaluate/sit-dpmpp2m-csflow-a0.4"
    assert full.keys[name] == nodes.keys[name]


def test_the_recipe_holds_every_comparison():
    nodes = graph("csflow.num_seeds=2", "csflow.more_mixes=[1.0]", "csflow.fine_tuned=[p2]")
    trained = {name for name in nodes.nodes if name.startswith("train/")}
    assert trained == {
        f"train/{model}{seed}"
        for model in ("sit", "csflow", "p2", "sit-more")
        for seed in ("", "-seed1")
    }
    grids_of_base = ("uniform_t", "csflow-a0.4", "csflow-a1", "minsnr-a0.4", "p2-a0.4")
    curves = {f"evaluate/sit-dpmpp2m-{grid}" for grid in grids_of_base}
    for model in ("csflow", "p2", "sit-more"):
        curves |= {f"evaluate/{model}-dpmpp2m-{grid}" for grid in grids_of_base[:2]}
    assert {name for name in nodes.nodes if name.startswith("evaluate/")} == {
        f"{curve}{seed}" for curve in curves for seed in ("", "-seed1")
    }
    fine, more = nodes["train/csflow-seed1"], nodes["train/sit-more-seed1"]
    assert fine.slot("start") == more.slot("start") == ("train/sit-seed1",)
    assert fine.settings.density.name == "csflow a=0.4"
    assert fine.settings.revised(density={}) == more.settings
    other = nodes["train/p2-seed1"]
    assert other.settings.density.name == "p2 a=0.4"
    assert other.settings.revised(density={}) == more.settings
    assert other.slot("spectrum") == ()
    assert (fine.settings.steps, fine.settings.seed) == (400, 1)
    drawn = nodes["sample/csflow-dpmpp2m-csflow-a0.4-nfe5-seed1"]
    assert (drawn.settings.seed, drawn.slot("model")) == (1, ("train/csflow-seed1",))
    features = nodes["features/sit-dpmpp2m-uniform_t-nfe5-seed1"]
    assert features.slot("extractor") == ("extractor",)
    assert not any("seed1" in name for name in nodes["report"].slot("samples"))


def test_fine_tuning_keeps_the_base_density():
    options = ["train.density.kind=logit_normal", "train.density.mean=0.5"]
    fine = graph(*options).nodes["train/csflow"].settings.density
    assert (fine.base, fine.mean, fine.mix) == ("logit_normal", 0.5, 0.4)
    other = graph(*options).nodes["train/minsnr"].settings.density
    assert (other.base, other.mean, other.mix) == ("logit_normal", 0.5, 0.4)
    alone = graph(*options, "csflow.mix=1")
    assert alone.nodes["train/csflow"].settings.density.name == "csflow a=1"
    assert alone.nodes["train/p2"].settings.density.name == "p2 a=1"


def test_training_from_scratch_with_csflow_brings_the_spectrum():
    nodes = graph("train.density.kind=csflow", recipe="train")
    assert nodes["train/sit"].slot("spectrum") == ("spectrum",)
    assert "stages.methods.csflow" in nodes.identities["train/sit"].sources
    plain = graph(recipe="train")
    assert "spectrum" not in plain.nodes
    assert "stages.methods.density" not in plain.identities["train/sit"].sources


def test_wavelet_scores_are_drawn_on_the_grid_of_their_own_data():
    nodes = graph("sample.grid=csflow", "sample.solver_grids={}", recipe="wavelet")
    drawn = nodes["draw/wavelet-local-d2-euler"], nodes["draw/wavelet-local-d2-euler-photographs"]
    assert [node.slot("spectrum") for node in drawn] == [("spectrum",), ("spectrum/photographs",)]
    assert nodes["spectrum/photographs"].slot("data") == ("prepare/photographs",)
    assert nodes["report"].slot("spectrum") == ("spectrum",)
    plain = graph(recipe="wavelet")
    assert not any(name.startswith("spectrum") for name in plain.nodes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.density.kind=p2"], "train.density.kind=p2 and the recipe csflow"),
        (["csflow.extra_steps=10"], "csflow.extra_steps=10 is below train.warmup_steps=20"),
        (["csflow.more_mixes=[1.5]"], "csflow.more_mixes has 1.5"),
        (["csflow.baselines=[csflow]"], "unknown time density 'csflow'"),
        (["sample.grid=edm", "sample.density.mix=0.2"], "mix=0.2 and grid=edm"),
    ],
)
def test_contradictions_are_one_sentence(overrides, words):
    with pytest.raises(UsageError, match=words):
        graph(*overrides)


def test_a_swept_solver_reads_its_own_grid_s_settings():
    chosen = ["sample.grid=csflow", "sample.density.display.display_pixels=64"]
    nodes = graph(*chosen, "sample.solver_grids={heun: minsnr}", recipe="full")
    assert nodes["sample/sit-heun-nfe5"].settings.density == DensityOptions()
    swept = nodes["sample/sit-euler-nfe5"]
    assert swept.settings.density.display.display_pixels == 64
    assert swept.slot("spectrum") == ("spectrum",)


# --- report


def score(value: float, metric: str = "fid") -> Score:
    protocol = Protocol(
        name="p", extractor="e", extractor_hash="h", resize="r", reference="d",
        num_reference=9, num_samples=9,
    )  # fmt: skip
    return Score(metric=metric, value=value, protocol=protocol, error=None, error_kind="none")


def rows(values: dict[int, float], seed: int, grid: str, trained="uniform", step=10) -> list[Row]:
    return [
        Row("n", "sit", "euler", "none", grid, nfe, step, trained, seed, score(value))
        for nfe, value in values.items()
    ]


def test_verdicts_come_from_paired_seeds(spectrum_of_few):
    scores = {}
    for seed, level in enumerate((1.0, 5.0, 9.0)):  # seeds differ much more than grids
        scores[f"u{seed}"] = rows({5: level, 10: level, 20: level}, seed, "uniform_t")
        wobble = (-0.05, 0.05, 0.0)[seed]
        better = {nfe: level * (1 + wobble) * k for nfe, k in ((5, 0.8), (10, 1), (20, 1.25))}
        scores[f"c{seed}"] = rows(better, seed, "csflow a=0.4")
    curves, found = section.sections({"spectrum": spectrum_of_few}, scores)
    names = [figure.name for figure in curves.figures]
    assert names == [
        f"csflow-{n}" for n in ("spectrum", "sensitivity", "map", "weights", "displays", "grids")
    ]
    assert "towards data" in curves.text
    assert "256 display pixels" in curves.text
    assert "over 3 seeds" in found.text
    said = "Grid csflow a=0.4 beats uniform_t; trained with t uniform, step 10: fid holds at 5; "
    assert f"{said}fid inconclusive at 10; fid does not hold at 20" in found.text
    (claim,) = found.tables
    assert "Grid csflow a=0.4 beats uniform_t" in claim
    lines = claim.split("<tr>")[2:]
    verdicts = ("<td>holds</td>", "<td>inconclusive</td>", "<td>does not hold</td>")
    assert all(verdict in line for verdict, line in zip(verdicts, lines, strict=True))
    error = 0.1 / math.sqrt(3)
    pairs = [(score(a), score(b)) for a, b in ((0.9, 1), (5.1, 5), (9, 9))]
    assert pages_pairs.mean_difference(pairs) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(error),
    )


def test_fine_tuning_is_compared_at_equal_steps():
    scores = {
        "base": rows({5: 3.0}, 0, "uniform_t", step=10),
        "more": rows({5: 2.0}, 0, "uniform_t", step=15),
        "fine": rows({5: 1.0}, 0, "uniform_t", "csflow a=0.4", step=15),
        "grid": rows({5: 1.0}, 0, "csflow a=0.4", "csflow a=0.4", step=15),
        "rival": rows({5: 0.5}, 0, "uniform_t", "p2 a=0.4", step=15),
    }
    found = section._scores(claims.on_grids(scores))
    _, first, against, second = found.tables[0].split("Claim: ")
    assert "csflow a=0.4 beats p2 a=0.4 at step 15, on grid uniform_t" in against
    assert first.startswith("Grid csflow a=0.4 beats uniform_t; trained with t csflow a=0.4")
    claim = "Training with t csflow a=0.4 beats uniform at step 15, on grid uniform_t"
    assert second.startswith(claim)
    assert "no error known" in second
    assert f"{claim}: fid no error known at 5" in found.text
    # The model as it was trained comes first, those that went on from it after it.
    assert [which.training_step for which in claims.on_grids(scores)] == [10, 15, 15, 15, 15]


def test_runs_without_a_spectrum_have_no_section():
    assert section.sections({}, {}) == []
    assert section.sections({"spectrum": None}, {}) == []
