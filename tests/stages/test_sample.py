"""Samples: independent of shards and of their number, balanced, at exactly the asked NFE."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import sources
from pipeline.errors import StageError
from pipeline.stage import resolve
from stages.artifacts import samples as artifacts_samples
from stages.artifacts.network import Guiding, as_denoiser
from stages.catalog import CATALOG
from stages.methods import grids, solvers, stein, strata, table
from stages.methods.draws import Draws
from stages.methods.path import VelocityDenoiser
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.sampling.sweep import SampleSweep
from stages.settings import solvers as solver_settings
from stages.training import checkpoint
from tests.nets.published import FIXTURES
from tests.networks.test_recipes import edm
from tests.stages.context import digests, make

SETTINGS = sample.SampleSettings(nfe=3, num_samples=44, block_size=8)


def block(network, model, settings, count=4):
    """The first samples of a network."""
    plan = sample.plan_of(settings, model)
    problem = sampling_problem.Problem(network, model.load(), settings)
    images, _ = sample.sample_block(problem, torch.arange(count), settings, plan)
    return images


@pytest.fixture(scope="module")
def samples(tmp_path_factory, model) -> artifacts_samples.Samples:
    return make(tmp_path_factory.mktemp("samples"), sample.STAGE, SETTINGS, model=model)


@pytest.mark.parametrize(
    "changes",
    [{"shard_size": size} for size in (1, 8, 20, 43)]
    + [{"batch_size": size} for size in (1, 9, 16, 44)],
)
def test_bytes_depend_on_neither_shards_nor_batch_size(tmp_path, model, samples, changes):
    settings = SETTINGS.revised(**changes)
    assert settings.keyed() == SETTINGS.keyed()
    other = make(tmp_path, sample.STAGE, settings, model=model)
    assert digests(other.path) == digests(samples.path)


def test_shards_are_whole_blocks():
    assert sample.shards(44, 8, 20) == [(0, 24), (24, 44)]
    assert sample.shards(44, 8, 1) == [(i, min(i + 8, 44)) for i in range(0, 44, 8)]
    assert sample.shards(44, 8, 1000) == [(0, 44)]


def test_tasks_of_many_evaluations_are_smaller():
    swept = SampleSweep(num_samples=50_000)
    sizes = {nfe: swept.options(nfe=nfe).shard_size for nfe in (5, 50, 99, 250)}
    assert sizes == {5: 5000, 50: 5000, 99: 2525, 250: 1000}
    assert swept.revised(shard_size=500).options(nfe=250).shard_size == 500


def test_a_sample_depends_on_seed_and_index_only(tmp_path, model, samples):
    images = samples.load().images
    fewer = make(tmp_path / "fewer", sample.STAGE, SETTINGS.revised(num_samples=21), model=model)
    assert torch.equal(fewer.load().images, images[:21])
    other = SETTINGS.revised(block_size=5)
    regrouped = make(tmp_path / "regrouped", sample.STAGE, other, model=model).load().images
    torch.testing.assert_close(regrouped, images, rtol=0, atol=1e-5)
    reseeded = make(tmp_path / "seed", sample.STAGE, SETTINGS.revised(seed=1), model=model)
    assert (reseeded.load().images - images).abs().mean() > 0.1
    assert len({tuple(image.flatten().tolist()) for image in images}) == 44


@pytest.mark.parametrize(("batch_size", "held"), [(1, 8), (16, 16), (100, 24)])
def test_the_network_sees_whole_blocks_only(model, tmp_path, monkeypatch, batch_size, held):
    calls, batches = [], []

    def network(x, t, labels):
        calls.append(len(x))
        return torch.zeros_like(x)

    monkeypatch.setattr(sampling_problem, "warm_network", lambda *which: network)
    noise = sampling_problem.Problem.noise
    monkeypatch.setattr(
        sampling_problem.Problem,
        "noise",
        lambda p, seed, i: batches.append(i.tolist()) or noise(p, seed, i),
    )
    settings = SETTINGS.revised(batch_size=batch_size)
    plan = sample.plan_of(settings, model)
    shard = sample.sample_shard((24, 44), model, settings, plan, str(tmp_path))
    assert set(calls) == {8}
    assert len(calls) == 3 * 3
    assert len(batches[0]) == held
    assert [index for batch in batches for index in batch] == list(range(24, 48))
    assert len(np.load(shard["images"])) == 20
    calls.clear()
    assert sample.sample_shard((24, 44), model, settings, plan, str(tmp_path)) == shard
    assert not calls, "a shard is kept as soon as it is made"


def test_labels_are_balanced_and_used(model, samples):
    loaded = samples.load()
    counts = model.description["class_counts"]
    assert loaded.labels.tolist() == strata.in_turn(counts, 44).tolist()
    assert (loaded.labels.bincount() - 44 * torch.tensor(counts) / sum(counts)).abs().max() < 1
    network = model.load().network()
    problem = sampling_problem.Problem(network, model.load(), SETTINGS)
    z = problem.noise(0, torch.arange(8))
    levels = grids.uniform_t(3)
    denoiser = VelocityDenoiser(network, {"labels": loaded.labels[:8]}, dtype=torch.float32)
    expected = solvers.solve(denoiser, 999 * z, levels, "dpmpp2m").float()
    torch.testing.assert_close(loaded.images[:8], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "nfe"), [("euler", 4), ("heun", 5), ("unipc", 4), ("deis", 6), ("dpm2", 5)]
)
def test_the_network_is_called_nfe_times(model, solver, nfe):
    calls = []

    def network(x, t, labels=None):
        calls.append(t[0].item())
        return torch.zeros_like(x)

    settings = SETTINGS.revised(solver=solver, nfe=nfe, grid="edm")
    block(network, model, settings)
    assert len(calls) == nfe
    assert calls[0] == pytest.approx(80 / 81)


def test_guidance_moves_away_from_the_unconditional_velocity(model):
    def network(x, t, labels):  # the path of a point mass at 1 (conditional) or 0
        told = labels < model.load().known_classes
        return (x - told.to(x)[:, None, None, None]) / t[:, None, None, None]

    for guidance, expected in ((1.0, 1.0), (3.0, 3.0), (0.0, 0.0)):
        settings = SETTINGS.revised(guidance=guidance)
        found = block(network, model, settings)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-4)
    outside = SETTINGS.revised(guidance=3.0, guidance_interval=(0.0, 0.0))
    found = block(network, model, outside)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("correction", ["none", "literal"])
def test_guidance_is_one_call_of_the_network_on_twice_the_samples(model, correction):
    """Where it acts; elsewhere one call on the samples alone. Corrections take the same calls."""
    network, sizes = model.load().network(), []

    def counted(x, *args, **kwargs):
        sizes.append(len(x))
        return network(x, *args, **kwargs)

    options = {"guidance": 2.0, "guidance_interval": (0.0, 0.9), "correction": correction}
    block(counted, model, SETTINGS.revised(**options))
    assert sizes == [4, 8, 8]


@pytest.mark.parametrize("which", ["reg", "edm", "sit"])
def test_one_call_for_both_is_two_calls(networks, model, which):
    loaded = (model if which == "sit" else networks[which]).load()
    # EDM's own was trained with classes alone, and still takes rows of zeros.
    loaded = dataclasses.replace(loaded, null_class=True)
    network, labels = loaded.network(), torch.tensor([1, 3])
    guided = as_denoiser(loaded, network, labels, guiding=Guiding(2.5))
    problem = sampling_problem.Problem(None, loaded, SETTINGS)
    y = 3 * problem.noise(0, torch.arange(2))
    assert guided.pair is not None
    apart = dataclasses.replace(guided, pair=None)
    torch.testing.assert_close(guided(y, 3.0), apart(y, 3.0), rtol=1e-5, atol=1e-5)
    assert (guided(y, 3.0) - guided.conditional(y, 3.0)).abs().max() > 1e-4


def test_checkpoint_and_facts(tmp_path, model, samples):
    assert samples.description["training_step"] == 18
    early = make(tmp_path / "early", sample.STAGE, SETTINGS.revised(step=7), model=model)
    assert early.description["training_step"] == 7
    assert not torch.equal(early.load().images, samples.load().images)
    with pytest.raises(StageError, match="no checkpoint of step 8"):
        make(tmp_path / "none", sample.STAGE, SETTINGS.revised(step=8), model=model)


def test_the_picture_shows_the_samples_in_order(tmp_path):
    images = np.linspace(-1.5, 1.5, 12, dtype=np.float32)[:, None, None, None]
    artifacts_samples.write_grid(tmp_path / "grid.png", np.broadcast_to(images, (12, 3, 8, 8)))
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == ((2 * 9 - 1) * 6, (10 * 9 - 1) * 6, 3)
    for i in range(12):
        centre = pixels[(i // 10 * 9 + 4) * 6, (i % 10 * 9 + 4) * 6]
        expected = round((min(max(float(images[i].item()), -1), 1) + 1) * 127.5)
        assert centre.tolist() == [expected] * 3


def test_the_registry_agrees_with_the_mathematics():
    """Names, evaluations, and which solvers are multistep or look ahead."""
    for name, entry in table.SOLVERS.items():
        if entry.stochastic:
            continue
        made = resolve(entry.place)
        if entry.counted_as:
            made = made(grids.edm(3), torch.full((3, 2), 0.25))
        num_levels, calls = 3, []

        def denoiser(y, s, calls=calls):
            calls.append(s)
            return y / 2

        solvers.solve(denoiser, torch.ones(2, 1), grids.edm(num_levels), made)
        assert len(calls) == made.evaluations(num_levels), name
        assert solver_settings.runnable_nfe(name, len(calls)) == len(calls)
        assert len(solver_settings.levels_of(settings_of(name, len(calls)))) == num_levels + 1
        for nfe in (1, 2, 3, 6):
            possible = {made.evaluations(n) for n in range(1, nfe + 1)}
            assert solver_settings.runnable_nfe(name, nfe) == max(n for n in possible if n <= nfe)
        assert made.name == name
        assert entry.multistep == isinstance(made, solvers.Multistep)
        ahead = made.base.name if isinstance(made, solvers.LookAhead) else None
        assert entry.around == ahead


def settings_of(solver, nfe):
    return sample.SampleSettings(solver=solver, nfe=nfe)


# A solver that the bench does not know: of two evaluations a step, the second at the same point.
class Twice(solvers.Heun):
    def outputs(self, denoiser, y, levels, k):
        first = denoiser(y, levels[k])
        return [first] if levels[k + 1] == 0 else [first, denoiser(y, levels[k])]


TOY = Twice("toy")


def test_a_solver_is_one_line_of_the_registry(tmp_path, model, monkeypatch):
    entry = table.Solver(f"{__name__}:TOY", per_step=2)
    for known in (table.SOLVERS, table.PLAIN_SOLVERS):  # the second follows from the first
        monkeypatch.setitem(known, "toy", entry)
    with pytest.raises(ValueError, match="solver=toy takes an odd number"):
        settings_of("toy", 4)
    settings = SETTINGS.revised(solver="toy", nfe=5)
    assert entry.place in sample.STAGE.sources(settings)
    made = make(tmp_path, sample.STAGE, settings, model=model)
    assert made.description["solver"] == "toy"
    problem = sampling_problem.Problem(model.load().network(), model.load(), settings)
    indices = torch.arange(8)
    denoiser = problem.denoiser(problem.labels(indices))
    y = 999 * problem.noise(0, indices)
    expected = solvers.solve(denoiser, y, grids.uniform_t(3), "toy").float()
    torch.testing.assert_close(made.load().images[:8], expected, rtol=0, atol=1e-5)


def test_a_correction_is_one_entry_of_the_registry(tmp_path, model, samples, monkeypatch):
    entry = table.Correction(f"{__name__}:half")
    monkeypatch.setitem(table.CORRECTIONS, "half", entry)
    settings = SETTINGS.revised(correction="half")
    assert entry.place in sample.STAGE.sources(settings)
    made = make(tmp_path, sample.STAGE, settings, model=model)
    assert made.description["correction"] == "half"
    assert not torch.equal(made.load().images, samples.load().images)
    with pytest.raises(ValueError, match=r"correction=half and solver=fitted .*none"):
        sample.SampleSettings(correction="half", solver="fitted")


def half(given):
    return given.solver, stein.calibrated(torch.full((given.settings.nfe,), 0.5))


def test_a_key_covers_its_own_correction_and_solver_only():
    def modules(**changes):
        dotted = sample.STAGE.sources(SETTINGS.revised(**changes))
        return {place.partition(":")[0] for place in dotted}

    def stein_in(**changes):
        roots = {sample.STAGE.run.partition(":")[0], *modules(**changes)}
        return "stages.methods.stein" in sources.closure(roots, CATALOG.exclude_sources)

    assert not stein_in()
    assert not stein_in(correction="lookahead")
    assert stein_in(correction="literal")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"solver": "heun", "nfe": 10}, "solver=heun takes an odd .* nfe=10 .* 9 or 11"),
        ({"solver": "hoin"}, "unknown solver 'hoin'; did you mean 'heun'"),
        ({"s_min": 90}, "s_min=90.* s_max=80"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ({"correction": "onlin"}, "unknown correction 'onlin'; did you mean 'online'"),
        ({"correction": "lookahead", "solver": "unipc"}, "lookahead and solver=unipc .*dpmpp3m"),
        ({"correction": "online", "solver": "unipc"}, "online and solver=unipc .*calibrated"),
        ({"correction": "online", "solver": "fitted"}, "online and solver=fitted .*none"),
        ({"gamma_min": 0.5}, "gamma_min=0.5 and correction=none"),
    ],
)
def test_contradictions_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        sample.SampleSettings(**changes)


def test_classes_in_turn_or_drawn_for_each_sample(tmp_path, model):
    indices = torch.arange(40_000)

    def labels(which=indices, **changes):
        problem = sampling_problem.Problem(None, model.load(), SETTINGS.revised(**changes))
        return sample.labels_of(problem.settings, problem, which)

    turns = labels(labels="equal")
    assert turns[:12].tolist() == [*range(10), 0, 1]
    drawn = labels(classes="random")
    counts = drawn.bincount(minlength=10).double()
    assert len(counts) == 10
    assert (counts - 4000).square().sum() / 4000 < 30  # chi squared of 9 degrees of freedom
    assert (counts != 4000).any()
    part = labels(indices[7:9], classes="random")
    assert torch.equal(part, drawn[7:9])  # whatever its batch
    other = labels(classes="random", seed=1)
    assert not torch.equal(other, drawn)
    made = make(tmp_path, sample.STAGE, SETTINGS.revised(classes="random"), model=model)
    loaded = made.load()
    assert torch.equal(loaded.labels, drawn[: len(loaded.labels)])
    assert made.description["classes"] == "random"


@pytest.mark.parametrize(("solver", "nfe"), [("ancestral", 4), ("churn", 5)])
def test_samplers_with_noise_on_a_grid(tmp_path, model, solver, nfe):
    """As their functions make them from the same noise, whatever the shards."""
    settings = SETTINGS.revised(solver=solver, nfe=nfe, grid="edm", num_samples=20)
    one = make(tmp_path / "1", sample.STAGE, settings, model=model)
    two = make(tmp_path / "2", sample.STAGE, settings.revised(shard_size=8), model=model)
    assert torch.equal(one.load().images, two.load().images)
    assert (one.description["grid"], one.description["solver"]) == ("edm", solver)
    problem = sampling_problem.Problem(model.load().network(), model.load(), settings)
    indices = torch.arange(8)
    levels = solver_settings.levels_of(settings)
    draws = Draws(settings.seed + sample.SDE_SEED, indices)
    sampler = resolve(table.SOLVERS[solver].place)
    y = levels[0] * problem.noise(0, indices)
    expected = sampler(problem.denoiser(problem.labels(indices)), y, levels, draws)
    torch.testing.assert_close(one.load().images[:8], expected.float(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="corrections are of the ODE's steps"):
        settings.revised(correction="calibrated")
    if solver == "churn":
        calm = settings.revised(churn={"amount": 0.0})
        calm = make(tmp_path / "3", sample.STAGE, calm, model=model)
        heun = make(tmp_path / "4", sample.STAGE, settings.revised(solver="heun"), model=model)
        torch.testing.assert_close(calm.load().images, heun.load().images, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """REG's network of the fixtures, with a class token beside the image, and EDM's."""
    folder = tmp_path_factory.mktemp("networks")
    places = {"reg": FIXTURES / "reg/0000010.pt", "edm": edm(folder / "made", "edm/ddpmpp")}
    heads = {"reg": {"num_heads": 3}, "edm": {}}
    return {
        which: make(
            folder / which,
            checkpoint.STAGE,
            checkpoint.CheckpointSettings(path=str(place), **heads[which]),
        )
        for which, place in places.items()
    }


@pytest.mark.parametrize("which", ["reg", "edm"])
def test_every_solver_runs_with_class_tokens_guidance_and_edm_networks(
    networks, which, monkeypatch
):
    """Solvers of the ODE with many evaluations end where Heun's steps do, guided or not; those
    that add noise end elsewhere, and guidance moves them too."""
    given = networks[which]
    scale = {"guidance": 1.6, "guidance_interval": (0.1, 0.9)}
    tokens = given.load().config.get("class_token_dim", 0)
    assert bool(tokens) == (which == "reg")
    guided = [{}, scale, scale | {"guidance_token": 0.0}] if tokens else [{}]
    ends = []
    for changes in guided:
        common = {"grid": "edm", "s_max": 20.0, "num_samples": 4, "block_size": 4} | changes
        settings = sample.SampleSettings(solver="heun", nfe=61, **common)
        network = sampling_problem.warm_network(given.path, given.load().steps[-1], "cpu")
        end = block(network, given, settings)
        for solver in ("deis", "ipndm", "dpm2"):
            found = block(network, given, settings.revised(solver=solver, nfe=41))
            apart = (found - end).square().mean().sqrt()
            assert apart < 0.02 * end.std(), solver
        for solver, nfe in (("ancestral", 20), ("churn", 21)):
            found = block(network, given, settings.revised(solver=solver, nfe=nfe))
            assert found.isfinite().all()
            ends.append(found)
    for i, one in enumerate(ends):
        for other in ends[i + 1 :]:
            assert (one - other).abs().max() > 1e-4
    if which == "edm":
        with pytest.raises(ValueError, match="without a class"):
            block(network, given, settings.revised(guidance=2.0))


def test_labels_take_equal_turns_on_request(tmp_path, model):
    found = make(tmp_path, sample.STAGE, SETTINGS.revised(labels="equal"), model=model)
    count = found.description["num_samples"]
    assert found.load().labels.tolist() == [i % 10 for i in range(count)]
    assert found.description["labels"] == "equal"
